"""The lossless codec: labels bit for bit."""
