"""Scaled float8 weights, as ComfyUI's users have text encoders: each with a factor beside it that it is to be
multiplied by.

Two forms (ComfyUI 0.33.0, comfy/utils.py convert_old_quants and comfy/ops.py): "X.scale_weight" beside "X.weight", with
a tensor "scaled_fp8"; "X.weight_scale" with "X.comfy_quant", which holds JSON bytes, or with the JSON of all layers
in the file's header (_quantization_metadata). Factors of inputs ("scale_input", "input_scale") are of use to float8
products alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

FACTORS = (".scale_weight", ".weight_scale")
PASSED_OVER = (".scale_input", ".input_scale", "scaled_fp8", ".comfy_quant")
# Ends of names beside a weight that is nothing without them, in ways that are not read here.
OTHERS = (".weight_scale_2", ".weight_scale_inv", ".pre_quant_scale", ".absmax", ".qweight", ".quant_state", ".SCB")
READ = ("float8_e4m3fn", "float8_e5m2")


def factors(
    path: Path, names: Iterable[str], read: Callable[[str], Tensor], header: Mapping[str, str]
) -> dict[str, float]:
    """Name of a weight -> its factor. names: of all tensors of a file. read: gives one. header: the file's metadata.

    Raises ValueError for weights that are scaled in a way that is not read here.
    """
    known = set(names)
    layers = _layers(path, header)
    for name in sorted(known):
        if name.endswith(".comfy_quant"):
            layers[name.removesuffix(".comfy_quant")] = _said(read(name))
    odd = next(
        (f"{layer} in {said.get('format')}" for layer, said in layers.items() if said.get("format") not in READ), None
    )
    odd = odd or next((name for name in sorted(known) if name.endswith(OTHERS)), None)
    found: dict[str, float] = {}
    for name in sorted(known):
        end = next((end for end in FACTORS if name.endswith(end)), None)
        if end is None:
            continue
        factor, weight = read(name), f"{name.removesuffix(end)}.weight"
        if factor.numel() != 1 or weight not in known:  # a factor for each block or row
            odd = odd or name
        else:
            found[weight] = float(factor)
    lone = sorted(f"{layer}.weight" for layer in layers if f"{layer}.weight" in known.difference(found))
    odd = odd or (f"{lone[0]}, without a factor" if lone else None)
    if odd is not None:
        raise ValueError(
            f"{path.name} has scaled weights ({odd}), of which only float8 with one factor each is read here; load it "
            "with ComfyUI's CLIPLoader and Language Model from CLIP (LaVi-Bridge), or take the file without scales"
        )
    return found


def _layers(path: Path, header: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    if "_quantization_metadata" not in header:
        return {}
    try:
        layers = json.loads(header["_quantization_metadata"])["layers"]
        return {str(name): dict(said) for name, said in layers.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name} has a header that is not readable ({error}); fetch it again") from None


def _said(tensor: Tensor) -> dict[str, str]:
    try:
        return dict(json.loads(bytes(tensor.to(torch.uint8).tolist())))
    except (ValueError, TypeError):
        return {}


def is_beside(name: str) -> bool:
    """Whether a tensor of this name is no weight but belongs to one."""
    return name.endswith((*FACTORS, *PASSED_OVER))
