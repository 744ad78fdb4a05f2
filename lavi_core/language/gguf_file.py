"""A GGUF file: tokenizer and names by the tables of transformers and llama.cpp, tensors as the blocks they are in."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..quantized.formats import FORMATS, PLAIN
from .folder import first_line
from .gguf_keys import config_of
from .gguf_rotation import FREQUENCIES, LONG, SHORT, factors
from .gguf_special import put_characters, put_ends, put_space
from .tensor_files import StoredTensor

# Tensors that no hidden state depends on: heads, a decoder, what belongs to pictures.
ELSEWHERE = ("output.", "dec.", "cls.", "v.", "mm.")
MANY = 1000  # entries of a list: more than layers, fewer than words
READ = (FREQUENCIES, SHORT, LONG)  # with the config
DTYPES = {PLAIN[dtype].name: dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def is_gguf(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".gguf"


def read_gguf(path: Path) -> tuple[Any, Any]:
    """(config, tokenizer). Raises ValueError."""
    reader = _opened(path)
    config = _config(path, reader)
    tokenizer = _tokenizer(path, config.model_type)
    put_ends(tokenizer, reader.fields, path.name)
    put_space(tokenizer, reader.fields)
    put_characters(tokenizer, reader.fields, path.name)
    return config, tokenizer


def has_no_tokenizer(path: Path) -> bool:
    """Of a GGUF file. Raises ValueError for a damaged one."""
    return "tokenizer.ggml.tokens" not in _opened(path).fields


def gguf_config(path: Path) -> Any:
    """Raises ValueError."""
    return _config(path, _opened(path))


def gguf_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """name -> shape of the tensors of any GGUF file, from its header. Raises ValueError."""
    return {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in _opened(path).tensors}


def gguf_plain(path: Path, wanted: Collection[str] | None = None) -> dict[str, Tensor]:
    """Tensors of any GGUF file, in the dtype that they have there. wanted: read no others; None = all. Raises
    ValueError for one that was quantised."""
    found = {tensor.name: tensor for tensor in _opened(path).tensors if wanted is None or tensor.name in wanted}
    odd = next((tensor for tensor in found.values() if tensor.tensor_type.name not in DTYPES), None)
    if odd is not None:
        raise ValueError(
            f"{path.name} has weights in {odd.tensor_type.name} ({odd.name}), an adapter is read from one that was not "
            f"quantised: take a file in {' or '.join(DTYPES)}"
        )
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in found.items()}
    return {name: _bytes(t).view(DTYPES[t.tensor_type.name]).reshape(shapes[name]) for name, t in found.items()}


def _opened(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
    return _reader(path)


def _config(path: Path, reader: Any) -> Any:
    try:
        architecture, keys = _keys(reader)
    except ValueError as error:
        raise ValueError(f"{path.name} is no model that is read here: {error}; take the model's own folder") from None
    words = reader.fields.get("tokenizer.ggml.tokens")
    names = {tensor.name for tensor in reader.tensors}
    config = config_of(architecture, keys, names, 0 if words is None else len(words.data), path.name)
    rows = {t.name: _values(t).tolist() for t in reader.tensors if t.name in READ}
    factors(config, keys, rows, f"{path.name} ({architecture})")
    return config


def _keys(reader: Any) -> tuple[str, dict[str, Any]]:
    """(architecture, the keys under its name, without it)"""
    if "general.architecture" not in reader.fields:
        raise ValueError("it does not say of which architecture it is")
    architecture = reader.fields["general.architecture"].contents()
    start = f"{architecture}."
    found = {key.removeprefix(start): field.contents() for key, field in reader.fields.items() if key.startswith(start)}
    return architecture, found


def _tokenizer(path: Path, kind: str) -> Any:
    """By transformers. kind: the model's type, without which it would read the whole header for its config first."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    known: tuple[Any, dict[str, Any]] = (AutoTokenizer, {"tokenizer_type": kind})
    loader, more = known if kind in TOKENIZER_MAPPING_NAMES else (PreTrainedTokenizerFast, {})
    try:
        return loader.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True, **more)
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise ValueError(f"transformers cannot read the tokenizer of {path.name}: {first_line(error)}") from error


