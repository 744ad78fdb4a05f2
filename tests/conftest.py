"""The checkout as the package ``lavi_bridge``, which tests share a process, and what is said in red at the end."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

import as_package  # noqa: E402, F401

WITH_HOST = ("nodes", "browser")  # one base folder of models and one server a host serve all of these


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of ``--dist loadgroup``: which tests share a process, for they share fixtures. Under pytest 9.2 pytest-xdist
    3.8.0 groups nothing, without a word (its issue 1386), and each process starts servers of its own."""
    for item in items:
        part = item.path.relative_to(TESTS)
        name = "host" if part.parts[0] in WITH_HOST else part.as_posix()
        item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_finish() -> None:
    """What the imports left behind is not looked through at each ``gc.collect()``, which takes half a second of it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A reason that begins with NO tells of a program or of models that were not there for many tests."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in skipped if len(report.longrepr) == 3}
    for reason in sorted(reasons):
        if reason.startswith("NO "):
            terminalreporter.write_line(reason, red=True, bold=True)
