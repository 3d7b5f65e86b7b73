"""The codec of labels with k known entries."""
