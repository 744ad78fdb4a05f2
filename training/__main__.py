"""``accelerate launch -m lavi_bridge.training RECIPE.toml``: the trainer on many processes."""

import sys

from .commands import main_of_trainer

if __name__ == "__main__":
    sys.exit(main_of_trainer())
