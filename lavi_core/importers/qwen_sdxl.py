"""qwen-sdxl-adapter's files -> the ``perceiver``; as written by github.com/cosmicoxytocin/qwen-sdxl-adapter @23b24e7.

A safetensors file without metadata: ``adapter_step_N.safetensors``, the state of CausalToSpatialPerceiverBridge.
"""

from __future__ import annotations

from ..config import AdapterConfig
from ..prompt import PromptRecipe
from .lone_file import LoneFile, Shapes

HEADS = 16  # in their code, and not to be read from a file


def configure(shapes: Shapes, heads: int = HEADS) -> AdapterConfig:
    """The last of the queries is the pooled vector's."""
    _, queries, width = shapes["latent_queries"]
    return AdapterConfig(
        kind="perceiver",
        in_width=width,
        inner_width=width,
        out_width=shapes["ctx_proj.weight"][0],
        pooled_width=shapes["pool_proj.2.weight"][0],
        tokens=queries - 1,
        depth=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        heads=heads,
    )


QWEN_SDXL = LoneFile(
    what="an adapter of qwen-sdxl-adapter",
    signs=("latent_queries", ".cross_attn.to_kv.", "ctx_proj.", "pool_proj."),
    keys=(
        ("latent_queries", "queries"),
        ("blocks.", "blocks."),
        ("ctx_proj.", "proj_out."),
        ("pool_proj.", "pool_proj."),
    ),
    configure=configure,
    prompt=PromptRecipe(max_length=256, language_mask=True, vision_mask=False, no_token="masked"),
    source="scripts/inference.py: the prompt alone, cut and padded to 256 tokens, the states after the final norm, "
    "padding masked, of the empty prompt all of it; 16 heads",
)
