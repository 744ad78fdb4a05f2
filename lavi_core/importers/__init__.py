"""Foreign checkpoints -> BridgeCheckpoint."""

from .foreign import FOREIGN, dialect_of, presets, read_foreign, read_foreign_config
from .released import read_released, released_prompt

__all__ = [
    "FOREIGN",
    "dialect_of",
    "presets",
    "read_foreign",
    "read_foreign_config",
    "read_released",
    "released_prompt",
]
