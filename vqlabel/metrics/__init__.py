"""Losses, distortion, calibration and code usage: each defined once, for fits, reports and tests."""
