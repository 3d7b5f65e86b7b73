"""The VQAE for tokens: factored labels of language models, a token prior, and exact ids."""
