"""A Hugging Face folder or a GGUF file -> trunk and tokenizer: no download, no foreign code, no pickle."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .families import family_of
from .family import LanguageFamily

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)


def load_trunk(path: Path, dtype: torch.dtype | None, stream: bool = False) -> tuple[nn.Module, Any, LanguageFamily]:
    """The trunk (no LM head, no decoder), its tokenizer and its family.

    dtype: None keeps the stored one; a GGUF file's weights are dequantised to float32 then, whatever they are on disk.
    stream: weights stay in their safetensors files and are read, layer by layer, at each pass (accelerate's hooks).
    Raises ValueError, in one sentence, for a path that is not a loadable language model.
    """
    if path.is_file() and path.suffix.lower() == ".gguf":
        if stream:
            raise ValueError(f"{path.name} is a GGUF file, only a folder of safetensors can be streamed; load it whole")
        return _load_gguf(path, dtype)
    if not path.is_dir():
        raise ValueError(f"{path} is not a Hugging Face model folder or a .gguf file")
    config = _read_config(path)
    _check_weights(path)
    tokenizer = _load_tokenizer(path)
    family = family_of(config.model_type)
    more = {"device_map": {"": "disk"}} if stream else {}
    return _trunk(_from_pretrained(family, path, dtype, **more), family), tokenizer, family


def load_skeleton(path: Path) -> tuple[nn.Module, Any, LanguageFamily]:
    """As ``load_trunk``, from config and tokenizer alone: the trunk is on the meta device and no weights need be there.

    Raises ValueError, in one sentence, for a path that is not a Hugging Face folder or a .gguf file.
    """
    import transformers

    if path.is_file() and path.suffix.lower() == ".gguf":
        config, tokenizer = _read_gguf(path)
    elif path.is_dir():
        config, tokenizer = _read_config(path), _load_tokenizer(path)
    else:
        raise ValueError(f"{path} is not a Hugging Face model folder or a .gguf file")
    family = family_of(config.model_type)
    loader: Any = getattr(transformers, family.loader)
    with _quiet(), torch.device("meta"):
        if hasattr(loader, "from_config"):
            model = loader.from_config(config)
        else:  # one class, for the text half of a model of text and pictures
            model = loader(getattr(config, "text_config", config))
    return _trunk(model, family), tokenizer, family


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder; none where it has no weights, or pickled ones.

    Raises ValueError for a file that is incomplete or cut short.
    """
    if not any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return []
    return _check_weights(path)


def _read_config(path: Path) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} has no config.json, so it is not a Hugging Face model folder")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        model_type = data.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in data:
            raise ValueError(
                f"{path} needs its own Python code (auto_map in config.json), which this pack does not run; "
                "take a model whose architecture transformers knows"
            )
        raise ValueError(
            f"{file}: the installed transformers does not know model_type {model_type!r}; update transformers"
        )
    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    _check_rotation(file, data.get("rope_parameters"), config)
    return config


def _check_rotation(file: Path, saved: dict[str, Any] | None, config: Any) -> None:
    """transformers 5 writes a model's rotary positions as rope_parameters, which releases before it pass over without a
    word and put their default in the place."""
    import transformers

    understood = {"rope_theta": getattr(config, "rope_theta", None), "rope_type": "default"}
    if saved is not None and _version(transformers) < (5, 0) and saved != understood:
        raise ValueError(
            f"{file} has rotary positions as transformers 5 saves them ({saved}), the installed transformers "
            f"{transformers.__version__} would take {understood}; update transformers"
        )


def _version(transformers: Any) -> tuple[int, int]:
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return major, minor


