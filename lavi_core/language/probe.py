"""What only a run can tell of a language model that no row knows: whether padding changes its states, and which it has.

Each answer is had once, from a pass over a few tokens, when a recipe first depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LENGTH, PADDING = 7, 9  # tokens of the probe and of the padding beside it
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-6}  # relative, of the states of real tokens
CLOSE_IN_HALF = 0.05


def probe_ids(vocabulary: int, device: torch.device) -> Tensor:
    """[1 LENGTH] token ids that are no special ones in the vocabularies there are."""
    first = min(vocabulary // 2, 1000)
    return (torch.arange(LENGTH, device=device) % max(1, vocabulary - first) + first)[None]


@torch.no_grad()
def ignores_padding(run: Callable[[Tensor, Tensor], Tensor], ids: Tensor, pad: int, left: bool) -> bool:
    """Whether ``run``, (ids [1 T], mask [1 T] bool) -> states [1 T D], gives real tokens the states that they have
    alone when padding lies on their ``left`` or right and is masked."""
    fill = torch.full((1, PADDING), pad, dtype=ids.dtype, device=ids.device)
    padded = torch.cat([fill, ids] if left else [ids, fill], dim=1)
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[:, slice(0, PADDING) if left else slice(LENGTH, None)] = False
    alone, beside = run(ids, torch.ones_like(ids, dtype=torch.bool)), run(padded, mask)
    if alone.shape[:2] != ids.shape or beside.shape[:2] != padded.shape:
        return False
    return close(beside[mask], alone[0])


def close(found: Any, expected: Tensor) -> bool:
    """Whether ``found`` is a tensor of the shape and, within what its dtype can tell, the values of ``expected``."""
    if not isinstance(found, Tensor):
        return False
    found, wanted = found.float(), expected.float()
    limit = CLOSE.get(expected.dtype, CLOSE_IN_HALF)
    return found.shape == wanted.shape and bool((found - wanted).norm() <= limit * wanted.norm().clamp(min=1e-12))


@contextmanager
def _hooks_kept(model: nn.Module) -> Iterator[None]:
    """transformers 5 leaves hooks on every layer once hidden states were asked for; here they go again. In place: who
    has registered a hook removes it from the very dictionary it was put into."""
    before = [(module, set(module._forward_hooks)) for module in model.modules()]
    flags = [(module, name) for module in model.modules() for name in vars(module) if name.endswith("hooks_installed")]
    try:
        yield
    finally:
        for module, hooks in before:
            for key in module._forward_hooks.keys() - hooks:
                del module._forward_hooks[key]
        for module in model.modules():
            for name in [n for n in vars(module) if n.endswith("hooks_installed") and (module, n) not in flags]:
                delattr(module, name)


@torch.no_grad()
def entries_agree(model: nn.Module, read: Callable[[int], Tensor], ids: Tensor, count: int) -> str | None:
    """None where ``read(k)``, k from 0 to ``count`` - 1, is the k-th of transformers' own hidden states; else why not.

    The last one is not compared: a recipe's is last_hidden_state, transformers' is that or what was before the final
    norm or projection.
    """
    own = _own_entries(model, ids)
    if own is None:
        return "transformers gives none"
    if len(own) != count + 1:
        return f"transformers gives {len(own)} of {count} layers"
    for index in range(count):
        if not close(read(index), own[index]):
            return f"entry {index} is not what its layers pass on"
    return None


@torch.no_grad()
def outputs_agree(model: nn.Module, layers: nn.ModuleList, ids: Tensor) -> str | None:
    """None where what each of ``layers`` gives, but the last, is the next of transformers' own hidden states; else why
    not: a list of parts of layers (XLM's attentions) has the right inputs and other outputs."""
    given: list[Any] = []

    def take(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        given.append(first.clone() if isinstance(first, Tensor) else first)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(take).remove)
        own = _own_entries(model, ids) or ()
    if len(given) != len(layers):
        return f"{len(given)} of {len(layers)} layers were seen to run"
    for index, (output, entry) in enumerate(zip(given[:-1], own[1:], strict=False)):
        if not close(output, entry):
            return f"what layer {index} gives is not entry {index + 1}"
    return None


def _own_entries(model: nn.Module, ids: Tensor) -> tuple[Tensor, ...] | None:
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with _hooks_kept(model):
        return getattr(model(**inputs, output_hidden_states=True), "hidden_states", None)
