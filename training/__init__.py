"""The workshop: train, sample, evaluate and demonstrate bridges. Never imported by ComfyUI."""
