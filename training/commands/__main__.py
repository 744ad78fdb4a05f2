"""``python -m lavi_bridge.training.commands``: the same as ``lavi-bridge``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
