"""The models of a run: vision model, VAE and objective, the trainable pair, sampling, and bridge files."""
