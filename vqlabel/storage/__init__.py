"""Bytes at rest: what kind of file a path is, targets that appear whole or not at all, and the journal of an interrupted run."""
