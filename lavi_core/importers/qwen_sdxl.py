"""qwen-sdxl-adapter's connector: ``adapter_step_N.safetensors``.

Names and text path as in github.com/cosmicoxytocin/qwen-sdxl-adapter at 23b24e7 (src/models, scripts/inference.py).
"""

from __future__ import annotations

from ..config import AdapterConfig
from ..prompt import PromptRecipe
from .dialect import Dialect, Preset, Shapes, published_vision
from .key_map import key_map

KEYS = key_map(
    ("queries", "latent_queries"),
    ("blocks.*", "blocks.*"),
    ("proj_out.*", "ctx_proj.*"),
    ("pool_proj.*", "pool_proj.*"),
)

PRESETS = {
    "qwen-sdxl": Preset(
        source="scripts/inference.py of github.com/cosmicoxytocin/qwen-sdxl-adapter at 23b24e7: the prompt alone, cut "
        "and padded to 256 tokens, the states after the final norm, padding masked, of the empty prompt all of it; 16 "
        "heads are its src/models/bridge.py's, whatever its config says",
        model_id="Qwen/Qwen3.5-0.8B-Base",
        family="generic",
        in_width=1024,
        prompt=PromptRecipe(max_length=256, language_mask=True, vision_mask=False, no_token="masked"),
        own_side=True,
        heads=16,
    )
}


def _adapter(shapes: Shapes, heads: int | None) -> AdapterConfig:
    """The last of the queries is the pooled vector's."""
    _, queries, width = shapes["latent_queries"]
    return AdapterConfig(
        kind="perceiver",
        in_width=width,
        inner_width=width,
        out_width=shapes["ctx_proj.weight"][0],
        pooled_width=shapes["pool_proj.2.weight"][0],
        tokens=queries - 1,
        depth=shapes.count("blocks."),
        heads=heads,
    )


QWEN_SDXL = Dialect(
    what="an adapter of qwen-sdxl-adapter",
    signs=("latent_queries", ".cross_attn.to_kv.", "ctx_proj.", "pool_proj."),
    adapter=_adapter,
    keys=KEYS,
    presets=PRESETS,
    vision=published_vision("Stable Diffusion XL", "sdxl"),
)
