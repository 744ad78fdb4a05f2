"""Which hidden states of a language model are given on: the last, one layer's, several, or the mean of all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..prompt import WhichStates

_HIDDEN = "if gradient checkpointing is on, turn it off or update transformers; else ask for the last hidden state"


class _Reached(Exception):
    """Leaves a trunk's forward at the layer whose input was asked for."""

    def __init__(self, states: Tensor):
        self.states = states


def read_states(run: Callable[[], Any], layers: nn.ModuleList, which: WhichStates) -> Tensor:
    """The hidden states ``which`` (see ``PromptRecipe.hidden_states``) of the forward pass ``run``. -> [B T D]; of n
    layers [B T n*D], side by side: the entries of a list in its order, for "learned_mean" every layer's output.

    An entry before the last is the input of the next layer: a hook there takes it and leaves the pass, so that no
    later layer runs. Hooks live for this one pass alone.
    """
    if which == "normalized_mean":
        return _normalized_mean(run, layers)
    if which == "learned_mean":
        return torch.cat(_outputs(run, layers), dim=-1)
    if isinstance(which, tuple):
        return _side_by_side(run, layers, [entry(one, len(layers)) for one in which])
    if which == "last_before_norm":
        return _last_output(run, layers)
    index = len(layers) if which == "last" else entry(which, len(layers))
    if index == len(layers):
        return last_states(run())

    def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(_input(args, kwargs))

    hook = layers[index].register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
    return _reached_by(run, hook, index)


def last_states(output: Any) -> Tensor:
    """[B T D]. Raises ValueError for the output of a model that gives logits or embeddings of a whole text alone."""
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        raise ValueError(f"a {type(output).__name__} has no last_hidden_state; take another language model")
    return states


def entry(which: int, num_layers: int) -> int:
    """``which``, negative counted from the end, as an index into the num_layers + 1 hidden states."""
    index = which if which >= 0 else num_layers + 1 + which
    if not 0 <= index <= num_layers:
        raise ValueError(f"hidden state {which} was asked for; a model of {num_layers} layers has 0 to {num_layers}")
    return index


def depth(which: WhichStates, num_layers: int) -> int:
    """How many of the layers are run for them."""
    if isinstance(which, str):
        return num_layers
    return max(entry(one, num_layers) for one in (which if isinstance(which, tuple) else (which,)))


def _last_output(run: Callable[[], Any], layers: nn.ModuleList) -> Tensor:
    """What the last layer passes on, which transformers' own entries have in some versions alone."""

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple | list) else output)

    return _reached_by(run, layers[-1].register_forward_hook(leave), len(layers) - 1)


def _reached_by(run: Callable[[], Any], hook: RemovableHandle, layer: int) -> Tensor:
    """What the ``hook`` at a ``layer`` leaves the pass with."""
    try:
        run()
    except _Reached as reached:
        return reached.states
    finally:
        hook.remove()
    raise ValueError(f"layer {layer} was not seen to run; {_HIDDEN}")


def _side_by_side(run: Callable[[], Any], layers: nn.ModuleList, entries: list[int]) -> Tensor:
    """Several entries of one pass, which is left at the last of them. -> [B T n*D]"""
    found: dict[int, Tensor] = {}

    def take(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[index] = _input(args, kwargs).clone()  # see ``_outputs``

        return hook

    last = max(entries)
    with ExitStack() as hooks:
        for index in set(entries) - {last}:
            hooks.callback(layers[index].register_forward_pre_hook(take(index), with_kwargs=True).remove)
        found[last] = read_states(run, layers, last)
    for index in entries:
        if index not in found:
            raise ValueError(f"layer {index} was not seen to run; {_HIDDEN}")
    return torch.cat([found[index] for index in entries], dim=-1)


def _normalized_mean(run: Callable[[], Any], layers: nn.ModuleList) -> Tensor:
    """Mean of the layers' outputs, each layer-normalised without weights (arXiv 2506.08210). -> [B T D] float32"""
    return torch.stack([F.layer_norm(h.float(), h.shape[-1:]) for h in _outputs(run, layers)]).mean(0)


def _outputs(run: Callable[[], Any], layers: nn.ModuleList) -> list[Tensor]:
    """What each layer gives, before the final norm; [B T D] each."""
    outputs: list[Tensor] = []

    def take(h: Tensor) -> None:  # a copy: a layer may write over its input; and nothing that autograd keeps, since
        outputs.append(h.clone())  # a checkpointed layer is run again without these hooks (transformers before 5)

    def take_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(_input(args, kwargs))

    def take_output(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        take(output[0] if isinstance(output, tuple | list) else output)

    with ExitStack() as hooks:
        for layer in layers[1:]:  # the input of a layer is the output of the one before
            hooks.callback(layer.register_forward_pre_hook(take_input, with_kwargs=True).remove)
        hooks.callback(layers[-1].register_forward_hook(take_output).remove)
        run()
    if len(outputs) != len(layers):
        raise ValueError(f"{len(outputs)} of {len(layers)} layers were seen to run; {_HIDDEN}")
    return outputs


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "x"]
