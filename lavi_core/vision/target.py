"""VisionTarget: what is set for one architecture: how it is called, LoRA targets and their names in files, latents."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..lora import is_site
from .call import Predict
from .keys import KeyFormat
from .text import MASKED, TextRule, says


@dataclass(frozen=True, kw_only=True)
class VisionTarget:
    """Everything in which vision models differ, so that no code asks which one it has.

    diffusers_class, told_by: the class that loads it, and the keys of its config.json, with their values, that tell it
        from other rows of that class. formerly: what a config.json says that was written before the class had its name.
    predict: how the network is called, see ``call.py``. text: how it hears padding, see ``text.py``.
    lora_sites: regex, matched against whole module paths of that class. idle_sites: of those that feed nothing, with
        ``{last}`` for the number of the last block of ``blocks``.
    keys: how LoRA tensors are named in a file, so that stock ComfyUI reads them.
    width_key: the key of config.json that holds the width of the context; pooled_key: that of the pooled vector's.
    size_ids: how many sizes (original, crop, target) are embedded beside a pooled vector; 0 = takes neither.
    embedded_guidance: what a network whose config.json says ``guidance_embeds`` is told where nobody says otherwise.
    latent_scale, latent_shift: what the model sees is (raw VAE latents - shift) * scale, numbers or one a channel; None
        = it varies, see ``latent_space``. A bridge records its own scale. sets_latent_scale: the host can be wrong
        about it, so the bridge's own is put in.
    pixels: to the side of one latent cell. patch: cells to the side of one token. even: rows and columns of tokens must
        be even, or ComfyUI puts the picture one position off. packing: what ``in_channels`` counts a latent channel.
    size: of pictures in pixels where config.json names none.
    shift: a flow's shift from the number of tokens, where the scheduler's config does not say it.
    noise_levels: how many ComfyUI's table of them has.
    """

    name: str
    diffusers_class: str
    predict: Predict
    lora_sites: str
    keys: KeyFormat
    told_by: Mapping[str, Any] = field(default_factory=dict)
    formerly: Mapping[str, Any] = field(default_factory=dict)
    text: TextRule = MASKED
    idle_sites: str = ""
    blocks: str = "transformer_blocks"
    width_key: str = "cross_attention_dim"
    pooled_key: str | None = None
    size_ids: int = 0
    embedded_guidance: float = 1.0
    latent_scale: float | tuple[float, ...] | None = None
    latent_shift: float | tuple[float, ...] = 0.0
    sets_latent_scale: bool = False
    pixels: int = 8
    patch: int = 1
    even: bool = False
    packing: int = 1
    size: int = 1024
    shift: Callable[[int], float] | None = None
    noise_levels: int = 1000

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Whether a diffusers network with this config.json is of this row."""
        names = [{"_class_name": self.diffusers_class}, *([self.formerly] if self.formerly else [])]
        return says(config, self.told_by) and any(says(config, name) for name in names)

    def context_width(self, config: Mapping[str, Any]) -> int:
        return self._said(config, self.width_key)

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        """The width of the pooled vector; None = the model takes none."""
        if self.pooled_key is not None:
            return self._said(config, self.pooled_key)
        if not self.size_ids:
            return None
        return config["projection_class_embeddings_input_dim"] - self.size_ids * config["addition_time_embed_dim"]

    def _said(self, config: Mapping[str, Any], key: str) -> int:
        if config.get(key) is None:
            raise ValueError(f"the config.json of this {self.name} model does not say {key}: copy it again")
        return int(config[key])

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return config["in_channels"] // self.packing

    def picture_size(self, config: Mapping[str, Any]) -> int:
        """The side in pixels that the model was made for."""
        side = config.get("sample_size")
        return side * self.pixels if isinstance(side, int) else self.size

    @property
    def side_step(self) -> int:
        """What the sides of pictures are multiples of, in pixels."""
        return self.pixels * self.patch * (2 if self.even else 1)

    def check_side(self, pixels: int, what: str) -> None:
        """Raise ValueError for a side that gives no whole number of tokens, or an odd one where that must not be."""
        if pixels < self.side_step or pixels % self.side_step:
            raise ValueError(
                f"{what} must be a multiple of {self.side_step} pixels for {self.name}"
                f"{', which give an even number of tokens' if self.even else ''}, got {pixels}"
            )

    def tokens(self, h: int, w: int) -> int:
        """Of a picture of h x w latent cells."""
        return (h // self.patch) * (w // self.patch)

    def sites(self, model: nn.Module) -> list[str]:
        """Paths of the modules that LoRA adapts in a diffusers model, in traversal order.

        Raises ValueError where there is none: the model is not of this target.
        """
        blocks = getattr(model, self.blocks, ())
        idle = re.compile(self.idle_sites.replace("{last}", str(len(blocks) - 1)))
        pattern = re.compile(self.lora_sites)
        found = [
            name
            for name, module in model.named_modules()
            if is_site(module) and pattern.fullmatch(name) and not idle.fullmatch(name)
        ]
        if not found:
            raise ValueError(f"no LoRA sites of the vision target {self.name} were found in {type(model).__name__}")
        return found
