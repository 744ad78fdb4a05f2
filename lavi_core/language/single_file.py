"""A lone safetensors file, as ComfyUI's users have text encoders: config and tokenizer lie beside it, or are known.

Shapes tell a CLIP or T5 encoder whole; what they do not tell (the activation) goes with the width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..foreign_files import what_it_is
from ..registry import Registry
from .folder import load_tokenizer, read_config
from .tensor_files import StoredTensor

# Files of a model's folder as bytes among the tensors of its weights, as in AnimaT5Free's text encoder
BUNDLED = {
    "config.json": "t5free_qwen_config_bytes",
    "tokenizer.json": "t5free_tokenizer_json_bytes",
    "tokenizer_config.json": "t5free_tokenizer_config_bytes",
}


@dataclass(frozen=True)
class KnownEncoder:
    """tells: the end of a name that only this kind has. build: the tensors' shapes by name -> a transformers config, or
    None for a size that is not known. tokenizer: its name among the tokenizers that the caller has."""

    tells: str
    tokenizer: str
    build: Callable[[Mapping[str, tuple[int, ...]]], Any]


def is_single_file(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".safetensors"


def is_t5(path: Path) -> bool:
    """Whether a lone file has tensors of T5's names; it is opened alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return any(name.endswith(KNOWN["T5"].tells) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):  # said where it is loaded
        return False


def read_single_file(
    path: Path, stored: Mapping[str, StoredTensor], folder: Path | None, tokenizers: Mapping[str, Path]
) -> tuple[Any, Any]:
    """(config, tokenizer): of ``folder``, else of the folder beside the file with its name, else of the file itself
    (``BUNDLED``), else of a known encoder.

    Raises ValueError that says what to put where.
    """
    beside = path.with_suffix("")
    if folder is None and (beside / "config.json").is_file():
        folder = beside
    if folder is not None:
        config = read_config(folder)
        return config, load_tokenizer(folder, config)
    if (found := _bundled(path)) is not None:
        return found
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    for row in KNOWN.values():
        config = row.build(shapes) if any(name.endswith(row.tells) for name in shapes) else None
        if config is not None and row.tokenizer in tokenizers:
            return config, load_tokenizer(tokenizers[row.tokenizer], config)
    if (what := what_it_is(stored)) and not what.startswith("a text encoder"):
        raise ValueError(f"{path.name} is no language model, it is {what}")
    raise ValueError(
        f"{path.name} holds weights alone, of no encoder that is known by its shapes ({', '.join(KNOWN)}): put the "
        f"model's config.json and tokenizer files into a folder {beside.name} beside it, or choose a folder with them"
    )


def _bundled(path: Path) -> tuple[Any, Any] | None:
    """What the file itself holds; None where it holds weights alone. Raises ValueError for what cannot be read."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        absent = sorted(set(BUNDLED.values()) - set(file.keys()))
        if len(absent) == len(BUNDLED):
            return None
        if absent:
            raise ValueError(f"{path.name} holds a language model without {absent[0]}; fetch it again")
        tensors = {name: file.get_tensor(key) for name, key in BUNDLED.items()}
    with TemporaryDirectory() as made:
        folder = Path(made) / path.stem
        folder.mkdir()
        try:
            for name, tensor in tensors.items():
                (folder / name).write_bytes(tensor.numpy().tobytes())
            config = read_config(folder)
            return config, load_tokenizer(folder, config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"of what {path.name} holds: {str(error).replace(made, path.name)}") from None


def _clip(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """CLIP's text halves: L of OpenAI, H and bigG of OpenCLIP."""
    from transformers import CLIPTextConfig

    # Of the text half: a whole CLIP has layers of a vision half too, by the same names.
    kinds = ("token", "position")
    tokens, places = (_shape(shapes, f"text_model.embeddings.{kind}_embedding.weight") for kind in kinds)
    inner = _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")
    if tokens is None or places is None or inner is None or tokens[1] not in (768, 1024, 1280):
        return None
    return CLIPTextConfig(
        hidden_size=tokens[1],
        vocab_size=tokens[0],
        max_position_embeddings=places[0],
        intermediate_size=inner[0],
        num_hidden_layers=_count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=tokens[1] // 64,
        hidden_act="quick_gelu" if tokens[1] == 768 else "gelu",
        pad_token_id=1,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def _t5(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The encoders of T5 and T5 v1.1 (gated), with T5's own vocabulary. UMT5, as which pile-T5 is built, has a table of
    distances in each layer, and as many words: it is another."""
    from transformers import T5Config

    first = "encoder.block.0.layer."
    if _shape(shapes, "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight") is not None:
        return None
    bias = _shape(shapes, f"{first}0.SelfAttention.relative_attention_bias.weight")
    query = _shape(shapes, f"{first}0.SelfAttention.q.weight")
    tokens = _shape(shapes, "shared.weight") or _shape(shapes, "encoder.embed_tokens.weight")
    gated, plain = (_shape(shapes, f"{first}1.DenseReluDense.{name}.weight") for name in ("wi_0", "wi"))
    inner = gated or plain
    if bias is None or query is None or tokens is None or inner is None or tokens[0] != 32128:
        return None
    return T5Config(
        d_model=tokens[1],
        vocab_size=tokens[0],
        d_kv=query[0] // bias[1],
        d_ff=inner[0],
        num_heads=bias[1],
        num_layers=_count(shapes, r"encoder\.block\.(\d+)\."),
        relative_attention_num_buckets=bias[0],
        feed_forward_proj="gated-gelu" if gated else "relu",
        pad_token_id=0,
        eos_token_id=1,
    )


def _shape(shapes: Mapping[str, tuple[int, ...]], end: str) -> tuple[int, ...] | None:
    return next((shape for name, shape in shapes.items() if f".{name}".endswith(f".{end}")), None)


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    found = (re.search(pattern, name) for name in shapes)
    return 1 + max(int(one[1]) for one in found if one)


KNOWN = Registry(
    "known encoder",
    {
        "CLIP": KnownEncoder("text_model.embeddings.position_embedding.weight", "clip", _clip),
        "T5": KnownEncoder("SelfAttention.relative_attention_bias.weight", "t5", _t5),
    },
)
