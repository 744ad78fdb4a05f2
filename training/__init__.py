"""The trainer and its tools: train, sample, evaluate, experiment, demo. Never imported by ComfyUI."""