def _check_weights(path: Path) -> list[Path]:
    """The safetensors files of a folder; refused, before transformers reads it, where they are absent, incomplete or
    cut short."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        files = [path / "model.safetensors"]
    elif index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [path / name for name in sorted(set(shards))]
    elif any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise ValueError(
            f"{path} holds only pickled weights (.bin), which can run code; save the model again with "
            "save_pretrained(folder, safe_serialization=True) or fetch its model.safetensors"
        )
    else:
        raise ValueError(f"{path} has no model.safetensors")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{path} lacks {file.name}, which {index.name} lists; fetch it again")
        try:
            with safe_open(str(file), "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is cut short or damaged ({error}); fetch it again") from None
    return files


def _load_tokenizer(path: Path) -> Any:
    """From the folder itself, or from the tokenizer folder beside a diffusers text_encoder folder."""
    for folder in (path, path.parent / path.name.replace("text_encoder", "tokenizer")):
        has_vocabulary = any((folder / name).is_file() for name in VOCABULARIES)
        if not has_vocabulary and not (folder / "tokenizer_config.json").is_file():
            continue
        try:
            tokenizer = _tokenizer_loader(folder).from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # each tokenizer class fails in its own way
            raise ValueError(f"the tokenizer in {folder} cannot be loaded: {_first_line(error)}") from error
        if has_vocabulary or not tokenizer.vocab_files_names:  # a byte tokenizer has no vocabulary file
            return tokenizer
    raise ValueError(f"{path} has no tokenizer ({', '.join(VOCABULARIES)}); copy the model's tokenizer files there")


def _tokenizer_loader(folder: Path) -> Any:
    """AutoTokenizer, but for what transformers 5 saves as TokenizersBackend: releases before it know that class by
    another name."""
    import transformers

    file = folder / "tokenizer_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else None
    if named == "TokenizersBackend" and _version(transformers) < (5, 0):
        return transformers.PreTrainedTokenizerFast
    return transformers.AutoTokenizer


def _load_gguf(path: Path, dtype: torch.dtype | None) -> tuple[nn.Module, Any, LanguageFamily]:
    config, tokenizer = _read_gguf(path)
    family = family_of(config.model_type)
    model = _from_pretrained(family, path, dtype or torch.float32, gguf_file=path.name)
    if hasattr(model.config, "quantization_config"):  # the weights are plain tensors now
        del model.config.quantization_config
    return _trunk(model, family), tokenizer, family


def _read_gguf(path: Path) -> tuple[Any, Any]:
    """(config, tokenizer)"""
    from transformers import AutoConfig, AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(str(path.parent), **where)
        return config, AutoTokenizer.from_pretrained(str(path.parent), **where)
    except ImportError as error:
        raise ValueError(f"{path} needs the gguf package ({error}); pip install gguf") from None
    except Exception as error:  # a damaged file or an unknown architecture fails in many ways
        raise ValueError(f"transformers cannot read {path.name} as a GGUF model: {_first_line(error)}") from error


def _from_pretrained(family: LanguageFamily, path: Path, dtype: torch.dtype | None, **more: Any) -> Any:
    """transformers' from_pretrained, refusing weights that the files do not hold instead of drawing them at random."""
    import transformers

    name = "dtype" if _version(transformers) >= (4, 56) else "torch_dtype"
    if "gguf_file" not in more:
        more["use_safetensors"] = True
    folder = path if path.is_dir() else path.parent
    try:
        with _quiet():
            model, info = getattr(transformers, family.loader).from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **{name: dtype or "auto"},
                **more,
            )
    except Exception as error:  # a package that is missing, shapes that do not fit the config, ...
        raise ValueError(f"transformers cannot load {path}: {_first_line(error)}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"the weights in {path} lack {len(missing)} tensors of {type(model).__name__}, first {missing[0]}"
        )
    return model


def _trunk(model: Any, family: LanguageFamily) -> nn.Module:
    """The part that turns tokens into hidden states: an encoder-decoder's encoder, a vision-language model's language
    model; without BERT's pooler, which nothing here reads."""
    if family.name == "generic" and getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    for inner in ("text_model", "language_model"):  # CLIP before transformers 5; vision-language models
        if isinstance(getattr(model, inner, None), nn.Module):
            model = getattr(model, inner)
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters and hasattr(model, "pooler"):
        model.pooler = None
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
