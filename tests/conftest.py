"""Registers the checkout as the package ``lavi_bridge``, whatever the folder's name is."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

if "lavi_bridge" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "lavi_bridge", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["lavi_bridge"] = package
    spec.loader.exec_module(package)

WITH_HOST = ("nodes", "browser")  # one base folder of models and one server a host serve all of these


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of ``--dist loadgroup``: which tests share a process, for they share fixtures. Under pytest 9.2 pytest-xdist
    3.8.0 groups nothing, without a word (its issue 1386), and each process starts servers of its own."""
    for item in items:
        part = item.path.relative_to(ROOT / "tests")
        name = "host" if part.parts[0] in WITH_HOST else part.as_posix()
        item.add_marker(pytest.mark.xdist_group(name))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A reason that begins with NO tells of a program or of models that were not there for many tests."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in skipped if len(report.longrepr) == 3}
    for reason in sorted(reasons):
        if reason.startswith("NO "):
            terminalreporter.write_line(reason, red=True, bold=True)
