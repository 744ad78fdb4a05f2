"""Anima's llm_adapter: Qwen3-0.6B, asked with T5's token ids, to Cosmos-Predict2's network. In the vision model's file,
or alone (kohya's ``--llm_adapter_path``).

Names and text path as in ComfyUI 0.33.0 (comfy/ldm/anima/model.py, comfy/text_encoders/anima.py), which are those of
diffusers 0.42.1 (``AnimaTextConditioner``). T5's tokenizer is in neither file.
"""

from __future__ import annotations

from ..config import AdapterConfig, VisionConfig
from ..prompt import PromptRecipe
from .dialect import Dialect, Preset, Shapes
from .key_map import key_map

KEYS = key_map(
    ("embed.*", "embed.*"),
    ("in_proj.*", "in_proj.*"),
    ("blocks.*", "blocks.*"),
    ("out_proj.*", "out_proj.*"),
    ("norm.weight", "norm.weight"),
)

PRESETS = {
    # Padding is heard by nobody, so that a prompt is what it is alone, at the length that it has.
    "anima": Preset(
        source="AnimaTEModel and Anima.preprocess_text_embeds of ComfyUI 0.33.0: the prompt alone, at its own length "
        "in both tokenizers, the states after the final norm, one padding token for the empty prompt; zeros up to 512 "
        "tokens behind what it gives",
        model_id="Qwen/Qwen3-0.6B-Base",
        family="llama",
        in_width=1024,
        prompt=PromptRecipe(max_length=4096, padding="longest", language_mask=True, vision_mask=True),
    )
}


def _adapter(shapes: Shapes, heads: int | None) -> AdapterConfig:
    """The heads are told by the norm of their keys."""
    width, in_width = shapes["blocks.0.cross_attn.k_proj.weight"]
    vocabulary, out = shapes["embed.weight"]
    return AdapterConfig(
        kind="token_queries",
        in_width=in_width,
        inner_width=width,
        out_width=out,
        vocabulary=vocabulary,
        depth=shapes.count("blocks."),
        heads=heads or width // shapes["blocks.0.cross_attn.k_norm.weight"][0],
    )


def vision(adapter: AdapterConfig) -> VisionConfig:
    """Anima's network, whatever it was trained into since."""
    return VisionConfig(
        model_id="Anima",
        target="cosmos",
        context_width=adapter.out_width,
        objective="flow",
        latent_channels=16,
        latent_scale=1.0,  # they are scaled channel by channel
        fingerprint=None,
    )


ANIMA = Dialect(
    what="Anima's llm_adapter",
    signs=("embed.weight", ".norm_cross_attn.", ".cross_attn.k_norm."),
    unless=("anima_v2_connector.",),  # which asks with what this one has made
    adapter=_adapter,
    keys=KEYS,
    prefixes=("llm_adapter.", "net.llm_adapter.", "model.diffusion_model.llm_adapter.", ""),
    query_tokenizer="T5's",
    presets=PRESETS,
    vision=vision,
)
