"""DeepSpeed's ZeRO-2: what is trained is whole on every process, its gradients and moments are spread over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.batch import micro_batch_size

if TYPE_CHECKING:
    from ..models.pair import Pair
    from ..recipe import Recipe


class Trained(nn.Module):
    """The trained weights alone: the frozen ones, of another dtype, are the same everywhere and none of DeepSpeed's."""

    def __init__(self, pair: Pair):
        super().__init__()
        self.weights = nn.ParameterList(pair.trained().values())
        self._pair = (pair,)  # a tuple hides the module

    def forward(self, *inputs: Any) -> Tensor:
        return self._pair[0](*inputs)


@dataclass
class GatheredOptimizer:
    """The part of an optimizer that a state keeps: moments by parameter, each gathered from all processes."""

    state: dict[nn.Parameter, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


def check(recipe: Recipe) -> None:
    """Raise ValueError for what ZeRO does not do here."""
    if recipe.optimizer.kind != "adamw":
        raise ValueError(f"DeepSpeed goes with optimizer.kind = 'adamw' here, got {recipe.optimizer.kind!r}")
    if recipe.optimizer.bad_steps == "skip":
        raise ValueError("DeepSpeed cannot skip a step here: set optimizer.bad_steps = 'stop', or launch with ddp.yaml")


def engine(recipe: Recipe, pair: Pair, optimizer: torch.optim.Optimizer, world: int) -> Any:
    """DeepSpeed's engine around the pair. Moments that ``optimizer`` has, as a resumed one does, go on in it."""
    deepspeed: Any = import_module("deepspeed")
    moments = {p: dict(optimizer.state[p]) for p in pair.trained().values() if p in optimizer.state}
    optimizer.state.clear()
    config = {
        "train_micro_batch_size_per_gpu": micro_batch_size(recipe, world),
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_clipping": recipe.optimizer.clip_norm,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": recipe.steps + 1,
    }
    made = deepspeed.initialize(model=Trained(pair), optimizer=optimizer, config=config, dist_init_required=False)[0]
    if moments:
        _scatter(made.optimizer, moments)
    return made


def gathered_optimizer(engine: Any) -> GatheredOptimizer:
    """Every process must call it."""
    zero, state = engine.optimizer, {}
    for flat, parameters in _groups(zero):
        kept = zero.optimizer.state.get(flat, {})  # none before the first step
        for p in parameters if kept else ():
            state[p] = {name: value for name, value in kept.items() if name == "step"}
            for name in kept.keys() - {"step"}:
                whole = torch.zeros(p.numel(), device=flat.device)
                for ours, theirs in _parts(p):
                    whole[ours] = kept[name][theirs]
                torch.distributed.all_reduce(whole)
                state[p][name] = whole.view_as(p)
    return GatheredOptimizer(state, [{**group, "params": []} for group in zero.param_groups])


def group_norms(engine: Any) -> list[Tensor]:
    """As ZeRO's ``scaled_global_norm`` has them, which is their root of squares. Every process must call it."""
    zero = engine.optimizer
    return [
        torch.as_tensor(zero.get_grad_norm_direct(gradients, zero.params_in_partition[index]))
        for index, gradients in sorted(zero.averaged_gradients.items())
    ]


def _scatter(zero: Any, moments: dict[nn.Parameter, dict[str, Tensor]]) -> None:
    for flat, parameters in _groups(zero):
        kept = zero.optimizer.state[flat] = {}
        for name, value in moments[parameters[0]].items():
            kept[name] = value.to(flat.device) if name == "step" else torch.zeros_like(flat)
        for p in parameters:
            for name in kept.keys() - {"step"}:
                for ours, theirs in _parts(p):
                    kept[name][theirs] = moments[p][name].flatten()[ours].to(flat.device)


def _groups(zero: Any) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
    """(this process's part of a group of parameters, as one flat tensor; the group)."""
    return zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)


def _parts(p: nn.Parameter) -> Iterator[tuple[slice, slice]]:
    """(where in the parameter, where in the flat tensor) lies what this process has of it; nothing for none."""
    mapping = getattr(p, "_hp_mapping", None)
    if mapping is not None:
        ours, theirs = mapping.lp_fragment_address, mapping.hp_fragment_address
        yield slice(ours.start, ours.start + ours.numel), slice(theirs.start, theirs.start + theirs.numel)
