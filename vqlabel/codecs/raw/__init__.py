"""Labels as they are, bit for bit."""
