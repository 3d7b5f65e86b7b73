"""Fitting of a VQAE. A program that only decodes does not load this package."""
