"""VisionTarget: what is set for one architecture: LoRA targets and their names in files, widths, latent scale."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..conditioning import Conditioning
from ..lora import is_site
from .added_conditions import Added, Size, nothing
from .keys import KeyFormat


@dataclass(frozen=True, kw_only=True)
class VisionTarget:
    """Everything in which vision models differ, so that no code asks which one it has.

    diffusers_class, told_by: the class that loads it, and the keys of its config.json, with their values, that tell it
        from other rows of that class. formerly: what a config.json says that was written before the class had its name.
    lora_sites: regex, matched against whole module paths of that class.
    keys: how LoRA tensors are named in a file, so that stock ComfyUI reads them.
    width_key: the key of config.json that holds the width of the context.
    size_ids: how many sizes (original, crop, target) are embedded beside a pooled vector; 0 = takes neither.
    added: config.json, conditioning and picture size -> what the diffusers network is told beside its context.
    latent_scale: raw VAE latents times this are what the model sees; None = it varies, see ``latent_scale``. A bridge
        records its own. sets_latent_scale: the host can be wrong about it, so the bridge's own is put in.
    """

    name: str
    diffusers_class: str
    lora_sites: str
    keys: KeyFormat
    told_by: Mapping[str, Any] = field(default_factory=dict)
    formerly: Mapping[str, Any] = field(default_factory=dict)
    width_key: str = "cross_attention_dim"
    size_ids: int = 0
    added: Callable[[Mapping[str, Any], Conditioning, Size], Added] = nothing
    latent_scale: float | None = None
    sets_latent_scale: bool = False

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether a diffusers network with this config.json is of this row."""
        names = [{"_class_name": self.diffusers_class}, *([self.formerly] if self.formerly else [])]
        return says(config, self.told_by) and any(says(config, name) for name in names)

    def context_width(self, config: Mapping[str, Any]) -> int:
        return int(config[self.width_key])

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        """The width of the pooled vector; None = the model takes none."""
        if not self.size_ids:
            return None
        return config["projection_class_embeddings_input_dim"] - self.size_ids * config["addition_time_embed_dim"]

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


def says(config: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether a config has each of the facts."""
    return all(config.get(key) == value for key, value in facts.items())
