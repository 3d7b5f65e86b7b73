"""The vector-quantized autoencoder (arXiv 2603.03808): prior plus code vectors, through a low-rank output map."""
