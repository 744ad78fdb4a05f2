"""Models that are not made for text alone: what they lack, and what is raised inside them, told in one sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_LIBRARIES = ("torch", "transformers")


def check_reads_text(model: nn.Module, config: Any, taken: Collection[str], model_id: str) -> None:
    """Raise ValueError for a model of pictures or sounds: transformers loads those as willingly."""
    kind = type(model).__name__
    if "input_ids" not in taken:
        raise ValueError(
            f"{model_id} ({kind}) takes {', '.join(sorted(taken)[:3])}, not input_ids; take a language model"
        )
    if getattr(config, "model_type", None) == "mra":  # transformers 5.24: zeros_like(query) where the kernel is not
        raise ValueError(
            f"{model_id} ({kind}) attends by a kernel that transformers fetches from the network, and without it to "
            "nothing; take another language model"
        )
    for name in ("hidden_size", "vocab_size"):
        if not isinstance(getattr(config, name, None), int):
            raise ValueError(f"{model_id} ({kind}) has no {name} in its config; take another language model")


@contextmanager
def told_plainly(model_id: str, dtype: torch.dtype) -> Iterator[None]:
    """Raise ValueError, with the reason and the way out, for an error of a library inside.

    One of this pack, of a host, of the device or of memory goes on as it is.
    """
    try:
        yield
    except _ERRORS as error:
        words = " ".join(str(error).split())
        of_device = isinstance(error, RuntimeError) and type(error) not in _ERRORS
        if not _is_foreign(error) or of_device or "allocate memory" in words:
            raise
        reason = f"{type(error).__name__}: {words[:160].rstrip()}{'...' if len(words) > 160 else ''}"
        if dtype.itemsize < 4:
            raise ValueError(
                f"{model_id} does not run on token ids in {str(dtype).removeprefix('torch.')} ({reason}); load it in "
                "float32, or take another language model"
            ) from error
        raise ValueError(
            f"{model_id} does not run on token ids alone ({reason}); take another language model"
        ) from error


def _is_foreign(error: BaseException) -> bool:
    """Whether it was raised in a module of a library: the innermost frame tells."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _LIBRARIES
