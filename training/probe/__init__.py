"""What a language model's states are worth to a bridge, told from captions alone, before any training."""
