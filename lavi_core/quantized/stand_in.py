"""What stands in the place of a weight that is not there as numbers: its dtype, device and shape, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What may be asked of a weight without its values; "__get__" is that of dtype, device, shape and the like.
_ASKED = {"__get__", "size", "dim", "ndimension", "numel", "nelement", "element_size", "is_floating_point", "__len__"}
_ASKED |= {"detach", "requires_grad_"}  # what a parameter is made with


class StandIn(Tensor):
    """Raises ValueError for every use of the weight's values. why: where these are, and the way out. computes_on: the
    device it says it is on, to which models send their ids; None = its own."""

    why = ""
    computes_on: torch.device | None = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in _ASKED:
            raise ValueError(f"this model's class computes itself with the weight of one of its maps, which {cls.why}")
        if cls.computes_on is not None and getattr(func, "__self__", None) is Tensor.device:
            return cls.computes_on
        return super().__torch_function__(func, types, args, kwargs or {})
