"""The vector-quantized autoencoder (arXiv 2603.03808): a prior plus one code vector per slot, through a low-rank output map."""
