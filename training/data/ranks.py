"""Work on a data set that is shared among the processes of a distributed run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(days=30)  # the usual 10 minutes are over before one process has encoded more than another


class Ranks:
    """This process among those of ``accelerator``; None = it is alone."""

    def __init__(self, accelerator: Accelerator | None):
        self.rank = accelerator.process_index if accelerator else 0
        self.world = accelerator.num_processes if accelerator else 1
        self.main = self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """No process leaves before the last one has come to the end. An error in one is raised in all of them."""
        if self.world == 1:
            yield
            return
        import torch.distributed as dist

        group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        found: list[str | None] = [None] * self.world
        dist.all_gather_object(found, None if problem is None else str(problem), group=group)
        dist.destroy_process_group(group)
        if problem is not None:
            raise problem
        if others := [text for text in found if text is not None]:
            raise ValueError(others[0])

    def seen(self, paths: Sequence[Path]) -> Sequence[Path]:
        """``paths``. Raises ValueError where one that another process wrote is not seen from here."""
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"process {self.rank} does not see {missing[0]}, which another of {self.world} wrote; put "
                "data.cache in a folder that all machines share"
            )
        return paths
