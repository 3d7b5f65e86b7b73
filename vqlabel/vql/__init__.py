"""What the streams of a `.vql` mean: labels' codes, places, augmentation, seeds."""
