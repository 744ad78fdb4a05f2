"""The batch of one optimiser step: a function of (seed, step) alone, the same on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipe import Recipe
from .latent_cache import LatentCache
from .order import Order
from .text_inputs import TextInput, pinned


@dataclass(frozen=True)
class MicroBatch:
    """What one process runs at a time: a part of its share of the batch. The tensors are on the CPU, pinned where a GPU
    waits for them."""

    latents: Tensor  # [b C h w] float32, as the VAE gave them
    noise: Tensor  # [b C h w]
    uniform: Tensor  # [b], in [0, 1]: where in the noise levels
    text: TextInput
    plain: tuple[str, ...] = ()  # the captions, in words that the vision model's own text encoder knows


@dataclass(frozen=True)
class Batch:
    """One optimiser step: this process's micro-batches, one a step of accumulation, and all examples' names."""

    step: int
    names: tuple[str, ...]
    micro_batches: tuple[MicroBatch, ...]


def micro_batch_size(recipe: Recipe, world: int) -> int:
    """Examples that each of ``world`` processes runs at a time. Raises ValueError where they do not come out even."""
    if recipe.batch_size % (world * recipe.accumulation):
        raise ValueError(
            f"batch_size {recipe.batch_size} does not divide into {world} processes times "
            f"accumulation = {recipe.accumulation}"
        )
    return recipe.batch_size // (world * recipe.accumulation)


class Batches:
    """Makes the batch of any step; thread-safe, so that the next can be made while one is trained on."""

    def __init__(
        self,
        recipe: Recipe,
        latents: LatentCache,
        order: Order,
        text_inputs: Callable[..., TextInput],
        world: int,
        rank: int,
        pin: bool,
    ):
        self.recipe, self.latents, self.order, self.text_inputs = recipe, latents, order, text_inputs
        self.world, self.rank, self.pin = world, rank, pin

    def __call__(self, step: int) -> Batch:
        recipe = self.recipe
        indices, epochs = self.order.batch(step)
        count, ours = len(indices), self._ours()
        read = [self.latents.batch(indices[rows], epochs[rows]) for rows in ours]
        # Drawn for the whole batch, so that any number of processes sees the same.
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        shape = (count, *read[0][0].shape[1:])
        noise = torch.randn(shape, generator=generator)
        # Stratified over the batch: every batch sees every noise level, which takes variance out of the loss.
        uniform = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        dropped = torch.rand(count, generator=generator) < recipe.caption_dropout
        if recipe.loss.offset_noise:
            noise += recipe.loss.offset_noise * torch.randn(*shape[:2], 1, 1, generator=generator)
        half_told = self._half_told(count, generator)
        micro_batches = []
        for rows, (latents, captions) in zip(ours, read, strict=True):
            kept = ["" if drop else text for drop, text in zip(dropped[rows].tolist(), captions, strict=True)]
            tensors = [latents, noise[rows], uniform[rows]]
            ears = [
                ["" if drop else text for drop, text in zip(untold[rows].tolist(), kept, strict=True)]
                for untold in half_told
            ]
            text = self.text_inputs(*ears or [kept])
            if self.pin:
                tensors, text = [t.pin_memory() for t in tensors], pinned(text)
            x0, e, u = tensors
            plain: list[str] = []
            if step < recipe.align.prediction_steps:
                examples = zip(indices[rows], epochs[rows], dropped[rows].tolist(), strict=True)
                plain = ["" if drop else self.latents.plain_caption(i, epoch) for i, epoch, drop in examples]
            micro_batches.append(MicroBatch(x0, e, u, text, tuple(plain)))
        return Batch(step, tuple(self.latents.name(i) for i in indices), tuple(micro_batches))

    def _half_told(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Which examples the language model is not told, and which the own encoder, where one is heard; [count] bool
        each."""
        section = self.recipe.own_encoder
        if not section.model:
            return []
        drawn = torch.rand(count, generator=generator)
        return [drawn >= 1 - section.language_dropout, drawn < section.dropout]

    def captions(self, start: int) -> Iterator[list[str]]:
        """What this process's micro-batches say from step ``start`` to the last of the recipe, nothing dropped; of
        pictures that have no end of captions these, of others all that they may be captioned with, once."""
        seen: set[int] = set()
        for step in range(start, self.recipe.steps):
            if len(seen) == self.order.count:
                return
            indices, epochs = self.order.batch(step)
            for rows in self._ours():
                texts = []
                for index, epoch in zip(indices[rows], epochs[rows], strict=True):
                    if index not in seen:
                        texts += self.latents.captions(index) or [self.latents.caption(index, epoch)]
                if texts:
                    yield texts
            seen.update(index for index in indices if self.latents.captions(index) is not None)

    def _ours(self) -> list[slice]:
        """Where in the global batch this process's micro-batches lie."""
        size = micro_batch_size(self.recipe, self.world)
        begins = [(index * self.world + self.rank) * size for index in range(self.recipe.accumulation)]
        return [slice(begin, begin + size) for begin in begins]
