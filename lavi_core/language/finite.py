"""Values that are no numbers (inf, NaN), as where states leave the range of float16: found before they go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_finite(states: Tensor) -> bool:
    return bool(torch.isfinite(states).all())


def first_overflow(run: Callable[[], Any], layers: nn.ModuleList) -> int | None:
    """The first of ``layers``, counted from 0, whose output in the forward pass ``run`` is not finite everywhere; None
    where none is. The pass is run once more for it."""
    found: list[int] = []

    def look(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(states, Tensor) and not is_finite(states):
                found.append(index)

        return hook

    hooks = [layer.register_forward_hook(look(i)) for i, layer in enumerate(layers)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def leaves_float16(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json may have states beyond float16: one that was trained in bfloat16, and the
    families that are known for it."""
    trained = config.get("dtype") or config.get("torch_dtype")
    return trained == "bfloat16" or str(config.get("model_type", "")).startswith(("t5", "umt5", "mt5", "gemma"))


def refusal(model_id: str, dtype: torch.dtype, layer: int | None) -> ValueError:
    """Names the model, the dtype and, where it is known, the layer; and the way out."""
    name = str(dtype).removeprefix("torch.")
    where = "" if layer is None else f" from layer {layer} on"
    if dtype in (torch.float16, torch.bfloat16):
        wider = "bfloat16 or float32" if dtype == torch.float16 else "float32"
        return ValueError(f"the states of {model_id} in {name} are not finite{where} (inf or NaN): load it in {wider}")
    return ValueError(
        f"the states of {model_id} in {name} are not finite{where} (inf or NaN): its weights, or a LoRA in it, are "
        "damaged; fetch them again, or take the LoRA out"
    )
