"""A Hugging Face folder, a lone safetensors file or a GGUF file -> a language model without head, and its tokenizer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..fingerprint import files_fingerprint, files_magnitudes, parts_fingerprint, parts_magnitudes
from ..foreign_files import what_it_is
from ..quantized.storage import STORAGES, Storage, requantize
from .conversions import converted
from .families import family_of
from .family import LanguageFamily
from .folder import check_file, check_weights, first_line, load_tokenizer, read_config, version, weight_files
from .gguf_file import gguf_shapes, gguf_tensors, has_no_tokenizer, is_gguf, read_gguf
from .single_file import is_single_file, read_single_file
from .streaming import read_buffers
from .streaming import stream as stream_from
from .tensor_files import StoredTensor, safetensors
from .unsaved import completed
from .weight_loading import Empty, Progress, Slots, fill


class Source(NamedTuple):
    """What is known of a language model before its weights are read. files: its safetensors; None for a GGUF file."""

    path: Path
    config: Any
    tokenizer: Any
    files: list[Path] | None

    @property
    def family(self) -> LanguageFamily:
        return family_of(self.config.model_type)

    def empty(self) -> nn.Module:
        """The trunk on the meta device."""
        with torch.device("meta"):
            return _trunk(_empty(self.config, self.family), self.family)

    def print(self) -> tuple[str | None, list[float] | None]:
        """Fingerprint and magnitudes of the weights, of which slices are read; None where there are none, or they are
        not plainly the trunk's."""
        whole, _, slots = _places(self)
        if self.files is None:
            return _prints(slots.found_in(gguf_tensors(self.path, whole)))
        with safetensors(self.files) as stored:
            found = _found_in(stored, slots, whole)
            if found is not None:
                return _prints(found)
        empty = self.empty()
        return files_fingerprint(empty, self.files), files_magnitudes(empty, self.files)


def _found_in(stored: Mapping[str, StoredTensor], slots: Slots, whole: nn.Module) -> dict[int, StoredTensor] | None:
    """The tensor for each place; None where the files have it neither by the model's names nor by those that
    transformers turns into them."""
    plain = _plainly_in(stored, slots, whole)
    return slots.found_in(converted(whole, stored)) if plain is None else plain


def _plainly_in(stored: Mapping[str, StoredTensor], slots: Slots, whole: Any) -> dict[int, StoredTensor] | None:
    """The same by the model's names alone; what its class never saves is computed, or is what it is tied to.

    Raises ValueError where they hold more layers by these names than the model has, which transformers leaves out
    without a word.
    """
    if more := slots.counted_on(stored):
        raise ValueError(
            f"the weights hold layers that their config does not count ({len(more)}, from {more[0]} on), and would be "
            "read as a shorter model: give them the config.json that belongs to them"
        )
    plain = slots.plainly_in(stored)
    return slots.plainly_in(completed(stored, whole)) if plain is None else plain


def _prints(tensors: Mapping[int, StoredTensor] | None) -> tuple[str | None, list[float] | None]:
    if tensors is None:
        return None, None
    parts = [(tensor, tensor.shape) for tensor in tensors.values()]
    return parts_fingerprint(part for part in parts if len(part[1]) > 1), parts_magnitudes(parts)


def find_source(
    path: Path, config: Path | None = None, tokenizers: Mapping[str, Path] | None = None, whole: bool = True
) -> Source:
    """From a Hugging Face folder, a .gguf file, or a lone .safetensors file, whose config and tokenizer are looked for
    (see ``read_single_file``); those of a .gguf file without a tokenizer too, in ``config`` or the folder beside it
    with its name.

    whole: the weights must be there. Raises ValueError, in one sentence.
    """
    if is_gguf(path):
        return Source(path, *(_beside(path, config) if has_no_tokenizer(path) else read_gguf(path)), None)
    if is_single_file(path):
        check_file(path)
        with safetensors([path]) as stored:
            return Source(path, *read_single_file(path, stored, config, tokenizers or {}), [path])
    if path.is_dir():
        read = read_config(path)
        files = check_weights(path) if whole else weight_files(path)
        return Source(path, read, load_tokenizer(path, read), files)
    absent = "" if path.exists() else "; nothing lies there, names of a hub are not looked up: fetch it, give its path"
    raise ValueError(f"{path} is not a Hugging Face model folder, a .safetensors file or a .gguf file{absent}")


def _beside(path: Path, folder: Path | None) -> tuple[Any, Any]:
    """(config, tokenizer) of a GGUF file that has none of its own. Raises ValueError."""
    names = gguf_shapes(path)
    if any(name.startswith("adapter.") for name in names):
        raise ValueError(f"{path.name} is no language model, but {what_it_is(names) or 'an adapter of no known kind'}")
    folder = folder or path.with_suffix("")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{path.name} holds no tokenizer: if it is a language model, put its config.json and tokenizer files into "
            f"a folder {path.stem} beside it, or choose a folder with them"
        )
    config = read_config(folder)
    return config, load_tokenizer(folder, config)


