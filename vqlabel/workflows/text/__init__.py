"""One public function for each command, for the labels of documents."""
