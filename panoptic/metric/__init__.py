"""What PQ is counted from; AP and mIoU of the parts; peers and examples of the benchmark."""