def _reader(path: Path) -> Any:
    """gguf's reader, but for lists of words and of what belongs to each, which are passed over, and bytes, which are
    one array: it would make one of every single entry."""
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as error:
        raise ValueError(f"{path} needs the gguf package, which is not installed: pip install gguf") from error

    class Header(GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
                of, many, start = GGUFValueType(int(kind[0])), int(count[0]), orig_offs + 12
                width = self.gguf_scalar_to_np.get(of)
                if width is not None and np.dtype(width).itemsize == 1:
                    data = self._get(start, width, many)
                    return start + many - orig_offs, [kind, count, data], [2], [GGUFValueType.ARRAY, of]
                if of == GGUFValueType.STRING or (width is not None and many > MANY):
                    end = (
                        _after_strings(self.data, start, many)
                        if width is None
                        else start + np.dtype(width).itemsize * many
                    )
                    return end - orig_offs, [kind, count], list(range(many)), [GGUFValueType.ARRAY, of]
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        return Header(str(path))
    except Exception as error:  # it trips over whatever it reads next
        raise ValueError(f"{path.name} is cut short or damaged ({first_line(error)}); fetch it again") from error


def _after_strings(data: Any, at: int, count: int) -> int:
    """Where ``count`` strings, each behind its length, end."""
    view = memoryview(data)
    for _ in range(count):
        at += 8 + int.from_bytes(view[at : at + 8], "little")
    if at > len(view):
        raise ValueError("a list of words runs past its end")
    return at


def gguf_sizes(path: Path) -> tuple[int | None, int | None]:
    """(width, size of the vocabulary) as the file's header says; None for what it does not, or a damaged one."""
    try:
        fields = _reader(path).fields
    except ValueError:  # said where it is loaded
        return None, None
    architecture = fields.get("general.architecture")
    width = None if architecture is None else fields.get(f"{architecture.contents()}.embedding_length")
    tokens = fields.get("tokenizer.ggml.tokens")
    return None if width is None else int(width.contents()), None if tokens is None else len(tokens.data)


def gguf_architecture(path: Path) -> str:
    """As the header says; "" where it does not, or is damaged."""
    try:
        field = _reader(path).fields.get("general.architecture")
    except ValueError:  # said where it is loaded
        return ""
    return "" if field is None else str(field.contents())


def gguf_tensors(path: Path, model: Any) -> dict[str, StoredTensor]:
    """The file's tensors under their names in ``model``, a transformers model, which may be on the meta device.

    transformers' processor of the architecture is asked what it does to each: rows of blocks can be put into another
    order as they are (the query and key maps of Llama); a tensor that is changed in another way is dequantised.
    A file that has them under the model's own names, as gguf-trainer's pig_clip, is read as it is. Raises ValueError
    for a block format that is not in the table, and for a damaged file.
    """
    from transformers import modeling_gguf_pytorch_utils as theirs

    reader = _reader(path)
    if (plain := _by_own_names(path, reader, model)) is not None:
        return plain
    architecture = reader.fields["general.architecture"].contents()
    kind = theirs.TENSOR_PROCESSORS.get(architecture, theirs.TensorProcessor)
    processor = kind(config=model.config.to_dict())
    names = _names(theirs.get_gguf_hf_weights_map, model, processor)
    # experts lie in one parameter, which has no ".weight" at the end of its name
    stored = {t.name if t.name in names else _bare(t.name, names): t for t in reader.tensors}
    odd = [name for name in stored if name not in names and name not in READ and not name.startswith(ELSEWHERE)]
    if odd:
        raise ValueError(
            f"{path.name} holds {len(odd)} tensors that {type(model).__name__} has no place for, first {odd[0]}; take "
            "the model's own folder"
        )
    parts: dict[str, list[StoredTensor]] = defaultdict(list)
    for theirs_name, name in names.items():
        if theirs_name in stored:
            _check_format(path, stored[theirs_name])
            parts[name].append(_stored(stored[theirs_name], processor))
    found = {name: each[0] if len(each) == 1 else _joined(each) for name, each in parts.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: _in_shape(tensor, shapes.get(name)) for name, tensor in found.items()}
    lacking = [name for name, shape in shapes.items() if name not in found or found[name].shape != shape]
    if lacking:
        raise ValueError(
            f"{path.name} lacks {len(lacking)} tensors of {type(model).__name__} in their shapes, first {lacking[0]} "
            f"{shapes[lacking[0]]}; take the model's own folder"
        )
    return found


def _by_own_names(path: Path, reader: Any, model: Any) -> dict[str, StoredTensor] | None:
    """None where the file has other names than the model's. Raises ValueError where it has less or more than these."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    stored = {tensor.name.removeprefix(prefix): tensor for tensor in reader.tensors}
    shapes = {name.removeprefix(prefix): (name, tuple(weight.shape)) for name, weight in model.named_parameters()}
    if not shapes.keys() & stored.keys():
        return None
    kind, way = type(model).__name__, "choose the config that belongs to it"
    lacking = [name for bare, (name, _) in shapes.items() if bare not in stored]
    if lacking:
        raise ValueError(
            f"{path.name} lacks {len(lacking)} tensors that {kind} has by its config, first {lacking[0]}; {way}"
        )
    parts = {bare.partition(".")[0] for bare in shapes}  # beside them lie a head, and what belongs to pictures
    left = (tensor.name for bare, tensor in stored.items() if bare not in shapes and bare.partition(".")[0] in parts)
    odd = [name for name in left if not name.endswith(".inv_freq")]
    if odd:
        raise ValueError(f"{path.name} has {len(odd)} tensors that {kind} has no place for, first {odd[0]}; {way}")
    found = {}
    for bare, (name, shape) in shapes.items():
        tensor = stored[bare]
        _check_format(path, tensor)
        has = tuple(int(side) for side in reversed(tensor.shape))
        if has != shape:
            raise ValueError(f"{path.name} has {tensor.name} of shape {has}, {kind} has {shape} there; {way}")
        row = FORMATS[tensor.tensor_type.name]
        found[name] = StoredTensor(shape, row, partial(_bytes, tensor), partial(_slice, tensor))
    return found


def _in_shape(tensor: StoredTensor, shape: tuple[int, ...] | None) -> StoredTensor:
    """With the dimensions of size one that the model has."""
    same = shape is not None and [n for n in tensor.shape if n > 1] == [n for n in shape if n > 1]
    return replace(tensor, shape=shape) if same and tensor.read_rows is None else tensor


def _bare(name: str, names: Mapping[str, str]) -> str:
    bare = name.removesuffix(".weight")
    return bare if bare in names else name


def _check_format(path: Path, tensor: Any) -> None:
    if tensor.tensor_type.name not in FORMATS:
        raise ValueError(
            f"{path.name} has weights in {tensor.tensor_type.name} ({tensor.name}), which is not read here; take "
            f"a file in one of {', '.join(row for row in FORMATS if not row.startswith('F8'))}"
        )


def _joined(parts: list[StoredTensor]) -> StoredTensor:
    """The halves of one map of each expert, [experts rows columns] each, one behind the other."""
    experts, _, columns = parts[0].shape
    shape = (experts, sum(part.shape[1] for part in parts), columns)

    def read() -> Tensor:
        values = [part.format.dense(part.read()).reshape(part.shape).float() for part in parts]
        return torch.cat(values, dim=1).view(torch.uint8)

    return StoredTensor(shape, FORMATS["F32"], read)


class _Flat:
    """A model as transformers' table of names asks it, without its children: for each of these it would build the
    table anew, which takes longer than reading the file. prefix: before its names, in the model that holds it."""

    def __init__(self, model: Any, prefix: str):
        self.config = model.config
        self._names = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self._names

    def named_children(self) -> list[Any]:
        return []


def _names(mapping: Any, model: Any, processor: Any) -> dict[str, str]:
    """Names in the file -> names in the model. llama.cpp's table has those of a model with its head."""
    more = {"processor": processor} if "processor" in inspect.signature(mapping).parameters else {}
    parameters = {name for name, _ in model.named_parameters()}
    for prefix in (f"{getattr(model, 'base_model_prefix', '')}.", ""):
        found = mapping(_Flat(model, prefix), **more)
        names = {theirs: name.removeprefix(prefix) for theirs, name in found.items()}
        if set(names.values()) >= parameters:
            return names
    return mapping(model, **more)


def _stored(tensor: Any, processor: Any) -> StoredTensor:
    shape = tuple(int(side) for side in reversed(tensor.shape))
    row = FORMATS[tensor.tensor_type.name]
    order = _row_order(processor, tensor.name, shape[0]) if len(shape) == 2 else None
    if order is not None:
        return StoredTensor(shape, row, partial(_rows, tensor, order), partial(_some_rows, tensor, order))
    like = np.broadcast_to(np.float32(-1), shape)  # no memory; the logarithm of its negative is taken of some
    changed = processor.process(weights=like, name=tensor.name).weights.shape
    return StoredTensor(tuple(changed), FORMATS["F32"], partial(_processed, tensor, processor))


def _row_order(processor: Any, name: str, rows: int) -> Tensor | None:
    """Which row of the file stands at each row of the weight; None where rows do not stay what they are."""
    probe = np.stack((np.arange(rows), np.arange(rows) + rows), axis=1)
    try:
        with np.errstate(all="ignore"):  # the logarithm is taken of some
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


def _slice(tensor: Any, rows: slice) -> Tensor:
    return torch.from_numpy(np.array(tensor.data[rows])).view(torch.uint8)


def _values(tensor: Any) -> Tensor:
    return FORMATS[tensor.tensor_type.name].dense(_bytes(tensor))


def _processed(tensor: Any, processor: Any) -> Tensor:
    """As transformers changes its values, in float32."""
    values = _values(tensor)
    changed = processor.process(weights=values.numpy(), name=tensor.name).weights
    return torch.from_numpy(np.array(changed, dtype=np.float32, order="C")).view(torch.uint8)
