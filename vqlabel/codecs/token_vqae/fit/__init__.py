"""The fit of the VQAE for tokens."""
