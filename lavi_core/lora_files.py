"""A LoRA for a language model as one .safetensors file: kohya's names ("lora_te_...") or PEFT's, without its folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .lora import Delta, LoRA

log = logging.getLogger(__name__)

ENDS: Mapping[str, str] = {
    ".lora_down.weight": "down",
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_up.weight": "up",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
}
KOHYA = re.compile(r"lora_te\d*_")
VISION = ("lora_unet_", "lora_transformer_", "unet.", "transformer.", "diffusion_model.")


def read_lora_file(path: Path, sites: Collection[str]) -> LoRA:
    """The deltas by module paths. sites: paths of the language model's linear maps, which kohya's names, with "_" for
    ".", are matched to; PEFT's names are given as they are, for ``rebase``.

    Deltas of a vision model are left out and counted in the log. Raises ValueError for what is no plain LoRA, and for a
    kohya name that is no site.
    """
    from safetensors import SafetensorError, safe_open

    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                end = next((end for end in ENDS if name.endswith(end)), None)
                if end is None:
                    raise ValueError(f"{path.name} is no plain LoRA: it holds {name}; take a LoRA of linear maps alone")
                parts.setdefault(name.removesuffix(end), {})[ENDS[end]] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short, damaged or no safetensors file at all ({error})") from None
    told = [stem for stem in parts if not stem.startswith(VISION)]
    if len(told) < len(parts):
        log.warning("%d of %d deltas in %s are for a vision model", len(parts) - len(told), len(parts), path.name)
    if not told:
        raise ValueError(f"{path.name} is a LoRA for a vision model alone; give it to Load LoRA")
    by_underscores = {site.replace(".", "_"): site for site in sites}
    found = {_site(stem, by_underscores, path): _delta(stem, parts[stem], path, metadata) for stem in told}
    return found


def _site(stem: str, sites: Mapping[str, str], path: Path) -> str:
    match = KOHYA.match(stem)
    if match is None:
        return stem.removeprefix("base_model.model.")
    name = stem[match.end() :]
    fitting = [known for known in sites if name == known or name.endswith(f"_{known}")]
    if not fitting:
        raise ValueError(f"{path.name} has a delta for {stem}, which names no linear map of this language model")
    return sites[max(fitting, key=len)]


def _delta(stem: str, parts: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> Delta:
    missing = {"down", "up"} - parts.keys()
    if missing:
        raise ValueError(f"{path.name} lacks the {missing.pop()} half of its delta for {stem}; fetch it again")
    rank = parts["down"].shape[0]
    alpha = float(parts["alpha"]) if "alpha" in parts else _alpha(metadata)
    if alpha is None:
        log.warning("%s records no alpha: it is taken for the rank, as ComfyUI does", path.name)
    return Delta(parts["down"], parts["up"], 1.0 if alpha is None else alpha / rank)


def _alpha(metadata: Mapping[str, str]) -> float | None:
    """As peft's config in the header says, which diffusers writes."""
    try:
        said: dict[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return None
    found = next((value for key, value in said.items() if key.split(".")[-1] == "lora_alpha"), None)
    return float(found) if isinstance(found, int | float) else None
