"""One run on many processes: what the launcher decides (see ``launch/``), and how the pair is spread over them.

Trained weights are whole on every process and their gradients averaged (DDP). FSDP2 shards what is frozen and large,
layer by layer: each is gathered for the moment that it computes. LoRA and adapter are small beside it; whole, they
train, resume and leave for the bridge file as on one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from .pipeline import pick_device

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .pair import Pair

PATIENCE = timedelta(minutes=30)  # how long a process waits for the others before it fails


def make_accelerator() -> Accelerator:
    """The process group that the launcher has asked for. Precision and accumulation are the recipe's, whatever the
    launcher has put into the environment.

    Raises ValueError for settings of FSDP that the launcher has and this does not do.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

    if is_sharded():
        # FSDP 1, a model that rank 0 alone has read, and shards in the host's memory are other ways than the one here.
        for key, value, setting in (
            ("FSDP_VERSION", "2", "fsdp_version: 2"),
            ("FSDP_CPU_RAM_EFFICIENT_LOADING", "false", "fsdp_cpu_ram_efficient_loading: false"),
            ("FSDP_OFFLOAD_PARAMS", "false", "fsdp_offload_params: false"),
        ):
            if (found := os.environ.get(key)) != value:
                raise ValueError(f"the launcher has set {key} to {found}; set {setting} in its config")
    return Accelerator(
        cpu=pick_device().type == "cpu",
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def is_sharded() -> bool:
    """Whether the launcher has asked for FSDP. Every process must then run every forward pass, in the same order."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shard(accelerator: Accelerator, pair: Pair) -> None:
    """Spread the frozen weights over the processes, where the launcher has asked for it. Called before the pair moves
    to its device: layers move there one by one, so that a model larger than a GPU never lies on one whole.

    Raises ValueError for what FSDP2 cannot do here.
    """
    if not is_sharded() or accelerator.num_processes == 1:
        return
    if pair.recipe.compile:
        raise ValueError("compile does not go with FSDP2: set compile = false, or launch with ddp.yaml")
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


def outermost_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost lists of modules: a U-Net's blocks, a transformer's layers."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from outermost_layers(child)


def replicate(accelerator: Accelerator, pair: Pair) -> nn.Module:
    """The module whose forward pass trains: the pair itself, or DDP around it, which averages the gradients.

    Its trained weights become those of rank 0.
    """
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


def without_average(model: nn.Module) -> AbstractContextManager:
    """Passes inside add to the gradients of this process alone: all of a step's but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
