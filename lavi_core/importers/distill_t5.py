"""DistillT5 (arXiv 2503.19897), a T5-Base in the place of Flux's T5-XXL: ``model.safetensors``.

Names and text path as in github.com/LifuWang-66/DistillT5 at ce634e8 (models/T5_encoder.py, inference_flux.py). The
file holds the encoder, which is trained with the projection behind it: the same file, or its folder, is the language
model of the bridge. Flux takes the pooled vector of CLIP-L beside it, as ever.
"""

from __future__ import annotations

from ..config import AdapterConfig, VisionConfig
from ..prompt import PromptRecipe
from ..vision import VISION_TARGETS
from .dialect import Dialect, Preset, Shapes
from .key_map import key_map

KEYS = key_map(("net.*", "final_projection.*"))

PRESETS = {
    "distill-t5": Preset(
        source="inference_flux.py of github.com/LifuWang-66/DistillT5 at ce634e8, by diffusers' FluxPipeline: 512 "
        "tokens and no mask, so that padding is attended (the default of train_flux.py is 77, their ComfyUI node "
        "pads to 256)",
        model_id="LifuWang/DistillT5",
        family="t5",
        in_width=768,
        prompt=PromptRecipe(max_length=512, language_mask=False, vision_mask=False),
    )
}
POOLED = 768  # of CLIP-L


def _adapter(shapes: Shapes, heads: int | None) -> AdapterConfig:
    inner, width = shapes["final_projection.0.weight"]
    out = shapes["final_projection.3.weight"][0]
    return AdapterConfig(kind="projection", in_width=width, inner_width=inner, out_width=out)


def _vision(adapter: AdapterConfig) -> VisionConfig:
    scale = VISION_TARGETS["flux"].latent_scale
    assert isinstance(scale, float)
    return VisionConfig(
        model_id="FLUX.1-dev",
        target="flux",
        context_width=adapter.out_width,
        objective="flow",
        latent_channels=16,
        latent_scale=scale,
        fingerprint=None,
        other_pooled=POOLED,
    )


DISTILL_T5 = Dialect(
    what="DistillT5",
    signs=("final_projection.0.weight", "final_projection.3.weight"),
    adapter=_adapter,
    keys=KEYS,
    elsewhere=("encoder.",),
    presets=PRESETS,
    vision=_vision,
)
