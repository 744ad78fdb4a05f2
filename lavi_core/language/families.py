"""The table of language families. The last row, generic, serves every model that no other row names."""

from __future__ import annotations

from ..registry import Registry
from .family import LanguageFamily

_ROWS = (
    LanguageFamily(
        name="t5",
        model_types=("t5", "mt5", "umt5"),
        loader="AutoModelForTextEncoding",
        lora_sites=r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.[qkvo]",
        layers="encoder.block",
        positions="own",
    ),
    LanguageFamily(
        name="clip",
        model_types=("clip", "clip_text_model"),
        loader="CLIPTextModel",
        lora_sites=r"encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
        layers="encoder.layers",
    ),
    LanguageFamily(
        name="bert",
        model_types=("bert", "electra"),
        lora_sites=r"encoder\.layer\.\d+\.attention\.(self\.(query|key|value)|output\.dense)",
        layers="encoder.layer",
    ),
    LanguageFamily(
        name="roberta",
        model_types=("roberta", "xlm-roberta", "camembert"),
        lora_sites=r"encoder\.layer\.\d+\.attention\.(self\.(query|key|value)|output\.dense)",
        layers="encoder.layer",
        positions="own",
        reserved_positions=2,
    ),
    LanguageFamily(
        name="llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3"),
        lora_sites=r"layers\.\d+\.self_attn\.[qkvo]_proj",
        layers="layers",
    ),
    LanguageFamily(name="generic", model_types=()),
)

LANGUAGE_FAMILIES = Registry("language family", {row.name: row for row in _ROWS})


def family_of(model_type: str) -> LanguageFamily:
    """The row for a ``config.model_type``; the generic row for any that no row names."""
    return next(
        (row for row in LANGUAGE_FAMILIES.values() if model_type in row.model_types), LANGUAGE_FAMILIES["generic"]
    )
