"""Progress is seen where the output is no terminal: lines of their own, the first after ten seconds."""

from __future__ import annotations

import io
import logging
import time

from lavi_bridge.training.models import progress


def test_lines_of_their_own_and_none_where_it_is_over_soon(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    out = io.StringIO()
    with progress.Lines(total=6, desc="drawing", unit="picture", file=out) as bar:
        for _ in range(3):
            time.sleep(0.06)
            bar.update(2)
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 4 and all(line.startswith("drawing: ") for line in lines), lines
    assert "6/6" in lines[-1] and "6/6" not in lines[-2]

    monkeypatch.setattr(progress, "SECONDS", 10.0)
    out = io.StringIO()
    assert list(progress.Lines(range(3), file=out)) == [0, 1, 2]
    assert out.getvalue() == ""


def test_work_that_cannot_say_how_far_it_is_says_how_long(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    with caplog.at_level(logging.INFO), progress.told("fetching"):
        time.sleep(0.13)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "fetching" and 2 <= len(said) <= 3 and said[1].startswith("fetching: "), said
