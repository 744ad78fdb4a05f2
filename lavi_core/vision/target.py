"""What is known of one kind of vision model: a row of facts."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    latent_scale, objective: defaults; a bridge records its own.
    """

    name: str
    diffusers_class: str
    lora_sites: str
    keys: KeyFormat
    mask: Literal["attend", "drop"]
    context_width: int | None = None
    pooled_width: int | None = None
    latent_scale: float = 1.0
    objective: Literal["epsilon", "v_prediction", "flow"] = "epsilon"

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

    def path_of(self, paths: Iterable[str]) -> dict[str, str]:
        """Stem -> module path, for known paths (a stem alone does not tell an underscore from a dot)."""
        return {self.keys.stem(path): path for path in paths}
