"""Registers a checkout as the package ``lavi_bridge``, whatever the folder's name is: this one, or the one that the
environment names (a benchmark times another build so).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

CHECKOUT = "LAVI_BRIDGE_CHECKOUT"
ROOT = Path(os.environ.get(CHECKOUT) or Path(__file__).parents[1]).resolve()

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
