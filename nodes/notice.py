"""What a user should know though nothing failed: one line in the log, and on the node that is running."""

from __future__ import annotations

import logging
import sys
from typing import Any

from comfy_execution.utils import get_executing_context


def notice(text: str) -> None:
    """Say ``text``, one sentence. Outside a running graph it is logged alone."""
    logging.warning("LaVi-Bridge: %s", text)
    running = get_executing_context()
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if running is not None and server is not None:
        server.send_progress_text(text, running.node_id)
