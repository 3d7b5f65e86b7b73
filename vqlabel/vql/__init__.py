"""Meaning of the streams of a `.vql`: codes of labels, places, augmentation, seeds."""
