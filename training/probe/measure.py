"""How much of its targets a linear map hears in a language model's states, layer by layer, on captions not solved on.

Every token's states are layer-normalised, as the mlp does first, and scaled to length 1; a word's are the mean of its
tokens'. The map is ridge regression in closed form. Its penalty stands for the length of a training: gradient descent
learns directions of large variance first, and after few steps is what ridge is with a large penalty (Ali et al., "A
continuous-time view of early stopping for least squares", arXiv 1810.10082). The penalty is not a share of each
feature's variance, as that of ``closed_form.ridge``: that would give back what a few steps do not reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...lavi_core.language import TextEncoder
from ...lavi_core.prompt import PromptRecipe, WhichStates
from ..loop.closed_form import Moments
from ..models import progress
from .captions import Split, Text, normal
from .states import choices, hand_on, named
from .targets import Targets, check_offsets, pooling

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # of a direction: the share of a token's energy that is learnt half
SOON, LATE = 1e-2, 1e-4
TEST, UNSEEN, TOLD = "test", "unseen", "told"
MOST_BYTES = 2**32  # of sums and maps that are held at a time; the other layers of a large model have further passes
SAMPLES = 1000


@dataclass(frozen=True)
class Share:
    """Of the targets' variance, what the map hears: by caption, so that intervals and differences can be drawn. error,
    variance: [captions]; of TOLD the words that were taken for others, and all of them."""

    error: np.ndarray
    variance: np.ndarray

    @property
    def value(self) -> float:
        return float(1 - self.error.sum() / self.variance.sum())

    def drawn(self, seed: int = 0) -> np.ndarray:
        """[SAMPLES], captions drawn again: with one seed the same ones for all shares of the same captions."""
        times = _times(len(self.error), seed)
        return 1 - (times @ self.error) / np.maximum(times @ self.variance, 1e-12)


@cache
def _times(count: int, seed: int) -> np.ndarray:
    """[SAMPLES count]: how often each is drawn."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), SAMPLES).astype(float)


Key = tuple[str, str, float]  # TEST, UNSEEN, or TOLD of the unseen; a part of the targets; a penalty


@dataclass(frozen=True)
class Probed:
    """One language model: hidden states -> what is heard in them."""

    name: str
    layers: int
    width: int
    shares: Mapping[WhichStates, Mapping[Key, Share]]
    seconds: float


class Map(NamedTuple):
    """x -> y + (x - mean) @ weight. penalties are the weights' own."""

    mean: Tensor  # [F]
    weights: Tensor  # [len(PENALTIES) F C]
    y: Tensor  # [C]


def solve(moments: Moments) -> Map:
    """Ridge regression with an intercept for each of ``PENALTIES``, which are in units of the features' squares."""
    mean, y, xx, xy = moments.centred()
    eye = torch.eye(len(mean), dtype=xx.dtype, device=xx.device)
    maps = [torch.linalg.solve(xx + penalty * moments.count * eye, xy).float() for penalty in PENALTIES]
    return Map(mean.float(), torch.stack(maps), y.float())


