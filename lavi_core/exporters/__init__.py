"""BridgeCheckpoint -> the files that other programs read."""

from .foreign import read_by, to_foreign
from .gguf_adapter import write_gguf
from .peft import to_peft
from .released import Released, to_released

__all__ = ["Released", "read_by", "to_foreign", "to_peft", "to_released", "write_gguf"]
