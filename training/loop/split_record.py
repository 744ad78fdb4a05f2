"""Which pictures a run trains on and holds out, in its folder, so that a resumed run with others is told of."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from ...lavi_core.files import write_text

log = logging.getLogger(__name__)


def record_split(path: Path, resumed_at: int | None, trained_on: int, held_out: Iterable[str]) -> None:
    """Write ``path`` (JSON: the number of pictures trained on, the hashes of the names held out). resumed_at: the step
    that a run goes on from, None = it begins; one with other pictures than ``path`` tells of is warned of."""
    held = sorted(hashlib.sha256(name.encode()).hexdigest()[:16] for name in held_out)
    if resumed_at is not None and path.is_file():
        before = json.loads(path.read_text())
        new = len(set(held) - set(before["held_out"]))
        if new or len(held) != len(before["held_out"]) or trained_on != before["trained_on"]:
            log.warning(
                "up to step %d this run trained on %d pictures and held out %d; now it is %d and %d, of which %d were "
                "not held out before: losses before and after are of different pictures",
                *(resumed_at, before["trained_on"], len(before["held_out"]), trained_on, len(held), new),
            )
    elif resumed_at and held:
        log.warning(
            "up to step %d this run did not record which pictures it held out: it may have trained on some of the %d "
            "that it holds out from here on",
            *(resumed_at, len(held)),
        )
    write_text(path, json.dumps({"trained_on": trained_on, "held_out": held}))
