"""LanguageFamily: what is set for one architecture: its loader, LoRA targets, layer list, position numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LanguageFamily:
    """Everything in which a family differs from "any Hugging Face text model".

    model_types: values of ``config.model_type`` that select this row.
    loader: the transformers class that loads the trunk (no LM head, no decoder).
    lora_sites: regex, matched against the whole path of a module inside the trunk; only linear maps are taken.
    layers: path of the layer list inside the trunk; "" = found by its length.
    positions: how a token is numbered when padding stands on its left. "argument" = the trunk takes ``position_ids``
        (a trunk that does not is refused left padding); "own" = the trunk numbers rightly by itself, or not at all.
    reserved_positions: entries of the position table that no token uses.
    """

    name: str
    model_types: tuple[str, ...]
    loader: str = "AutoModel"
    lora_sites: str = r"(?i).*(attn|attention).*"
    layers: str = ""
    positions: Literal["argument", "own"] = "argument"
    reserved_positions: int = 0
