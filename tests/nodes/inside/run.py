"""Checks that need the host's own library: run by the host's Python, in one process, each reported by name.

python run.py HOST BASE PACK OUT     (see ``conftest.py``; OUT gets {"check": "" or the traceback} as JSON)
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
import traceback
from pathlib import Path

import host_side
import torch

for checks in sorted(Path(__file__).parent.glob("check_*.py")):
    importlib.import_module(checks.stem)

results = {}
for name, function in host_side.CHECKS.items():
    try:
        with torch.inference_mode():
            function()
        results[name] = ""
    except host_side.NotHere as reason:
        results[name] = f"NOT HERE: {reason}"
    except Exception:
        results[name] = traceback.format_exc()
Path(host_side.OUT).write_text(json.dumps(results))
