"""How a VQAE is fitted. Nothing here is loaded by a program that only decodes."""
