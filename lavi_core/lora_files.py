"""A LoRA for a language model as one .safetensors file: kohya's names ("lora_te_...") or PEFT's, without its folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .lora import Delta, LoRA, from_peft_state
from .peft_config import check_plain

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
    found: dict[str, Delta] = {}
    for stem in told:
        site = _site(stem, by_underscores, path)
        if site in found:
            raise ValueError(
                f"{path.name} has two deltas for {site}, one of them by the name {stem}: it is for several encoders; "
                "save the one for this language model by itself"
            )
        found[site] = _delta(stem, parts[stem], path, metadata)
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
    down, up = parts["down"], parts["up"]
    if min(down.ndim, up.ndim) < 2 or not down.shape[0] or parts.get("alpha", down[:1, 0]).numel() != 1:
        raise ValueError(f"{path.name} has a delta for {stem} of shapes {tuple(down.shape)} and {tuple(up.shape)}")
    if "alpha" in parts:
        return Delta(down, up, float(parts["alpha"]) / down.shape[0])
    config = _config(stem, path, metadata)
    if config is None:
        log.warning("%s records no alpha: it is taken for the rank, as ComfyUI does", path.name)
        return Delta(down, up, 1.0)
    check_plain({"peft_type": "LORA", **config}, path)
    name = stem.removeprefix("base_model.model.")
    state = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    alpha, pattern = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"{path.name} says lora_alpha = {alpha!r} in its header; it must be a number")
    return from_peft_state(state, alpha=alpha, alpha_pattern=pattern, rslora=bool(config.get("use_rslora")))[name]


def _config(stem: str, path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Of this part of the LoRA, as peft's config in the header says, which diffusers writes; None = it does not."""
    if "lora_adapter_metadata" not in metadata:
        return None
    try:
        said = dict(json.loads(metadata["lora_adapter_metadata"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path.name} has a header that is not readable ({error})") from None
    parts = [key.rpartition(".")[0] for key in said]
    fitting = [part for part in parts if not part or stem.startswith(f"{part}.")] or parts[:1] * (len({*parts}) == 1)
    part = max(fitting, key=len, default="")
    start = f"{part}." if part else ""
    return {key.removeprefix(start): v for key, v in said.items() if key.rpartition(".")[0] == part} or None