def measure(
    name: str,
    encoder: TextEncoder,
    split: Split,
    targets: Targets,
    layers: str = "all",
    max_length: int = 77,
    batch: int = 32,
    most_bytes: int = MOST_BYTES,
) -> Probed:
    """Every hidden state of the encoder that ``layers`` names: "all", or some as of a recipe with commas between."""
    start, device = time.perf_counter(), encoder.computes_on
    check_offsets(encoder.tokenizer, name)
    prompt = PromptRecipe(max_length=min(max_length, encoder.positions or max_length))
    if encoder.ignores_padding("right"):
        prompt = replace(prompt, padding="longest")
    wanted = named(layers, choices(encoder, prompt, device), encoder.config.num_layers)
    width = encoder.config.hidden_size
    of_one = width * (8 * width + (8 + 4 * len(PENALTIES)) * targets.width)
    held = max(1, most_bytes // of_one)
    shares: dict[WhichStates, Mapping[Key, Share]] = {}
    for group in (wanted[i : i + held] for i in range(0, len(wanted), held)):
        run = partial(_run, encoder, split, targets, prompt, batch, group)
        moments = {which: Moments() for which in group}
        run(
            split.fit, f"{name}, summing", lambda which, x, rows, of=moments: of[which].add(x, rows.target.to(x.device))
        )
        for which, of in moments.items():
            if not all(bool(sums.isfinite().all()) for sums in of.sums):
                raise ValueError(
                    f"the hidden states {which!r} of {name} are not finite in {encoder.dtype}; take a wider --precision"
                )
        errors = _Errors(targets, {which: solve(moments.pop(which)) for which in group})
        for kind, texts in ((TEST, split.test), (UNSEEN, split.unseen)):
            run(texts, f"{name}, {kind}", partial(errors.add, kind, len(texts)))
        shares |= {which: errors.shares(which) for which in group}
    return Probed(name, encoder.config.num_layers, width, shares, time.perf_counter() - start)


class _Rows(NamedTuple):
    """The words of some captions. pooling: of their tokens; asked: those that model and teacher both have read."""

    pooling: Tensor  # [B W T]
    asked: Tensor  # [B W] bool
    target: Tensor  # [R C], of those asked
    caption: Tensor  # [R] long, its index
    new: Tensor  # [R] bool: no caption that is solved on has the word
    meant: Mapping[str, Tensor]  # part of the targets -> [R] long, the row of its meanings


def _run(
    encoder: TextEncoder,
    split: Split,
    targets: Targets,
    prompt: PromptRecipe,
    batch: int,
    group: Sequence[WhichStates],
    texts: Sequence[Text],
    told: str,
    take: Callable[[WhichStates, Tensor, _Rows], None],
) -> None:
    """One pass over ``texts``: ``take`` is given of each state the words' features [R F]."""
    sums_on = encoder.computes_on if encoder.computes_on.type == "cuda" else torch.device("cpu")  # where float64 is
    for start in progress.bar(range(0, len(texts), batch), desc=told, leave=False):
        part = texts[start : start + batch]
        tokens = encoder.tokenize([text.said for text in part], prompt)
        rows = _rows(encoder, split, targets, part, start, tokens.ids.shape[1])
        if not rows.asked.any():
            continue

        def pooled(which: WhichStates, states: Tensor, rows: _Rows = rows) -> None:
            features = F.layer_norm(states.float(), states.shape[-1:]).to(sums_on) / states.shape[-1] ** 0.5
            take(which, (rows.pooling.to(sums_on) @ features)[rows.asked.to(sums_on)], rows)

        hand_on(encoder, tokens.to(encoder.computes_on), prompt, group, pooled)


def _rows(
    encoder: TextEncoder, split: Split, targets: Targets, texts: Sequence[Text], first: int, length: int
) -> _Rows:
    each = [pooling(encoder.tokenizer, text.said, length) for text in texts]
    wanted = [targets(text) for text in texts]
    longest = max(map(len, each))
    weights = torch.zeros(len(texts), longest, length)
    asked = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, (own, target) in enumerate(zip(each, wanted, strict=True)):
        good = own.isfinite().all(1) & target.isfinite().all(1)
        weights[row, : len(own)], asked[row, : len(own)] = own.nan_to_num(), good
    new = [[normal(word) not in split.known for word in text.said.split()] for text in texts]
    kept = [asked[row, : len(target)] for row, target in enumerate(wanted)]
    meant = {part: [targets.meant(part, text) for text in texts] for part in targets.meanings}
    return _Rows(
        weights,
        asked,
        torch.cat([target[good] for target, good in zip(wanted, kept, strict=True)]),
        asked.nonzero()[:, 0] + first,
        torch.cat([torch.tensor(words)[good] for words, good in zip(new, kept, strict=True)]),
        {part: torch.cat([of[good] for of, good in zip(each, kept, strict=True)]) for part, each in meant.items()},
    )


class _Errors:
    """Of every state's maps, summed by caption."""

    def __init__(self, targets: Targets, maps: Mapping[WhichStates, Map]):
        self.parts, self.meanings, self.maps = targets.parts, targets.meanings, maps
        self.sums: dict[tuple[WhichStates, Key], Tensor] = {}  # [2 captions]: error, variance

    def add(self, kind: str, captions: int, which: WhichStates, x: Tensor, rows: _Rows) -> None:
        found, target = self.maps[which], rows.target.to(x.device)
        count = rows.new if kind == UNSEEN else torch.ones_like(rows.new)
        centred = x - found.mean
        spread = (target - found.y).square()

        def summed(key: Key, error: Tensor, of: Tensor, counted: Tensor) -> None:
            both = torch.stack([error, of]).double().cpu()
            sums = self.sums.setdefault((which, key), torch.zeros(2, captions).double())
            sums.index_add_(1, rows.caption, both * counted)

        for penalty, weight in zip(PENALTIES, found.weights, strict=True):
            heard = centred @ weight
            error = (found.y + heard - target).square()
            for part, channels in self.parts.items():
                summed((kind, part, penalty), error[:, channels].sum(1), spread[:, channels].sum(1), count)
            if kind != UNSEEN:
                continue
            for part, meanings in self.meanings.items():
                channels, meant = self.parts[part], rows.meant[part]
                away = F.normalize(meanings.rows.to(x.device) - found.y[channels], dim=1)
                wrong = (heard[:, channels] @ away.T).argmax(1).cpu() != meant
                summed((TOLD, part, penalty), wrong, torch.ones_like(wrong), count & (meant >= 0))

    def shares(self, which: WhichStates) -> dict[Key, Share]:
        found = {key: sums.numpy() for (state, key), sums in self.sums.items() if state == which}
        return {key: Share(*sums) for key, sums in found.items() if sums[1].any()}
