"""The demo: how its small models were made, what they draw, and their installation into ComfyUI."""
