"""The optimizers that a recipe can name, and what of their state a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...lavi_core.registry import Registry
from ..recipe import OptimizerSection

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, section: OptimizerSection) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=_all_float32(groups), **_common(section))


def _adamw_8bit(groups: Groups, section: OptimizerSection) -> torch.optim.Optimizer:
    """Moments in 8 bits by blocks (arXiv 2110.02861), for tensors of 4096 elements and more."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, **_common(section))


def _paged_adamw_8bit(groups: Groups, section: OptimizerSection) -> torch.optim.Optimizer:
    """As above, and the moments move to host memory when the GPU is full."""
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(groups, **_common(section))


def _schedule_free(groups: Groups, section: OptimizerSection) -> torch.optim.Optimizer:
    """The average of the iterates takes the place of a falling learning rate (arXiv 2405.15682)."""
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(groups, warmup_steps=section.warmup, **_common(section))


OPTIMIZERS: Registry[Callable[[Groups, OptimizerSection], torch.optim.Optimizer]] = Registry(
    "optimizer",
    {
        "adamw": _adamw,
        "adamw8bit": _adamw_8bit,
        "paged_adamw8bit": _paged_adamw_8bit,
        "schedule_free": _schedule_free,
    },
)
OWN_SCHEDULE = {"schedule_free"}  # warm-up and averaging are the optimizer's own: the rate itself stays


def build(groups: Groups, section: OptimizerSection) -> torch.optim.Optimizer:
    """groups: torch's parameter groups, each with its ``lr``. Raises ValueError for a package that is not installed."""
    make = OPTIMIZERS[section.kind]
    try:
        return make(groups, section)
    except ImportError as error:
        raise ValueError(
            f"optimizer.kind = {section.kind!r} needs the package {error.name}, which is not installed: "
            f"pip install {error.name}, or take another optimizer"
        ) from None


def use_averaged_weights(optimizer: torch.optim.Optimizer, mode: bool) -> None:
    """Of an optimizer that averages: put the average into the parameters (True), or the weights to train on (False)."""
    if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
        (optimizer.eval if mode else optimizer.train)()  # type: ignore[attr-defined]


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of it is not taken where its ``found_inf``, on the device, is 1: torch's fused ones do that."""
    return _fused(optimizer)


def dump(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by "name:parameter", plain values): all that goes on where the optimizer stopped."""
    tensors, plain = {}, {}
    for key, parameter in trained.items():
        for name, value in optimizer.state.get(parameter, {}).items():
            (tensors if isinstance(value, Tensor) else plain)[f"{name}:{key}"] = value
    groups = [
        {key: value for key, value in group.items() if isinstance(value, (bool, int, float))}
        for group in optimizer.param_groups
    ]
    return tensors, {"values": plain, "groups": groups}


def restore(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
) -> None:
    """Put back what ``dump`` gave. Learning rates are the recipe's, not the state's."""
    for name_key, value in {**tensors, **plain.get("values", {})}.items():
        name, _, key = name_key.partition(":")
        optimizer.state[trained[key]][name] = value
    follow(optimizer)
    for group, kept in zip(optimizer.param_groups, plain.get("groups", []), strict=False):
        group.update({key: value for key, value in kept.items() if key not in ("lr", "rate", "weight_decay", "eps")})


def follow(optimizer: torch.optim.Optimizer) -> None:
    """Bring the state to where the parameters are; torch counts steps on the CPU, unless fused."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and (name != "step" or _fused(optimizer)):
                state[name] = value.to(parameter.device)


def _common(section: OptimizerSection) -> dict[str, Any]:
    return {"betas": section.betas, "eps": section.eps, "weight_decay": section.weight_decay}


def _all_float32(groups: Groups) -> bool:
    return all(p.dtype == torch.float32 for group in groups for p in group["params"])


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)
