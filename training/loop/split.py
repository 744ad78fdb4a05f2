"""Which pictures a run trains on and holds out: in each of its states, so that one that goes on with others says so."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def split_of(trained_on: int, held_out: Iterable[str]) -> dict[str, Any]:
    """Plain data for a state: how many are trained on, how many held out, and a hash of the names of those."""
    names = sorted(held_out)
    return {"trained_on": trained_on, "held_out": len(names), "names": hashlib.sha256(repr(names).encode()).hexdigest()}


def tell_of_others(state: Path, step: int, split: dict[str, Any], data_print: str | None) -> None:
    """Warn where a run that goes on from ``step`` trains on or holds out others than its ``state`` tells of, or where
    those have changed."""
    facts = json.loads((state / "state.json").read_text())
    before, edited = facts.get("split"), facts.get("identity", {}).get("data.print", data_print) != data_print
    if before is None and split["held_out"]:
        log.warning(
            "up to step %d this run did not record which pictures it held out: it may have trained on some of the %d "
            "that it holds out from here on",
            *(step, split["held_out"]),
        )
    elif before is not None and before != split:
        log.warning(
            "up to step %d this run trained on %d pictures and held out %d; now it is %d and %d, and they are not the "
            "same: losses before and after are of different pictures",
            *(step, before["trained_on"], before["held_out"], split["trained_on"], split["held_out"]),
        )
    elif edited:
        log.warning(
            "captions or pictures are no longer what they were up to step %d (edited, renamed or exchanged), and are "
            "trained on as they are now",
            step,
        )
