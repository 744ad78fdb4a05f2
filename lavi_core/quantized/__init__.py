"""Weights that stay quantised in memory: GGUF's block formats, 8-bit and 4-bit, and modules that compute with them."""
