"""Foreign checkpoints -> BridgeCheckpoint."""

from .released import read_released, released_prompt

__all__ = ["read_released", "released_prompt"]
