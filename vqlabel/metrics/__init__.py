"""Every loss and every figure once: distortion, calibration, and how evenly codes are used."""