def load_trunk(
    source: Source,
    dtype: torch.dtype | None,
    stream: bool = False,
    weights: str = "stored",
    progress: Progress | None = None,
) -> nn.Module:
    """The trunk (no LM head, no decoder), with its weights.

    dtype: that of the computation; None = as stored, float32 for GGUF. weights: a row of STORAGES.
    stream: weights stay in their safetensors files and are read, module by module, at each pass (see ``_streamed``).
    progress: told the bytes read and those in all, tensor by tensor; it may raise.
    Raises ValueError, in one sentence, for a path that is not a loadable language model.
    """
    storage, path = STORAGES[weights], source.path
    if stream:
        if storage.linear:
            raise ValueError(f"a streamed language model takes its weights as they are stored, not in {weights}")
        return _streamed(source, dtype)
    if source.files is None:
        dtype = dtype or torch.float32
        trunk = _filled(source, lambda whole: gguf_tensors(path, whole), dtype, storage, progress)
        if trunk is None:  # transformers' own way would read its config anew, without what is completed here
            raise _not_its_names(source)
        return trunk
    with safetensors(source.files) as stored:
        trunk = _filled(source, stored, dtype or _stored_dtype(source.config, stored), storage, progress)
        _check_convertible(source, trunk is not None, stored)
    return _from_transformers(source, dtype, storage) if trunk is None else trunk


def _streamed(source: Source, dtype: torch.dtype | None) -> nn.Module:
    """The trunk, whose weights stay in the files. Raises ValueError where a pass could not read them from there."""
    path, opened = source.path, ExitStack()
    stored = opened.enter_context(safetensors(source.files or ()))
    if any(tensor.is_scaled for tensor in stored.values()):
        raise ValueError(f"{path} has scaled float8 weights, which cannot be streamed; load it whole")
    dtype = dtype or _stored_dtype(source.config, stored)
    whole, trunk, slots = _places(source, dtype)
    tensors = _found_in(stored, slots, whole)
    if tensors is None:
        raise ValueError(
            f"{path} cannot be streamed: its files do not hold the weights of {type(trunk).__name__} one by one under "
            "names that it or transformers' tables know; load it whole"
        )
    if not Slots.are_all(trunk) and not read_buffers(trunk, whole, converted(whole, stored)):
        raise ValueError(
            f"{path} cannot be streamed: what {type(trunk).__name__} saves beside weights is not found; load it whole"
        )
    stream_from(trunk, slots, tensors, _dtype_of(whole, dtype), opened)
    return trunk.requires_grad_(False)


def _places(source: Source, dtype: torch.dtype | None = None) -> tuple[Any, nn.Module, Slots]:
    """The model without weights, its trunk, and where each weight goes in that. dtype: what its config is to say."""
    with Empty():
        whole = _empty(source.config, source.family)
    if dtype is not None:
        setattr(whole.config, _dtype_name(), dtype)
    trunk = _trunk(whole, source.family)
    return whole, trunk, Slots(whole, trunk)


def verify(source: Source) -> None:
    """Raise ValueError, with the sentence of ``load_trunk``, for what that would refuse; no weight is read where the
    files plainly hold the trunk's."""
    if source.files is None:
        with Empty():
            gguf_tensors(source.path, _empty(source.config, source.family))
        return
    if not source.files:
        raise ValueError(f"{source.path} has no model.safetensors: put the model's weights beside its config.json")
    whole, _, slots = _places(source)
    with safetensors(source.files) as stored:
        found = _plainly_in(stored, slots, whole)
        _check_convertible(source, found is not None, stored)
    if found is not None:
        return
    _from_pretrained(source.family, source.path, None, device_map={"": "meta"})


def _check_convertible(source: Source, plain: bool, stored: Mapping[str, StoredTensor]) -> None:
    """Raise ValueError for files that are not plainly the trunk's, if transformers cannot take them either: it asks
    for a folder, and knows nothing of factors."""
    if not plain and (not source.path.is_dir() or any(tensor.is_scaled for tensor in stored.values())):
        raise _not_its_names(source)


def _not_its_names(source: Source) -> ValueError:
    return ValueError(
        f"{source.path.name} does not hold a {source.config.model_type} model of {source.config.hidden_size} channels "
        "by its usual names: choose the config that belongs to it"
    )


def _from_transformers(source: Source, dtype: torch.dtype | None, storage: Storage) -> nn.Module:
    """The same by transformers, where it renames, joins or takes apart what the files hold."""
    trunk = _trunk(_from_pretrained(source.family, source.path, dtype), source.family)
    requantize(trunk, storage)
    return trunk


