"""Tables that a model computes for itself, in the dtype that it computes in where it cannot run otherwise.

transformers makes them while PyTorch's default dtype is the model's. That changes it for all threads, so here they are
made in float32. Most models take them so: angles of rotary positions are to stay exact. M2M100 and XGLM add theirs to
the states, OpenAI's GPT multiplies scores by one, and their next map then meets float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def fit_tables(model: nn.Module, dtype: torch.dtype, run: Callable[[], object]) -> None:
    """Cast the tables of ``model`` (float32 buffers of two dimensions or more that no file has) to ``dtype``, if
    ``run``, a short pass, fails as they are and does not fail then."""
    tables = [
        (module, name)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set and buffer.ndim > 1 and buffer.dtype == torch.float32 != dtype
    ]
    if not tables or _runs(run):
        return
    before = [module._buffers[name] for module, name in tables]
    for module, name in tables:
        module._buffers[name] = module.get_buffer(name).to(dtype)
    if not _runs(run):  # then it fails for another reason, which is told when it is used
        for (module, name), buffer in zip(tables, before, strict=True):
            module._buffers[name] = buffer


@torch.no_grad()
def _runs(run: Callable[[], object]) -> bool:
    try:
        run()
    except Exception:  # of a mask or an operation that this PyTorch has not in that dtype, too
        return False
    return True
