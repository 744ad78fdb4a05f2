"""What is known of one kind of vision model: a row of facts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..lora import is_site
from .keys import KeyFormat


@dataclass(frozen=True, kw_only=True)
class VisionTarget:
    """Everything in which vision models differ, so that no code asks which one it has.

    diffusers_class: the class that loads it. lora_sites: regex, matched against whole module paths of that class.
    keys: how LoRA tensors are named in a file, so that stock ComfyUI reads them.
    mask: what the host does with masked tokens: "attend" = the model attends to every position, padding included;
        "drop" = masked tokens are taken out before cross-attention, which is the same as masking them.
    context_width, pooled_width: None = read from the model / takes no pooled vector.
    latent_scale: raw VAE latents times this are what the model sees; None = it varies, see ``latent_scale``. A bridge
        records its own. sets_latent_scale: the host can be wrong about it, so the bridge's own is put in.
    """

    name: str
    diffusers_class: str
    lora_sites: str
    keys: KeyFormat
    mask: Literal["attend", "drop"]
    context_width: int | None = None
    pooled_width: int | None = None
    latent_scale: float | None = None
    sets_latent_scale: bool = False

    def sites(self, model: nn.Module) -> list[str]:
        """Paths of the modules that LoRA adapts in a diffusers model, in traversal order.

        Raises ValueError where there is none: the model is not of this target.
        """
        pattern = re.compile(self.lora_sites)
        found = [name for name, module in model.named_modules() if is_site(module) and pattern.fullmatch(name)]
        if not found:
            raise ValueError(f"no LoRA sites of the vision target {self.name} were found in {type(model).__name__}")
        return found

    def key_of(self, path: str) -> str:
        """Module path -> the stem of its tensors' names in a file."""
        return self.keys.stem(path)