def _filled(
    source: Source,
    stored: Mapping[str, StoredTensor] | Callable[[nn.Module], Mapping[str, StoredTensor]],
    dtype: torch.dtype,
    storage: Storage,
    progress: Progress | None,
) -> nn.Module | None:
    """The trunk with its weights, each read by itself; None where the files do not simply hold them under its names.

    stored: the tensors of the files, under names that may have a prefix; or what gives them under those of a model.
    """
    whole, trunk, slots = _places(source, dtype)
    tensors = slots.found_in(stored(whole)) if callable(stored) else _plainly_in(stored, slots, whole)
    if tensors is None or not Slots.are_all(trunk):
        return None
    fill(slots, tensors, _dtype_of(whole, dtype), storage, progress)
    return trunk.requires_grad_(False)


def _empty(config: Any, family: LanguageFamily) -> Any:
    """The model of a config, as its class makes it. Put a context around it that makes no weights.

    Buffers are made in float32: transformers would set another default dtype of PyTorch meanwhile, for all threads.
    """
    import transformers

    loader: Any = getattr(transformers, family.loader)
    more = {_dtype_name(): torch.float32}
    try:
        with _quiet():
            if hasattr(loader, "from_config"):
                return loader.from_config(config, **more)
            # one class, for the text half of a model of text and pictures
            return loader._from_config(getattr(config, "text_config", config), **more)
    except Exception as error:  # it makes no such model, needs a package that is missing, ...
        raise ValueError(
            f"transformers cannot build a {config.model_type} model ({first_line(error)}); take another language model"
        ) from error


def _dtype_of(model: nn.Module, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype of each parameter, as transformers chooses it: some leave the range of float16, or a router's choice
    of experts hangs on them. It names a module, or a weight with the module before it ("gate.weight")."""
    narrow = (torch.float16,), (torch.float16, torch.bfloat16)
    lists = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    kept: set[str] = set()
    for module in model.modules():
        for name, dtypes in zip(lists, narrow, strict=True):
            kept.update((getattr(module, name, None) or ()) if dtype in dtypes else ())
    return lambda name: torch.float32 if any(f".{part}." in f".{name}." for part in kept) else dtype


def _stored_dtype(config: Any, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """What the config says of the weights; else what the first of them is."""
    said = getattr(config, _dtype_name(), None)
    if isinstance(said, torch.dtype):
        return said
    first = next(iter(stored.values())).format.name if stored else "F32"
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(first, torch.float32)


def _from_pretrained(family: LanguageFamily, path: Path, dtype: torch.dtype | None, **more: Any) -> Any:
    """transformers' from_pretrained, refusing weights that the files do not hold instead of drawing them at random."""
    import transformers

    try:
        with _quiet():
            model, info = getattr(transformers, family.loader).from_pretrained(
                str(path),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                adapter_kwargs={"subfolder": "none"},  # where no LoRA lies that it would add
                **{_dtype_name(): dtype or "auto"},
                **more,
            )
    except Exception as error:  # a package that is missing, shapes that do not fit the config, ...
        if "ignore_mismatched_sizes" in str(error):
            raise ValueError(
                f"the weights in {path} are of other sizes than its config.json says: fetch both from one model"
            ) from error
        raise ValueError(f"transformers cannot load {path}: {first_line(error)}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"the weights in {path} lack {len(missing)} tensors of {type(model).__name__}, first {missing[0]}"
        )
    return model


def _dtype_name() -> str:
    """What transformers calls the dtype of a model in a call and in a config."""
    import transformers

    return "dtype" if version(transformers) >= (4, 56) else "torch_dtype"


def _trunk(model: Any, family: LanguageFamily) -> nn.Module:
    """The part that turns tokens into hidden states: an encoder-decoder's encoder, a vision-language model's language
    model; without BERT's pooler, which nothing here reads."""
    config = model.config
    if family.name == "generic" and getattr(config, "is_encoder_decoder", False):
        model = model.get_encoder()
    for inner in ("text_model", "language_model"):  # CLIP before transformers 5; vision-language models
        if isinstance(getattr(model, inner, None), nn.Module):
            model = _headless(getattr(model, inner))
    if not hasattr(model, "config"):  # FSMT's encoder is a plain module
        model.config = config
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters and hasattr(model, "pooler"):
        model.pooler = None
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def _headless(model: Any) -> Any:
    """BLIP-2 holds its language model with the head, or as an encoder with its decoder."""
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        return model
    return model.get_encoder() if model.config.is_encoder_decoder else model.base_model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of the tensors it leaves out: a head is left out on purpose, and a missing tensor is
    refused here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
