"""Dumps of language models: documents, their tokens, and one label for each token but the first."""
