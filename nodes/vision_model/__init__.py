"""Vision models in ComfyUI: diffusers folders as stock models, and whether a bridge fits the model it is given."""

from .compatibility import class_of, refuse_misfit
from .folder import is_vision_model
from .latents import latent_format
from .loading import load
from .lora_keys import lora_keys
from .registry import counts_by_mask

__all__ = [
    "class_of",
    "counts_by_mask",
    "is_vision_model",
    "latent_format",
    "load",
    "lora_keys",
    "refuse_misfit",
]
