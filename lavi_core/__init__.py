"""The bridge itself, without ComfyUI and without training: language models, adapters, vision models, bridge files."""
