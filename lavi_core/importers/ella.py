"""ELLA's connector for Stable Diffusion 1.5 (arXiv 2403.05135): ``ella-sd1.5-tsc-t5xl.safetensors``.

Names and text path as in github.com/TencentQQGYLab/ELLA at 3c228f1 (model.py, inference.py).
"""

from __future__ import annotations

from ..config import AdapterConfig
from ..prompt import PromptRecipe
from .dialect import Dialect, Preset, Shapes, published_vision
from .key_map import key_map

_BLOCK = "connector.perceiver_blocks.#"
KEYS = key_map(
    ("latents", "connector.latents"),
    ("proj_in.*", "connector.proj_in.*"),
    ("time_shift.*", "connector.time_aware_linear.*"),
    ("time_embedding.*", "time_embedding.*"),
    ("blocks.#.attn.*", f"{_BLOCK}.attn.*"),
    ("blocks.#.mlp.*", f"{_BLOCK}.mlp.c_*"),
    ("blocks.#.norm_latents.*", f"{_BLOCK}.ln_1.*"),
    ("blocks.#.norm_states.*", f"{_BLOCK}.ln_2.*"),
    ("blocks.#.norm_mlp.*", f"{_BLOCK}.ln_ff.*"),
)

_HEADS = "8 heads are its model.py's"
PRESETS = {
    # Padding is heard by neither model, so that a prompt is what it is alone, at the length that it has.
    "ella": Preset(
        source="the T5TextEmbedder of github.com/TencentQQGYLab/ELLA at 3c228f1, at the flexible length that its "
        f"README recommends; the empty prompt is encoded as any other; {_HEADS}",
        model_id="google/flan-t5-xl",
        family="t5",
        in_width=2048,
        prompt=PromptRecipe(max_length=4096, padding="longest", language_mask=True, vision_mask=True),
        heads=8,
    ),
    "ella-fixed": Preset(
        source="generate_image_with_fixed_max_length of github.com/TencentQQGYLab/ELLA at 3c228f1: every prompt at 128 "
        f"tokens, whose padding the connector hears, the language model not; {_HEADS}",
        model_id="google/flan-t5-xl",
        family="t5",
        in_width=2048,
        prompt=PromptRecipe(max_length=128, language_mask=True, adapter_mask=False),
        heads=8,
        if_named=True,
    ),
}


def _adapter(shapes: Shapes, heads: int | None) -> AdapterConfig:
    width, in_width = shapes["connector.proj_in.weight"]
    return AdapterConfig(
        kind="timestep_resampler",
        in_width=in_width,
        inner_width=width,
        out_width=width,
        tokens=shapes["connector.latents"][0],
        depth=shapes.count("connector.perceiver_blocks."),
        heads=heads,
        outer_norms=False,
        timestep_channels=shapes["time_embedding.linear_1.weight"][1],
    )


ELLA = Dialect(
    what="an ELLA connector",
    signs=("connector.latents", "connector.perceiver_blocks."),
    adapter=_adapter,
    keys=KEYS,
    presets=PRESETS,
    vision=published_vision("Stable Diffusion 1.5", "sd1"),
)
