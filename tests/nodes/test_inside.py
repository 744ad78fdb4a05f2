"""What the host's own library says of our models: numbers, patches, memory management; see ``inside/``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parent / "inside").glob("check_*.py"))
CHECKS = [name for path in SOURCES for name in re.findall(r"^@check\ndef (\w+)\(", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("name", CHECKS)
def test_inside(inside, name):
    if inside[name].startswith("NOT HERE"):
        pytest.skip(inside[name])
    assert not inside[name], inside[name]


def test_every_check_ran(inside):
    assert sorted(inside) == sorted(CHECKS)
