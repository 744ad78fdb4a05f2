"""Vision models in ComfyUI: diffusers folders as stock models, and whether a bridge fits the model it is given."""

from .compatibility import refuse_misfit
from .folder import is_vision_model
from .latents import latent_format
from .loading import load

__all__ = ["is_vision_model", "latent_format", "load", "refuse_misfit"]
