"""gguf-trainer's seeded resampler: pig_clip, a student of Qwen3's layout, to PixArt in the place of T5-XXL.

Names and shapes as in gguf-trainer 0.0.14 (``ResamplerAdapter`` of adapter.py, export.py), of its GGUF files. T5's
tokenizer is not in them.
"""

from __future__ import annotations

from ..config import AdapterConfig
from ..prompt import PromptRecipe
from .dialect import Dialect, GGUFHeader, Preset, Shapes, published_vision
from .key_map import key_map

HEAD_WIDTH = 64  # of its engine, whatever the width

_PARTS = ("q", "k", "v")
KEYS = key_map(
    ("queries", "query"),
    ("embed.weight", "t5_embed.weight"),
    ("in_proj.*", "in_proj.*"),
    ("blocks.#.norm_self.*", "blocks.#.ln_self.*"),
    ("blocks.#.norm_queries.*", "blocks.#.ln_q.*"),
    ("blocks.#.norm_states.*", "blocks.#.ln_kv.*"),
    ("blocks.#.norm_mlp.*", "blocks.#.ln_mlp.*"),
    *(
        (f"blocks.#.{attention}.in_proj_{kind}", tuple(f"blocks.#.{attention}.{part}.{kind}" for part in _PARTS))
        for attention in ("self_attn", "cross_attn")
        for kind in ("weight", "bias")
    ),
    ("blocks.#.self_attn.out_proj.*", "blocks.#.self_attn.o.*"),
    ("blocks.#.cross_attn.out_proj.*", "blocks.#.cross_attn.o.*"),
    ("blocks.#.mlp.*", "blocks.#.mlp.*"),
    ("norm.*", "ln_out.*"),
    ("out_proj.*", "out_proj.*"),
)

PRESETS = {
    "gguf-trainer-pixart": Preset(
        source="the pack t5xxl_pixart of gguf-trainer 0.0.14: the prompt without a template or special tokens, one "
        "padding token for the empty one, the states after the final norm; asked with T5's ids and its end token, at "
        "most 120",
        model_id="pig_clip",
        family="llama",
        in_width=1024,
        prompt=PromptRecipe(max_length=256, padding="longest", language_mask=True, vision_mask=True),
    )
}


def _adapter(shapes: Shapes, heads: int | None) -> AdapterConfig:
    tokens, width = shapes["query"]
    return AdapterConfig(
        kind="seeded_resampler",
        in_width=shapes["in_proj.weight"][1],
        inner_width=width,
        out_width=shapes["out_proj.weight"][0],
        tokens=tokens,
        vocabulary=shapes["t5_embed.weight"][0],
        depth=shapes.count("blocks."),
        heads=heads or _heads(width),
    )


def _heads(width: int) -> int:
    return max(1, width // HEAD_WIDTH)


def _header(adapter: AdapterConfig) -> GGUFHeader:
    """What its ``gguf_adapter_model`` asks for; its engine goes by the shapes. Raises ValueError for heads of another
    width than that takes."""
    assert adapter.depth is not None and adapter.heads is not None and adapter.tokens is not None
    if adapter.heads != _heads(adapter.inner_width):
        raise ValueError(
            f"gguf-trainer's files have a head for each {HEAD_WIDTH} channels, {_heads(adapter.inner_width)} of "
            f"{adapter.inner_width}, the bridge's adapter has {adapter.heads}, and would be read as another: train one "
            "with adapter.heads left out"
        )
    sizes = {"in_dim": adapter.in_width, "out_dim": adapter.out_width, "width": adapter.inner_width}
    sizes |= {"depth": adapter.depth, "heads": adapter.heads, "num_queries": adapter.tokens}
    keys = {f"adapter.{name}": size for name, size in sizes.items()}
    return GGUFHeader(architecture="pig", keys=keys, float32=("adapter.query",))


GGUF_TRAINER = Dialect(
    what="a seeded resampler of gguf-trainer",
    signs=("query", "t5_embed.weight", ".ln_kv."),
    adapter=_adapter,
    keys=KEYS,
    prefixes=("adapter.",),
    query_tokenizer="T5's",
    gguf=_header,
    presets=PRESETS,
    vision=published_vision("PixArt-alpha", "pixart"),
)
