"""A server of forked trainers (``ranks.py``), and what is asked of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Server:
    """with Server() as server: trainers start there within milliseconds, on one thread each."""

    def __init__(self, log: Path):
        self.log = log

    def __enter__(self) -> Server:
        command = [sys.executable, str(Path(__file__).with_name("ranks.py"))]
        with self.log.open("a") as log:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=ENVIRONMENT)
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def start(self, recipe: Path, changes: Sequence[str], world: int = 1, **line: Any) -> list[int]:
        """The ids of the processes of a run."""
        line = {"resume": False, "environment": {}, "gradients": None, "kill_after": None} | line
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**line, "recipe": str(recipe), "changes": changes, "world": world}) + "\n")
        self.process.stdin.flush()
        return self._answer()["started"]

    def wait(self) -> list[int]:
        """The exit statuses of the run that was started; one that a signal ended has its negative number."""
        return self._answer()["statuses"]

    def run(self, recipe: Path, changes: Sequence[str], world: int = 1, **line: Any) -> list[int]:
        self.start(recipe, changes, world, **line)
        return self.wait()

    def said(self) -> str:
        """The end of what the trainers have written to standard error."""
        return self.log.read_text()[-2000:]

    def _answer(self) -> dict[str, list[int]]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise RuntimeError(f"the server of trainers has died: {self.said()}")
        return json.loads(text)
