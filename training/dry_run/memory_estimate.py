"""The memory of a training step, counted without taking it: real models on tensors that have sizes and no data.

The real models run a real forward and backward pass on tensors that have sizes and no data (torch's FakeTensorMode),
and every tensor is counted from its birth to its end. Not seen are what kernels take inside themselves, what the
allocator leaves unused between tensors, and what torch, the driver and Python take for themselves.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...lavi_core.conditioning import Conditioning
from ...lavi_core.language import TokenBatch
from ..models.attention import attention_kernel
from ..models.own_encoder import Ears
from ..models.pair import Pair
from ..models.sampling import predict_guided, sides_of
from ..models.vae import decode, encode, vae_batch_size

# Bytes that an optimizer keeps for each trained float32 value; of those in 8 bits, a scale for each block too.
MOMENTS = {"adamw": 8.0, "schedule_free": 8.0, "adamw8bit": 2 + 2 * 4 / 256, "paged_adamw8bit": 2 + 2 * 4 / 256}


class Counter(TorchDispatchMode):
    """Counts the bytes that tensors of one device hold, once each, while it is entered; weights that were there before
    are counted by ``hold``. live: now. peak: the most of them at a time. answer: what a model gets that asks for a
    number of its data, of which there is none; None = it is not answered."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.live, self.peak = device, 0, 0
        self.answer: int | None = None
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.answer is not None and func is torch.ops.aten._local_scalar_dense.default:
            return self.answer
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return out

    def hold(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.live -= size


class Step(NamedTuple):
    """Bytes. weights: of both models and the adapter. kept: what the forward pass keeps for the backward pass. peak:
    the most at a time, weights and gradients included, the optimizer's state not."""

    weights: int
    gradients: int
    kept: int
    peak: int


def training_step(pair: Pair, device: torch.device, batch: int, latents: tuple[int, int, int], tokens: int) -> Step:
    """One forward and backward pass of a pair on the meta device as if it were on ``device``.

    batch: examples that one process runs at a time. latents: [C h w]. tokens: of the longest prompt. The pair is left
    with tensors without data. Raises what the models raise for shapes that do not fit.
    """
    recipe = pair.recipe
    # Where real tokens begin is asked of the data, of which there is none, and changes no size.
    prompt = replace(recipe.prompt, padding_side="right")
    pair.recipe = replace(recipe, prompt=prompt)
    with _faked(device, pair) as count, _lengths_told(pair, count, tokens):
        pair.train()
        trained = list(pair.trained().values())
        gradients = sum(p.nbytes for p in trained)
        if recipe.accumulation > 1:
            for p in trained:
                p.grad = torch.zeros_like(p)
        weights = count.live - (gradients if recipe.accumulation > 1 else 0)
        ids = torch.zeros(batch, tokens, dtype=torch.long, device=device)
        mask = torch.ones(batch, tokens, dtype=torch.bool, device=device)
        x, target = (torch.zeros(batch, *latents, device=device) for _ in range(2))
        objective = pair.vision_model.objective
        timesteps = torch.zeros(batch, device=device, dtype=torch.float32 if objective.kind == "flow" else torch.long)
        before = count.live
        with attention_kernel(pair.network, device, latents[1] * latents[2]):
            prediction = pair(_told(pair, TokenBatch(ids, mask, None, ())), x, timesteps)
            loss = objective.loss(prediction, target).mean()
            del prediction
            kept = count.live - before
            loss.backward()
        return Step(weights, gradients, kept, count.peak)


def encoding(vae: Any, device: torch.device, resolution: int, autocast: bool) -> tuple[int, tuple[int, ...]]:
    """(peak bytes of the VAE at work on as many pictures as it gets at a time, shape of one picture's latents)."""
    with _faked(device, vae) as count:
        pixels = torch.zeros(vae_batch_size(resolution), 3, resolution, resolution, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            latents = encode(vae, pixels)
        return count.peak, tuple(latents.shape[1:])


def drawing(pair: Pair, vae: Any, device: torch.device, latents: tuple[int, int, int], tokens: int, count: int) -> int:
    """Peak bytes of drawing ``count`` pictures, guided: both models once without gradients, then the VAE's decoder."""
    with _faked(device, pair, vae) as counter, _lengths_told(pair, counter, tokens):
        pair.eval()
        ids = torch.zeros(count, tokens, dtype=torch.long, device=device)
        mask = torch.ones(count, tokens, dtype=torch.bool, device=device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=pair.recipe.precision == "bf16"):
            x = torch.zeros(count, *latents, device=device)
            positive, negative = (pair.heard(_told(pair, TokenBatch(ids, mask, None, ()))) for _ in range(2))
            both = sides_of(positive, negative, count)
            predict_guided(pair.vision_model, x, torch.zeros((), device=device), both, 2.0)
            del positive, negative, both
            decode(vae, x.float())
        return counter.peak


def _told(pair: Pair, tokens: TokenBatch) -> TokenBatch | Ears:
    """With what the own encoder says, where one is heard, and as many queries, where the adapter asks, as it can."""
    ear, (batch, _) = pair.ear, tokens.ids.shape
    if pair.queries is not None:
        tokens = tokens._replace(queries=pair.queries.widest(tokens))
    if ear is None:
        return tokens
    context = torch.zeros(batch, ear.prompt.max_length, ear.width, device=tokens.ids.device)
    mask = tokens.mask.new_ones(context.shape[:2]) if ear.prompt.vision_mask else None
    pooled = None if ear.pooled_width is None else context.new_zeros(batch, ear.pooled_width)
    return Ears(tokens, Conditioning(context, mask, pooled))


@contextmanager
def _lengths_told(pair: Pair, count: Counter, tokens: int) -> Iterator[None]:
    """Vision models that drop padding ask how long each prompt is: as long as the longest. A language model that asks
    for its data is not answered: it may ask for anything."""

    def tell(answer: int | None) -> Any:
        def hook(*_: Any) -> None:
            count.answer = answer

        return hook

    given = (pair.adapter_config.tokens or tokens) + (0 if pair.ear is None else pair.ear.prompt.max_length)
    hooks = [pair.adapter.register_forward_hook(tell(given)), pair.network.register_forward_hook(tell(None))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _faked(device: torch.device, *modules: nn.Module) -> Iterator[Counter]:
    """The modules' tensors on ``device``, without data, and all that is made of them counted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake_log = logging.getLogger("torch._subclasses.fake_tensor")
    level = fake_log.level
    fake_log.setLevel(logging.CRITICAL)  # what is raised is also logged there, as a traceback
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Counter(device) as count:
            for module in modules:
                _place(module, device)
                for tensor in (*module.parameters(), *module.buffers()):
                    count.hold(tensor)
            yield count
    finally:
        fake_log.setLevel(level)


def _place(module: nn.Module, device: torch.device) -> None:
    """Tensors of the fake mode in the place of the module's own, shared ones still shared."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, old in table.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
                    is_weight = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if is_weight else new
                table[name] = made[id(old)]  # type: ignore[assignment]


def of_device(device: torch.device) -> tuple[int, int]:
    """(bytes that the device has, bytes that are free now)"""
    if device.type == "cuda":
        free, there = torch.cuda.mem_get_info(device)
        return there, free
    import psutil

    system = psutil.virtual_memory()
    return system.total, system.available
