"""What a user should know though nothing failed: one line in the log, and on the node that is running."""

from __future__ import annotations

import logging
import sys
from typing import Any

from comfy_execution.utils import get_executing_context

# Node -> the run in which it last said something, and what. The front end keeps it until it is given another text.
_SAID: dict[str, tuple[str, list[str]]] = {}
NOTHING = " "  # the front end passes over an empty text


def notice(text: str) -> None:
    """Say ``text``, one sentence, beside what the node said in this run. Outside a running graph it is logged alone."""
    logging.warning("LaVi-Bridge: %s", text)
    repeat(text)


def repeat(text: str) -> None:
    """The same on the node alone: the log has it from an earlier run."""
    running = get_executing_context()
    if running is not None:
        run, said = _SAID.get(running.node_id, ("", []))
        said = said if run == running.prompt_id else []
        _SAID[running.node_id] = running.prompt_id, [*said, *([] if text in said else [text])]
        _show("\n".join(_SAID[running.node_id][1]), running.node_id)


def take_back() -> None:
    """Of the node that begins to run: what it said in an earlier run, which may no longer be so."""
    running = get_executing_context()
    if running is not None and _SAID.get(running.node_id, (running.prompt_id, []))[0] != running.prompt_id:
        del _SAID[running.node_id]
        _show(NOTHING, running.node_id)


def _show(text: str, node_id: str) -> None:
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_progress_text(text, node_id)
