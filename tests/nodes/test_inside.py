"""What the host's own library says of our models: numbers, patches, memory management; see ``inside.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("inside.py").read_text()
CHECKS = re.findall(r"^@check\ndef (\w+)\(", SOURCE, re.MULTILINE)


@pytest.mark.parametrize("name", CHECKS)
def test_inside(inside, name):
    assert not inside[name], inside[name]


def test_every_check_ran(inside):
    assert sorted(inside) == sorted(CHECKS)
