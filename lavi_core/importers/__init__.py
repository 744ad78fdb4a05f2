"""Foreign checkpoints -> BridgeCheckpoint."""

from .any_file import is_ours, read_any, read_any_config
from .foreign import FOREIGN, dialect_of, presets, read_foreign, read_foreign_config
from .released import read_released, released_prompt

__all__ = [
    "FOREIGN",
    "dialect_of",
    "is_ours",
    "presets",
    "read_any",
    "read_any_config",
    "read_foreign",
    "read_foreign_config",
    "read_released",
    "released_prompt",
]
