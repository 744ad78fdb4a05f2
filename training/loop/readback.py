"""Numbers that are read from a GPU while it goes on computing."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """Numbers on their way to the CPU; ``read`` waits for them, and not for what the GPU was given later."""

    def __init__(self, numbers: Tensor):
        self.event, self.host = None, numbers
        if numbers.is_cuda:
            self.host = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> list[float]:
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()
