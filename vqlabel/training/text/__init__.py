"""Labels of language models in a training loop: the labels of a batch of tokens, and losses of a student on them."""
