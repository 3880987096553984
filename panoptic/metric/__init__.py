"""What PQ is counted from: overlaps, matches, scores; AP and mIoU of the parts; the peers."""
