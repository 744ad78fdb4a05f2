"""How LoRA tensors of a vision model are named in a file, so that stock ComfyUI's LoRA loader reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyFormat:
    """stem(path) + down / up / alpha are the three tensor names of one delta."""

    prefix: str
    separator: str  # stands for the dots of a module path
    down: str
    up: str
    alpha: str = ".alpha"

    def stem(self, path: str) -> str:
        return self.prefix + path.replace(".", self.separator)


KOHYA = KeyFormat("lora_unet_", "_", ".lora_down.weight", ".lora_up.weight")
"""kohya's names; ComfyUI maps them for every U-Net (not for a diffusers DiT)."""

TRANSFORMER = KeyFormat("transformer.", ".", ".lora_A.weight", ".lora_B.weight")
"""diffusers' names of a DiT; ComfyUI maps q, k and v into its own fused matrices."""
