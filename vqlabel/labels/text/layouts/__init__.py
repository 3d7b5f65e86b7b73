"""Layouts of language models' dumps: one module for each, and the registry of their names."""
