"""From detections to labels: their records, the thresholds (Sec. 3.2), AP against the truth."""
