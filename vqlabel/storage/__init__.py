"""Files: types of input files, bytes at a position, atomic targets, and the journal of an interrupted run."""
