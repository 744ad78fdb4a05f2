"""The LLM-to-SDXL adapters published as RouWei-Gemma and RouWei-T5Gemma, in the layouts that there are of them.

Names and text paths as in github.com/NeuroSenko/ComfyUI_LLM_SDXL_Adapter at 77c1e6c; layouts with the attention's
matrices apart as in lRemixl/ComfyUI_LLM_SDXL_Adapter_Additions at a080ee0 and LingyeSoul/ComfyUI_LLM_SDXL_Adapter_Turbo
at 93973b5.
"""

from __future__ import annotations

from itertools import product

from ..config import AdapterConfig
from ..prompt import PromptRecipe
from .dialect import Dialect, Preset, Shapes, published_vision
from .key_map import KeyMap, key_map

_SYSTEM = (
    "You are expert in understanding of user prompts for image generations. Create an image according to the prompt "
    "from user."
)
_REST = (
    ("norm_in.*", "input_norm.*"),
    ("proj_in.*", "seq_projection.*"),
    ("positions_in", "input_position_embeddings"),
    ("queries", "compression_queries"),
    ("gate.*", "compression_gate.0.*"),
    ("norm.*", "compression_norm.*"),
    ("positions_out", "output_position_embeddings"),
    ("pooling_token", "pooling_token"),
    ("pool_proj.0.*", "pooled_projection.0.*"),
    ("pool_proj.1.*", "pooled_projection.1.*"),
    ("pool_proj.3.*", "pooled_projection.4.*"),  # theirs has a Dropout before it
    *(
        (f"{ours}.#.{part}.*", f"{theirs}.#.{part}.*")
        for (ours, theirs), part in product(
            (("wide", "wide_attention_blocks"), ("narrow", "narrow_attention_blocks")), ("norm1", "norm2", "mlp")
        )
    ),
)


def _keys(blocks: str, compression: str, pooling: str, apart: bool, out: str = "out_proj") -> KeyMap:
    """blocks, compression, pooling: what stands before the names of attention's matrices. apart: query, key and value
    are matrices of their own. out: name of the last one."""
    places = (
        ("wide.#.attn.", f"wide_attention_blocks.#.{blocks}"),
        ("narrow.#.attn.", f"narrow_attention_blocks.#.{blocks}"),
        ("compression.", compression),
        ("pooling.", pooling),
    )
    pairs: list[tuple[str, str | tuple[str, ...]]] = [*_REST]
    for ours, theirs in places:
        pairs.append((f"{ours}out_proj.*", f"{theirs}{out}.*"))
        for part in ("weight", "bias"):
            three = tuple(f"{theirs}{one}_proj.{part}" for one in "qkv")
            pairs.append((f"{ours}in_proj_{part}", three if apart else f"{theirs}in_proj_{part}"))
    return key_map(*pairs)


PRESETS = {
    "gemma": Preset(
        source="LLM Text Encoder of github.com/NeuroSenko/ComfyUI_LLM_SDXL_Adapter at 77c1e6c with its default system "
        "prompt: Gemma 3's chat template, of which the tokens before the prompt are cut (its skip_first), no padding; "
        "16 heads are its adapter's",
        model_id="google/gemma-3-1b-it",
        family="llama",
        in_width=1152,
        depth=2,
        heads=16,
        prompt=PromptRecipe(
            template=f"<bos><start_of_turn>user\n{_SYSTEM}\n\n{{prompt}}<end_of_turn>\n<start_of_turn>model\n",
            max_length=512,
            padding="longest",
            add_special_tokens=False,
            vision_mask=True,
            cut_template="before",
            strip=True,
        ),
    ),
    "t5gemma": Preset(
        source="T5Gemma Text Encoder of github.com/NeuroSenko/ComfyUI_LLM_SDXL_Adapter at 77c1e6c: <eos> after the "
        "prompt, padded to 512 on the tokenizer's own side, which of Gemma's is the left; 16 heads are its adapter's",
        model_id="google/t5gemma-2b-2b-ul2",
        family="",
        in_width=2304,
        depth=3,
        heads=16,
        own_side=True,
        prompt=PromptRecipe(
            template="{prompt}<eos>", max_length=512, padding_side="left", language_mask=True, vision_mask=True
        ),
    ),
}


def _adapter(shapes: Shapes, heads: int | None) -> AdapterConfig:
    positions, width = shapes["input_position_embeddings"][1:]
    pooled = "pooling_token" in shapes
    return AdapterConfig(
        kind="compressor",
        in_width=shapes["seq_projection.weight"][1] if "seq_projection.weight" in shapes else width,
        inner_width=width,
        out_width=width,
        pooled_width=shapes["pooled_projection.4.weight"][0] if pooled else None,
        tokens=shapes["compression_queries"][1],
        depth=shapes.count("wide_attention_blocks."),
        narrow_depth=shapes.count("narrow_attention_blocks."),
        heads=heads,
        outer_norms="input_norm.weight" in shapes,
        positions=positions,
    )


def _dialect(what: str, keys: KeyMap, *signs: str) -> Dialect:
    return Dialect(
        what=what,
        signs=("compression_queries", *signs),
        adapter=_adapter,
        keys=keys,
        presets=PRESETS,
        vision=published_vision("RouWei (Stable Diffusion XL)", "sdxl"),
    )


_NAME = "an LLM-to-SDXL adapter (RouWei)"
_APART = ("attn.", "compression_attention.", "pooling_attention.")
ROUWEI = _dialect(_NAME, _keys(*_APART, apart=False), ".attn.in_proj_weight")
ROUWEI_UNFUSED = _dialect(f"{_NAME}, unfused", _keys(*_APART, apart=True), ".attn.q_proj.", ".attn.out_proj.")
ROUWEI_UNFUSED_O = _dialect(  # of trainings that call the last matrix so, as lRemixl's loader says
    f"{_NAME}, unfused, with o_proj", _keys(*_APART, apart=True, out="o_proj"), ".attn.q_proj.", ".attn.o_proj."
)
ROUWEI_TURBO = _dialect(f"{_NAME}, of Turbo", _keys("", "compression_", "pooling_", apart=True), "compression_q_proj.")
