"""The vector-quantized autoencoder (arXiv 2603.03808): prior + slots of code vectors, through a low-rank output map."""
