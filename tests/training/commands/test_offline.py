"""Every command runs with the hub's client switched off, before anything imports that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ASKS = """
import argparse, os, sys
import as_package
from lavi_bridge.training import commands

del os.environ["HF_HUB_OFFLINE"]  # which as_package sets for the tests

def run(args):
    assert "huggingface_hub" not in sys.modules
    import peft  # is enough for bitsandbytes to look for a kernel
    from huggingface_hub import constants
    print("offline", constants.HF_HUB_OFFLINE)

commands.execute(argparse.Namespace(run=run))
"""


def test_no_command_asks_a_hub() -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", ASKS], env=env, capture_output=True, text=True, check=False)
    assert "offline True" in done.stdout, done.stdout + done.stderr
