"""Corpora: the documents of token ids that a teacher labels, in .npy, .jsonl, Parquet and Arrow files."""
