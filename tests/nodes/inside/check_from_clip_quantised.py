"""The host's own text encoders in fp8, scaled fp8 and int8 as language models of bridges."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
from typing import Any

import comfy.utils
import torch
from host_networks import CASES, apart, bridge, connected, contexts, file_of, host_clip, of, usual
from host_side import check, refused


def packed(kind: str, dtype: torch.dtype, largest: float) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The file with its linear maps as multiples of a scale, ``largest`` of them at most, and the scales by name."""
    state, scales = file_of(kind), {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and "layer" in name and "relative_attention_bias" not in name:
            scales[name] = tensor.float().abs().max() / largest
            multiples = tensor.float() / scales[name]
            state[name] = (multiples if dtype.is_floating_point else multiples.round()).to(dtype)
    return state, scales


@check
def scaled_fp8_has_the_print_of_what_was_scaled():
    for kind in ("t5", "qwen"):
        state, scales = packed(kind, torch.float8_e4m3fn, 200.0)
        state |= {name.replace(".weight", ".scale_weight"): scale for name, scale in scales.items()}
        options = {"scaled_fp8": torch.float8_e4m3fn}
        if hasattr(comfy.utils, "convert_old_quants"):
            state, _ = comfy.utils.convert_old_quants(state | {"scaled_fp8": torch.zeros(2)}, "", {})
            options = {"quantization_metadata": comfy.utils.detect_layer_quantization(state, "")}
            assert options["quantization_metadata"], "the host does not know these files"
        ours = of(host_clip(kind, state, **options))
        name = bridge(kind)
        exact, plain, heard = (
            contexts(connected(name, model, strength))
            for model, strength in ((usual(kind), 0.7), (usual(kind), 0.0), (ours, 0.7))
        )
        off, without = (sum((a - b).norm().item() for a, b in zip(heard, o, strict=True)) for o in (exact, plain))
        assert 1e-4 < off < 0.5 * without, (kind, off, without)


@check
def int8_is_refused_for_its_print_and_taken_where_allowed():
    if "int8_tensorwise" not in getattr(importlib.import_module("comfy.ops"), "QUANT_ALGOS", {}):
        return
    state, scales = packed("t5", torch.int8, 127.0)
    told = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    for name, scale in scales.items():
        state |= {name.replace(".weight", ".weight_scale"): scale, name.replace(".weight", ".comfy_quant"): told}
    ours = of(host_clip("t5", state, quantization_metadata={"mixed_ops": True}))
    refused(["made for twin-t5", "t5base of ComfyUI (int8_tensorwise)", "allow"], connected, bridge("t5"), ours)
    exact, heard = (contexts(connected(bridge("t5"), model, 0.7, True)) for model in (usual("t5"), ours))
    plain = contexts(connected(bridge("t5"), usual("t5"), 0.0))
    off, without = (sum((a - b).norm().item() for a, b in zip(heard, o, strict=True)) for o in (exact, plain))
    assert off < 0.5 * without, (off, without)


@check
def fp8_copies_are_taken_and_close():
    for kind in CASES:
        name = bridge(kind)
        exact = contexts(connected(name, usual(kind)))
        plain = contexts(connected(name, usual(kind), 0.0))
        ours = of(host_clip(kind, dtype=torch.float8_e4m3fn))
        dtypes = {parameter.dtype for parameter in ours.encoder.model.parameters() if parameter.ndim > 1}
        assert dtypes == {torch.float8_e4m3fn}, (kind, dtypes)
        rough = contexts(connected(name, ours))
        assert apart(rough, exact) > 1e-4, kind
        mean = [sum((a - b).norm().item() for a, b in zip(rough, other, strict=True)) for other in (exact, plain)]
        assert mean[0] < 0.5 * mean[1], (kind, mean)
