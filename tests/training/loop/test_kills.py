"""A trainer that is killed at random moments and resumed ends as one that was never killed, to the bit.

``tests/benchmarks/kills.py --kills 100`` is the same with more of them.
"""

from __future__ import annotations

from pathlib import Path

from lavi_bridge.tests.benchmarks.kills import kill_and_resume
from lavi_bridge.tests.training.forks import Server


def test_a_run_killed_at_random_moments_ends_as_one_that_never_was(
    server: Server, recipe: Path, tmp_path: Path
) -> None:
    where = kill_and_resume(server, tmp_path, recipe, kills=6, seed=1, steps=12)
    assert where.pop("runs") >= 1 and where.total() == 6
