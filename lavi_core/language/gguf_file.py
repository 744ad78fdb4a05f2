"""A GGUF file: config, tokenizer and names by transformers' own tables, tensors as the blocks they are stored in."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..quantized.formats import FORMATS
from .folder import first_line
from .tensor_files import StoredTensor

# What transformers leaves at its default though llama.cpp knows it: a T5 with gates, the only kind that is read, is of
# version 1.1 (llama.cpp's src/models/t5.cpp: GELU where there are gates).
_GATED = {"is_gated_act": True, "dense_act_fn": "gelu_new"}
MISREAD: dict[str, dict[str, Any]] = {"t5": _GATED, "umt5": _GATED}


def is_gguf(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".gguf"


def read_gguf(path: Path) -> tuple[Any, Any]:
    """(config, tokenizer). Raises ValueError."""
    from transformers import AutoTokenizer

    return gguf_config(path), _read(path, AutoTokenizer)


def gguf_config(path: Path) -> Any:
    """Raises ValueError."""
    from transformers import AutoConfig

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
    config = _read(path, AutoConfig)
    config.update(MISREAD.get(config.model_type, {}))
    return config


def _read(path: Path, kind: Any) -> Any:
    try:
        return kind.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    except ImportError as error:
        raise ValueError(f"{path} needs the gguf package, which is not installed: pip install gguf") from error
    except Exception as error:  # a damaged file or an unknown architecture fails in many ways
        _reader(path)
        raise ValueError(f"transformers cannot read {path.name} as a GGUF model: {first_line(error)}") from error


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(str(path))
    except Exception as error:  # it trips over whatever it reads next
        raise ValueError(f"{path.name} is cut short or damaged ({first_line(error)}); fetch it again") from error


def gguf_sizes(path: Path) -> tuple[int | None, int | None]:
    """(width, size of the vocabulary) as the file's header says; None for what it does not, or a damaged one."""
    try:
        fields = _reader(path).fields
    except (ImportError, ValueError):  # said where it is loaded
        return None, None
    architecture = fields.get("general.architecture")
    width = None if architecture is None else fields.get(f"{architecture.contents()}.embedding_length")
    tokens = fields.get("tokenizer.ggml.tokens")
    return None if width is None else int(width.contents()), None if tokens is None else len(tokens.data)


def gguf_tensors(path: Path, model: Any) -> dict[str, StoredTensor]:
    """The file's tensors under their names in ``model``, a transformers model, which may be on the meta device.

    transformers' processor of the architecture is asked what it does to each: rows of blocks can be put into another
    order as they are (the query and key maps of Llama); a tensor that is changed in another way is dequantised.
    Raises ValueError for a block format that is not in the table, and for a damaged file.
    """
    from transformers import modeling_gguf_pytorch_utils as theirs

    reader = _reader(path)
    architecture = reader.fields["general.architecture"].contents()
    kind = theirs.TENSOR_PROCESSORS.get(architecture, theirs.TensorProcessor)
    processor = kind(config=model.config.to_dict())
    names = _names(theirs.get_gguf_hf_weights_map, model, processor)
    found = {}
    for tensor in reader.tensors:
        name = names.get(tensor.name)
        if name is None:
            continue
        if tensor.tensor_type.name not in FORMATS:
            raise ValueError(
                f"{path.name} has weights in {tensor.tensor_type.name} ({tensor.name}), which is not read here; take "
                f"a file in one of {', '.join(row for row in FORMATS if not row.startswith('F8'))}"
            )
        found[name] = _stored(tensor, processor)
    return found


class _Flat:
    """A model as transformers' table of names asks it, without its children: for each of these it would build the
    table anew, which takes longer than reading the file."""

    def __init__(self, model: Any):
        self.config, self.state_dict = model.config, model.state_dict

    def named_children(self) -> list[Any]:
        return []


def _names(mapping: Any, model: Any, processor: Any) -> dict[str, str]:
    """Names in the file -> names in the model."""
    more = {"processor": processor} if "processor" in inspect.signature(mapping).parameters else {}
    names = mapping(_Flat(model), **more)
    whole = set(names.values()) >= {name for name, _ in model.named_parameters()}
    return names if whole else mapping(model, **more)


def _stored(tensor: Any, processor: Any) -> StoredTensor:
    shape = tuple(int(side) for side in reversed(tensor.shape))
    row = FORMATS[tensor.tensor_type.name]
    order = _row_order(processor, tensor.name, shape[0]) if len(shape) == 2 else None
    if order is not None:
        return StoredTensor(shape, row, partial(_rows, tensor, order), partial(_some_rows, tensor, order))
    process = partial(_processed, tensor, processor)
    return StoredTensor(shape, FORMATS["F32"], process)


def _row_order(processor: Any, name: str, rows: int) -> Tensor | None:
    """Which row of the file stands at each row of the weight; None where rows do not stay what they are."""
    probe = np.stack((np.arange(rows), np.arange(rows) + rows), axis=1)
    try:
        moved = processor.process(weights=probe, name=name).weights
    except Exception:  # it reckons with the true width
        return None
    whole = moved.shape == probe.shape and bool((moved[:, 1] - moved[:, 0] == rows).all())
    return torch.from_numpy(moved[:, 0].copy()) if whole and set(moved[:, 0]) == set(range(rows)) else None


def _bytes(tensor: Any) -> Tensor:
    return torch.from_numpy(np.array(tensor.data)).view(torch.uint8)  # a copy: the file may be replaced later


def _rows(tensor: Any, order: Tensor) -> Tensor:
    blocks = _bytes(tensor)
    return blocks if torch.equal(order, torch.arange(len(order))) else blocks[order]


def _some_rows(tensor: Any, order: Tensor, rows: slice) -> Tensor:
    return torch.from_numpy(np.array(tensor.data[order[rows].numpy()])).view(torch.uint8)


def _processed(tensor: Any, processor: Any) -> Tensor:
    """As transformers changes its values, in float32."""
    values = FORMATS[tensor.tensor_type.name].dense(_bytes(tensor))
    changed = processor.process(weights=values.numpy(), name=tensor.name).weights
    return torch.from_numpy(np.array(changed, dtype=np.float32)).view(torch.uint8)
