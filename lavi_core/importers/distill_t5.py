"""DistillT5's file -> the ``projection``; as written by github.com/LifuWang-66/DistillT5 @ce634e8 (arXiv 2503.19897).

Its model.safetensors holds a T5 encoder, which is trained with the projection behind it: the same file, or its folder,
is the language model of the bridge. Flux takes the pooled vector of CLIP-L beside it, as ever.
"""

from __future__ import annotations

from ..config import AdapterConfig
from ..prompt import PromptRecipe
from .lone_file import LoneFile, Shapes


def configure(shapes: Shapes) -> AdapterConfig:
    inner, width = shapes["final_projection.0.weight"]
    out = shapes["final_projection.3.weight"][0]
    return AdapterConfig(kind="projection", in_width=width, inner_width=inner, out_width=out)


DISTILL_T5 = LoneFile(
    what="DistillT5",
    signs=("final_projection.0.weight", "final_projection.3.weight"),
    keys=(("final_projection.", "net."),),
    elsewhere=("encoder.",),  # the language model
    configure=configure,
    prompt=PromptRecipe(max_length=512, language_mask=False, vision_mask=False),
    source="inference_flux.py, by diffusers' FluxPipeline: 512 tokens, no mask, so that padding is attended (the "
    "default of train_flux.py is 77 tokens, their ComfyUI node pads to 256)",
)
