"""All hidden states of a language model in one pass, handed on one by one: none is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...lavi_core.language import TextEncoder, TokenBatch
from ...lavi_core.language.hidden_states import entry
from ...lavi_core.prompt import PromptRecipe, WhichStates

Take = Callable[[WhichStates, Tensor], None]
MEAN, BEFORE, LAST = "normalized_mean", "last_before_norm", "last"


def choices(encoder: TextEncoder, prompt: PromptRecipe, device: torch.device) -> list[WhichStates]:
    """Which hidden states a recipe may ask of this model for, from the ground up: the numbered ones, the last before
    the final norm where it has one, the last, the mean. Of a model whose layers give no states: the last alone."""
    try:
        encoder.check_recipe(replace(prompt, hidden_states=MEAN), padded=False)
    except ValueError:
        encoder.check_recipe(prompt, padded=False)
        return [LAST]
    ends: dict[WhichStates, Tensor] = {}
    tokens = encoder.tokenize(["a red circle"], prompt).to(device)
    hand_on(encoder, tokens, prompt, (BEFORE, LAST), ends.__setitem__)
    same = torch.allclose(ends[BEFORE].float(), ends[LAST].float(), rtol=1e-3, atol=1e-5)
    return [*range(encoder.config.num_layers), *(() if same else (BEFORE,)), LAST, MEAN]


def named(text: str, known: Collection[WhichStates], layers: int) -> list[WhichStates]:
    """The states that ``--layers`` asks for. Raises ValueError for one that the model has not."""
    if text == "all":
        return list(known)
    found: list[WhichStates] = []
    for part in (part.strip() for part in text.split(",")):
        which: WhichStates = part  # type: ignore[assignment]
        if part.lstrip("-").isdigit():
            index = entry(int(part), layers)
            which = LAST if index == layers else index
        if which not in known:
            raise ValueError(f"--layers asks for {part}, this model has {', '.join(map(str, known))}; or all")
        found.append(which)
    return found


@torch.no_grad()
def hand_on(
    encoder: TextEncoder, tokens: TokenBatch, prompt: PromptRecipe, wanted: Collection[WhichStates], take: Take
) -> None:
    """One pass, in which ``take`` is given each of the ``wanted`` states [B T D] while it is there."""
    layers, width = encoder.layers(), tokens.ids.shape[1]
    total: list[Tensor] = []

    def seen(which: WhichStates, states: Tensor) -> None:
        states = states[:, :width]
        if MEAN in wanted and which != 0:
            normed = F.layer_norm(states.float(), states.shape[-1:])
            total[:] = [normed if not total else total[0] + normed]
        if which in wanted:
            take(which, states.clone())

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            if index in wanted or MEAN in wanted:
                hooks.enter_context(_input_of(layer, lambda states, index=index: seen(index, states)))
        if BEFORE in wanted or MEAN in wanted:
            hooks.enter_context(_output_of(layers[-1], lambda states: seen(BEFORE, states)))
        last = encoder(tokens, replace(prompt, hidden_states=LAST)).states
    if LAST in wanted:
        take(LAST, last)
    if MEAN in wanted:
        take(MEAN, total[0] / len(layers))


@contextmanager
def _input_of(layer: Any, take: Callable[[Tensor], None]) -> Iterator[None]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "x"])

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _output_of(layer: Any, take: Callable[[Tensor], None]) -> Iterator[None]:
    def hook(_: Any, args: tuple[Any, ...], output: Any) -> None:
        take(output[0] if isinstance(output, tuple | list) else output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
