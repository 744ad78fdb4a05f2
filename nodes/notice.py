"""What a user should know though nothing failed: one line in the log, and on the node that is running."""

from __future__ import annotations

import logging
import sys
from typing import Any

from comfy_execution.utils import get_executing_context

# Node -> the run in which it last said something, and what. The front end keeps it until it is given another text.
_SAID: dict[str, tuple[str, list[str]]] = {}
_STANDS: dict[str, str] = {}  # node -> what holds of the graph that it was last queued in, whichever of its nodes run
NOTHING = " "  # the front end passes over an empty text


def notice(text: str) -> None:
    """Say ``text``, one sentence, beside what the node said in this run. Outside a running graph it is logged alone."""
    log(text)
    repeat(text)


def log(text: str) -> None:
    logging.warning("LaVi-Bridge: %s", text)


def repeat(text: str) -> None:
    """The same on the node alone: the log has it from an earlier run."""
    running = get_executing_context()
    if running is not None:
        run, said = _SAID.get(running.node_id, ("", []))
        said = said if run == running.prompt_id else []
        _SAID[running.node_id] = running.prompt_id, [*said, *([] if text in said else [text])]
        _show(running.node_id)


def take_back() -> None:
    """Of the node that begins to run: what it said in an earlier run, which may no longer be so."""
    running = get_executing_context()
    if running is not None and _SAID.get(running.node_id, (running.prompt_id, []))[0] != running.prompt_id:
        del _SAID[running.node_id]
        _show(running.node_id)


def said() -> set[str]:
    """The nodes that said something when they last did."""
    return set(_SAID)


def forget(node_id: str) -> None:
    """Take back what a node said in an earlier run: it is to run with other inputs, and may have no more of ours."""
    del _SAID[node_id]
    _show(node_id)


def stand(text: str, node_id: str) -> None:
    """Say of a node what holds of the graph that it is queued in, or take it back with ""."""
    before = _STANDS.pop(node_id, "")
    if text:
        _STANDS[node_id] = text
        if text != before:
            log(text)
    if text or before:
        _show(node_id)


def standing() -> set[str]:
    """The nodes of which something stands."""
    return set(_STANDS)


def host_server() -> Any:
    """ComfyUI's PromptServer; None where the pack is imported without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _show(node_id: str) -> None:
    lines = [*_SAID.get(node_id, ("", []))[1], _STANDS.get(node_id, "")]
    if (server := host_server()) is not None:
        server.send_progress_text("\n".join(filter(None, lines)) or NOTHING, node_id)
