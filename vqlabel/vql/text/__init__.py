"""A `.vql` with the labels of documents: its table of documents, its streams, reader and writer."""
