"""Distributed training: what the launcher asks for (see ``launch/``), and DDP, FSDP2 or DeepSpeed around the pair.

Trained weights are whole on every process and their gradients averaged (DDP). FSDP2 shards what is frozen and large,
layer by layer: each is gathered for the moment that it computes. LoRA and adapter are small beside it; whole, they
train, resume and leave for the bridge file as on one process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ..models.device import pick_device
from ..models.layers import outermost_layers
from . import deepspeed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..models.pair import Pair
    from ..recipe import Recipe

PATIENCE = timedelta(minutes=30)  # how long a process waits for the others before it fails

# What of the launcher's settings there is but one way for here, and what they are called in its config.
FSDP = {
    "FSDP_VERSION": ("2", "fsdp_version"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "fsdp_cpu_ram_efficient_loading"),
    "FSDP_OFFLOAD_PARAMS": ("false", "fsdp_offload_params"),
}
ZERO = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("2", "zero_stage"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("none", "offload_optimizer_device"),
}


def make_accelerator() -> Accelerator:
    """The process group that the launcher has asked for. Precision and accumulation are the recipe's, whatever the
    launcher has put into the environment.

    Raises ValueError for settings of FSDP or DeepSpeed that the launcher has and this does not do.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    for asked, settings in ((is_sharded(), FSDP), (is_deepspeed(), ZERO)):
        for key, (value, setting) in settings.items() if asked else ():
            if (found := os.environ.get(key)) != value:
                raise ValueError(f"the launcher has set {key} to {found}; set {setting}: {value} in its config")
    return Accelerator(
        cpu=pick_device().type == "cpu",
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def is_deepspeed() -> bool:
    """Whether the launcher has asked for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def is_sharded() -> bool:
    """Whether the launcher has asked for FSDP. Every process must then run every forward pass, in the same order."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def check(recipe: Recipe, processes: int) -> None:
    """Raise ValueError for what cannot be done in the way that the launcher has asked for."""
    if is_sharded() and processes > 1 and recipe.compile:
        raise ValueError("compile does not go with FSDP2: set compile = false, or launch with ddp.yaml")
    if is_deepspeed():
        deepspeed.check(recipe)


def shard(accelerator: Accelerator, pair: Pair) -> None:
    """Spread the frozen weights over the processes, where the launcher has asked for it. Called before the pair moves
    to its device: layers move there one by one, so that a model larger than a GPU never lies on one whole.
    """
    if not is_sharded() or accelerator.num_processes == 1:
        return
    from torch.distributed.fsdp import fully_shard

    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    trained = {p for p in pair.parameters() if p.requires_grad}
    for module in sharded_modules(pair):
        # Outer modules, whose rest is gathered once and kept, come after their layers.
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard, ignored_params=trained)


def sharded_modules(pair: Pair) -> Iterator[nn.Module]:
    """Layers first, then the models around them. A model that is trained whole is none of them: it stays whole."""
    if pair.recipe.language.train != "full":
        yield from pair.encoder.layers()
        yield pair.encoder.model
    if pair.recipe.vision.train != "full":
        yield from outermost_layers(pair.network)
        yield pair.network


def replicate(accelerator: Accelerator, pair: Pair, optimizer: torch.optim.Optimizer) -> nn.Module:
    """The module whose forward pass trains: the pair itself, or around it DDP or DeepSpeed's engine, which average the
    gradients. Its trained weights become those of rank 0.
    """
    if is_deepspeed():
        return deepspeed.engine(pair.recipe, pair, optimizer, accelerator.num_processes)
    if accelerator.num_processes == 1:
        return pair
    frozen = [name for name, p in pair.named_parameters() if not p.requires_grad]
    # Frozen weights are the same everywhere already, or sharded; no buffer changes while it trains.
    left_out = [*frozen, *(name for name, _ in pair.named_buffers())]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pair, left_out)
    return DistributedDataParallel(
        pair,
        device_ids=None if accelerator.device.type == "cpu" else [accelerator.device],
        gradient_as_bucket_view=True,
        # LoRA and adapter are all used in every pass; a model trained whole may have parts that are not.
        find_unused_parameters="full" in (pair.recipe.language.train, pair.recipe.vision.train),
    )


def no_gradient_sync(model: nn.Module) -> AbstractContextManager:
    """Passes inside add to the gradients of this process alone: all of a step's but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def backward(accelerator: Accelerator, model: Any, loss: Tensor, last: bool) -> None:
    """last: of this step's passes."""
    if is_deepspeed():
        model.set_gradient_accumulation_boundary(last)
        model.backward(loss, scale_wrt_gas=False)
    else:
        accelerator.backward(loss)


def group_norms(model: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The norm [] of the gradients of each of the optimizer's groups, in its order, before they are clipped."""
    if is_deepspeed():
        return deepspeed.group_norms(model)
    groups = [group["params"] for group in optimizer.param_groups]
    gradients = [[p.grad for p in group if p.grad is not None] or [group[0].new_zeros(())] for group in groups]
    return [torch.stack(torch._foreach_norm(some)).norm() for some in gradients]


def clip(accelerator: Accelerator, model: Any, trained: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The gradients' norm before it is clipped to ``limit``, 0 = not at all; DeepSpeed clips within its step."""
    if is_deepspeed():
        norm = model.optimizer.scaled_global_norm()
        return torch.where(norm < 0, torch.nan, norm)  # -1 is its word for one that is not finite
    return torch.as_tensor(accelerator.clip_grad_norm_(list(trained), limit or math.inf), device=accelerator.device)


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model.step() if is_deepspeed() else optimizer.step()


def gathered_optimizer(model: Any, optimizer: Any) -> Any:
    """The optimizer as a state keeps it. Every process must call it: under DeepSpeed each has a part."""
    return deepspeed.gathered_optimizer(model) if is_deepspeed() else optimizer
