"""From detections to labels: their records, the thresholds (Sec. 3), AP against the truth."""
