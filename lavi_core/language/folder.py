"""A Hugging Face folder: config, tokenizer and safetensors files; no download, no foreign code, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
ADAPTER = "adapter_config.json"  # peft's


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder; none where it has no weights, or pickled ones.

    Raises ValueError for a file that is incomplete or cut short.
    """
    if not any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return []
    return check_weights(path)


def read_config(path: Path) -> Any:
    """The folder's config, by a class of transformers. Raises ValueError, for packed weights too."""
    from transformers import CONFIG_MAPPING, AutoConfig

    file = path / "config.json"
    if not file.is_file() and (path / ADAPTER).is_file():
        raise ValueError(
            f"{path} holds a LoRA ({ADAPTER}) and no model: give the language model that it was trained on, and merge "
            "the LoRA into it or choose it in Apply LoRA to Language Model"
        )
    if not file.is_file():
        raise ValueError(f"{path} has no config.json, so it is not a Hugging Face model folder")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        model_type = data.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if "auto_map" in data:
            raise ValueError(
                f"{path} needs its own Python code (auto_map in config.json), which this pack does not run; "
                "take a model whose architecture transformers knows"
            )
        raise ValueError(
            f"{file}: the installed transformers does not know model_type {model_type!r}; update transformers"
        )
    _check_packing(path, data)
    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each config checks its own fields
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is no config of a {model_type} model: {reason}") from error
    _check_rotation(file, data.get("rope_parameters"), config)
    return config


def _check_packing(path: Path, data: dict[str, Any]) -> None:
    """Refuse weights that bitsandbytes, AWQ, GPTQ and their like have packed, before these or their packages are asked
    for: a LoRA would be added to bytes, and their places are not the model's."""
    for said in (data, data.get("text_config")):
        packing = said.get("quantization_config") if isinstance(said, dict) else None
        if packing:
            old = "bitsandbytes" if any(key.startswith("load_in_") for key in packing) else "another library"
            raise ValueError(
                f"{path.name} is quantised by {packing.get('quant_method') or old} (its config.json says so), which is "
                "not read here: take the model's full-precision folder, which Load Language Model can keep in 8-bit or "
                "4-bit, or a .gguf file of it"
            )


def _check_rotation(file: Path, saved: dict[str, Any] | None, config: Any) -> None:
    """transformers 5 writes a model's rotary positions as rope_parameters, which releases before it pass over without a
    word and put their default in the place."""
    import transformers

    if saved is None or version(transformers) >= (5, 0):
        return
    bases = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}  # Gemma has both
    understood = {k: {"rope_theta": getattr(config, base, None), "rope_type": "default"} for k, base in bases.items()}
    if saved not in (understood, understood["full_attention"]):
        raise ValueError(
            f"{file} has rotary positions as transformers 5 saves them ({saved}), the installed transformers "
            f"{transformers.__version__} would take {understood['full_attention']}; update transformers"
        )


def version(transformers: Any) -> tuple[int, int]:
    """(major, minor)"""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return major, minor


def left_beside(path: Path) -> str | None:
    """The sentence on a LoRA that lies beside the weights of a folder. It is left where it is: it may be merged into
    them already, and transformers' own way would add it if peft happens to be installed."""
    if not (path / ADAPTER).is_file():
        return None
    return (
        f"{path.name} holds a LoRA ({ADAPTER}) beside the model's weights, which are taken as they are: if they lack "
        "what it adds, merge it into them or choose the folder in Apply LoRA to Language Model"
    )


def check_weights(path: Path) -> list[Path]:
    """The safetensors files of a folder; refused, before transformers reads it, where they are absent, incomplete or
    cut short."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        files = [path / "model.safetensors"]
    elif index.is_file():
        try:
            shards = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"]).values()
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{index} is damaged ({error}); fetch it again") from None
        files = [path / str(name) for name in sorted(set(shards))]
    elif any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise ValueError(
            f"{path} holds only pickled weights (.bin), which can run code; save the model again with "
            "save_pretrained(folder, safe_serialization=True) or fetch its model.safetensors"
        )
    else:
        raise ValueError(f"{path} has no model.safetensors: put the model's weights beside its config.json")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{path} lacks {file.name}, which {index.name} lists; fetch it again")
        check_file(file)
    return files


def check_file(file: Path) -> None:
    """Raise ValueError for what is no safetensors file, or only a part of one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{file} is cut short or damaged ({error}); fetch it again") from None


def load_tokenizer(path: Path, config: Any) -> Any:
    """From the folder itself, or from the tokenizer folder beside a diffusers text_encoder folder.

    config: the model's, by which transformers 5 knows whether a tokenizer.json is read as it is
    (findings/tokenizer-without-config.sh); diffusers' tokenizer folder has none.
    """
    for folder in (path, path.parent / path.name.replace("text_encoder", "tokenizer")):
        has_vocabulary = any((folder / name).is_file() for name in VOCABULARIES)
        if not has_vocabulary and not (folder / "tokenizer_config.json").is_file():
            continue
        try:
            loader, more = _tokenizer_loader(folder, config)
            tokenizer = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **more)
        except ImportError as error:
            raise ValueError(
                f"the tokenizer in {folder} is in a form that needs packages which are missing here: pip install "
                "sentencepiece protobuf, or save it once more as tokenizer.json"
            ) from error
        except Exception as error:  # each tokenizer class fails in its own way
            raise ValueError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
        if has_vocabulary or not tokenizer.vocab_files_names:  # a byte tokenizer has no vocabulary file
            return tokenizer
    raise ValueError(f"{path} has no tokenizer ({', '.join(VOCABULARIES)}); copy the model's tokenizer files there")


def _tokenizer_loader(folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """AutoTokenizer, which is given the config, but for what transformers 5 saves as TokenizersBackend: releases before
    it know that class by another name."""
    import transformers

    file = folder / "tokenizer_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else None
    if named == "TokenizersBackend" and version(transformers) < (5, 0):
        return transformers.PreTrainedTokenizerFast, {}
    return transformers.AutoTokenizer, {"config": config}


def first_line(error: Exception) -> str:
    """Of an error's text, for a message in one sentence."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
