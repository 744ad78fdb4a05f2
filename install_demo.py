"""Copies the demo's models into this ComfyUI, by ComfyUI's own Python; nothing has to be installed.

python custom_nodes/lavi-bridge/install_demo.py [PATH_TO_COMFYUI]
"""

import importlib
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> int:
    package = types.ModuleType("lavi_bridge")  # the pack's folder may have any name
    package.__path__ = [str(ROOT)]
    sys.modules["lavi_bridge"] = package
    asked = sys.argv[1:]
    if not any(not word.startswith("-") for word in asked):
        asked = [str(Path(__file__).absolute().parents[2]), *asked]
    return importlib.import_module("lavi_bridge.training.commands").main(["install-demo", *asked])


if __name__ == "__main__":
    sys.exit(main())
