"""Validation on held-out examples, always with the same noise: the loss by noise level and by caption, the context."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...lavi_core.conditioning import Heard, HiddenStates, TimedConditioning
from ..data import LatentCache
from ..data.text_inputs import TextInputs, to_device
from ..models.own_encoder import Ears
from ..models.pair import Pair
from ..models.progress import bar
from ..recipe import Recipe
from .context_measures import ContextMeasure, Contexts

log = logging.getLogger(__name__)

FAR = 10.0  # times: so much larger or smaller than the own encoder's is far from it


def none_held_out(recipe: Recipe) -> ValueError:
    return ValueError(
        f"validation.every is {recipe.validation.every}, but no example is held out: set data.validation to their "
        "number, or validation.every = 0"
    )


class Validation:
    """Every process computes the whole of it, so that the number is the same on any count of them.

    own: the measure of the vision model's own text encoder, to be told beside the bridge's.
    """

    def __init__(
        self,
        recipe: Recipe,
        pair: Pair,
        latents: LatentCache,
        indices: Sequence[int],
        text_inputs: TextInputs,
        own: ContextMeasure | None = None,
    ):
        if not indices:
            raise none_held_out(recipe)
        self.recipe, self.pair, self.latents, self.text_inputs = recipe, pair, latents, text_inputs
        self.indices, self.own = list(indices), own
        captions = [latents.caption(index, 0) for index in self.indices]
        kinds = {"right": captions}
        if recipe.validation.text:
            kinds |= {"shuffled": shuffled(captions, recipe.seed), "empty": [""] * len(captions)}
        if recipe.validation.text and not kinds["shuffled"]:
            log.warning("most validation captions are one text: there is no loss with shuffled ones")
        self._texts = {kind: dict(zip(self.indices, texts, strict=True)) for kind, texts in kinds.items() if texts}

    def captions(self) -> list[str]:
        """All that it will ever ask the language model for, beside ""."""
        return list(self._texts["right"].values())

    @torch.no_grad()
    def run(self, device: torch.device) -> dict[str, Any]:
        """With the pair in eval mode. -> {"validation": {"loss": mean, "bins": [mean of each part of the noise
        levels]}}; where ``validation.text`` asks for it also "caption_loss": {"right", "shuffled", "empty"}, the means
        with these captions, and "context": {"bridge", "own"}, each a ``ContextMeasure``.

        A loss is the plain mean squared error, whatever weighting the recipe trains with.
        """
        settings, vision = self.recipe.validation, self.pair.vision_model
        totals = {kind: torch.zeros(settings.bins, dtype=torch.float64) for kind in self._texts}
        contexts, count = Contexts(), settings.batch_size
        alike = (bucket.tolist() for bucket in self.latents.buckets(torch.tensor(self.indices)))
        batches = [bucket[i : i + count] for bucket in alike for i in range(0, len(bucket), count)]
        for indices in bar(batches, desc="validation", leave=False):
            latents, _ = self.latents.batch(indices, [0] * len(indices))
            x0 = vision.latents.seen(latents.to(device))
            heard: dict[str, Heard] = {}
            for kind, texts in self._texts.items():
                ears = self._hear([texts[index] for index in indices], device)
                heard[kind] = self.pair.heard(ears)
                if settings.text and kind == "right":
                    self._measure(contexts, ears)
            for part in range(settings.bins):
                noise = torch.stack([self._noise(index, part, latents.shape[1:]) for index in indices]).to(device)
                level = torch.full((len(indices),), (part + 0.5) / settings.bins, device=device)
                timesteps = vision.timesteps(level, x0)
                x, target = vision.objective.corrupt(x0, noise, timesteps)
                for kind, made in heard.items():
                    conditioning = made.at(timesteps) if isinstance(made, TimedConditioning) else made
                    prediction = self.pair.predict(x, timesteps, conditioning)
                    totals[kind][part] += vision.objective.loss(prediction, target).cpu().double().sum()
        means = {kind: total / len(self.indices) for kind, total in totals.items()}
        losses = {kind: float(mean.mean()) for kind, mean in means.items()}
        found: dict[str, Any] = {
            "validation": {"loss": losses["right"], "bins": [round(value, 6) for value in means["right"].tolist()]}
        }
        if settings.text:
            empty = Contexts()
            self._measure(empty, self._hear([""], device))
            measures = {"bridge": contexts.measure(empty), "own": self.own}
            found["caption_loss"] = losses
            found["context"] = {name: one.plain() for name, one in measures.items() if one is not None}
        return found

    def _hear(self, captions: Sequence[str], device: torch.device) -> HiddenStates | Ears:
        hidden, own = self.pair.hear(to_device(self.text_inputs(captions), device))
        return hidden if own is None else Ears(hidden, own)

    def _measure(self, contexts: Contexts, ears: HiddenStates | Ears) -> None:
        """Add what real tokens of the bridge say, of an adapter that hears the timestep in the middle of the noise
        levels."""
        hidden, _ = self.pair.hear(ears)
        middle = self.pair.timesteps(torch.full((1,), 0.5)) if self.pair.adapter.hears_timestep else None
        made = self.pair.alone(hidden, middle)
        mask = hidden.mask
        if self.pair.adapter.own_tokens:
            mask = torch.ones(made.context.shape[:2]).bool() if made.mask is None else made.mask
        contexts.add(made.context, mask)

    def _noise(self, index: int, part: int, shape: torch.Size) -> Tensor:
        seed = (self.recipe.seed * 1_000_003 + index) * 4096 + part
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shuffled(captions: Sequence[str], seed: int) -> list[str]:
    """Each caption once, every one in the place of another text; none where that cannot be, since more than half of
    them are one text."""
    count, most = len(captions), max(Counter(captions).values())
    if 2 * most > count:
        return []
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    group = {text: number for number, text in enumerate(dict.fromkeys(captions[i] for i in order))}
    order.sort(key=lambda i: group[captions[i]])  # those that are alike stand together: ``most`` farther is another
    found = list(captions)
    for place, i in enumerate(order):
        found[i] = captions[order[(place + most) % count]]
    return found


def in_words(found: Mapping[str, Any]) -> str:
    """What ``Validation.run`` found, as a line of the log."""
    line = f"validation loss {found['validation']['loss']:.4f}"
    if "caption_loss" not in found:
        return line
    losses = found["caption_loss"]
    more = [f"{losses[kind] - losses['right']:+.4f} {kind}" for kind in ("shuffled", "empty") if kind in losses]
    bridge, own = found["context"]["bridge"], found["context"].get("own", {})
    names = {"size": "size", "spread": "spread", "empty_size": '"" size', "empty_distance": '"" distance'}
    parts = [f"{name} {bridge[key]:.3g}" + (f" (own {own[key]:.3g})" if own else "") for key, name in names.items()]
    told = [f"{line} with the right captions, {', '.join(more)}", f"context: {', '.join(parts)}", *_judged(bridge, own)]
    return "; ".join(told)


def _judged(bridge: Mapping[str, float], own: Mapping[str, float]) -> list[str]:
    """What is wrong with a context, by the own encoder's, where there is one."""
    found = []
    if own and not own["size"] / FAR < bridge["size"] < own["size"] * FAR:
        found.append(
            f"the context has {bridge['size'] / own['size']:.2g} times the size of the own encoder's, which the vision "
            "model can hardly use: look at adapter.learning_rate, or align first"
        )
    if own and bridge["spread"] < own["spread"] / FAR:
        found.append("all captions sound nearly alike")
    return found
