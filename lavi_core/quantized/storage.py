"""How the weights of a language model are kept in memory: dense, as the file has them, in 8 or 4 bits."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..registry import Registry
from .formats import FORMATS, PLAIN, BlockFormat
from .modules import put_blocks, takes_blocks
from .unpacking import may_unpack, packed, unpack_when_run

log = logging.getLogger(__name__)

PIECE = 2**21  # values quantised in one go
TOLD = 0.01  # a share of the matrices that is worth a word
SMALL = 2**10  # an embedding of fewer rows is a table of positions or distances


@dataclass(frozen=True)
class Storage:
    """keep: quantised weights stay as the file has them; otherwise they are dequantised when they are read.

    linear, embedding: the block format that the weights of linear maps, and of the table of tokens, are quantised to
    where the file has them in float32, float16 or bfloat16; "" = not at all.
    """

    keep: bool
    linear: str = ""
    embedding: str = ""

    def row(self, stored: BlockFormat, shape: tuple[int, ...], modules: list[nn.Module]) -> BlockFormat | None:
        """The format in which a tensor of the file is to lie; None = as plain numbers. modules: those that share it."""
        if len(shape) != 2 or not all(takes_blocks(module) for module in modules):
            return None
        if not _is_plain(stored):
            return stored if self.keep else None
        name = self.embedding if isinstance(modules[0], nn.Embedding) else self.linear
        if not name or shape[1] % FORMATS[name].values or (isinstance(modules[0], nn.Embedding) and shape[0] < SMALL):
            return None
        return FORMATS[name]


STORAGES = Registry(
    "storage of weights",
    {
        "dense": Storage(keep=False),
        "stored": Storage(keep=True),
        "8-bit": Storage(keep=True, linear="Q8_0", embedding="Q8_0"),
        "4-bit": Storage(keep=True, linear="Q4_1", embedding="Q8_0"),
    },
)


def _is_plain(row: BlockFormat) -> bool:
    return row in PLAIN.values() and row.bytes > 1


def quantize(values: Tensor, row: BlockFormat) -> Tensor:
    """[rows columns] -> blocks [rows bytes] uint8, by the gguf package. Raises ValueError where that is missing."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise ValueError(
            "8-bit and 4-bit need the gguf package, which is not installed: pip install gguf, or take bf16"
        ) from error

    kind = GGMLQuantizationType[row.name]
    out = torch.empty(len(values), row.row_bytes(values.shape[1]), dtype=torch.uint8)
    step = max(1, PIECE // values.shape[1])
    for first in range(0, len(values), step):
        piece = values[first : first + step].float().cpu().numpy()
        out[first : first + step] = torch.from_numpy(quants.quantize(piece, kind))
    return out


def requantize(model: nn.Module, storage: Storage) -> None:
    """The same for a model that is in memory, module by module; what is no plain map of rows, the experts of a mixture
    say, is dequantised while it runs. A weight that several share is left as it is."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for module in list(model.modules()):
        for name, weight in list(module._parameters.items()):
            stored = None if weight is None else PLAIN.get(weight.dtype)
            if weight is None or stored is None or owners[id(weight)] > 1:
                continue
            if name == "weight" and takes_blocks(module):
                row = storage.row(stored, tuple(weight.shape), [module])
                if row is not None:
                    put_blocks(module, quantize(weight.detach(), row), row, weight.dtype)
            elif storage.linear and _is_plain(stored) and may_unpack(module, name, weight):
                row, columns = FORMATS[storage.linear], weight.shape[-1]
                if columns % row.values == 0:
                    blocks = quantize(weight.detach().reshape(-1, columns), row)
                    unpack_when_run(module, name, blocks.reshape(*weight.shape[:-1], -1), row, weight.dtype)


def tell_remains(model: nn.Module, weights: str, name: str) -> None:
    """Log which share of the matrices of a model that was to be quantised is not. weights: the row of STORAGES that was
    asked for. Raises ValueError where none is quantised."""
    held = sum(torch.Size(part.shape).numel() for _, part in packed(model))
    left: Counter[str] = Counter()
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and parameter.ndim > 1 and id(parameter) not in seen:
                seen.add(id(parameter))
                left[type(module).__name__] += parameter.numel()
    share = left.total() / max(1, held + left.total())
    kinds = ", ".join(kind for kind, _ in left.most_common(3))
    why = f"rows of no whole blocks of {FORMATS[STORAGES[weights].linear].values}, small tables, or no known maps"
    if not held and left:
        raise ValueError(f"nothing of {name} can be kept in {weights} ({kinds}: {why}); load it as it is stored")
    if share >= TOLD:
        log.warning("%.0f %% of the matrices of %s are not kept in %s (%s: %s)", 100 * share, name, weights, kinds, why)
