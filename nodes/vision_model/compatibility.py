"""Whether a bridge fits the vision model it is applied to."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.utils
from comfy.model_patcher import ModelPatcher

from .registry import host_model_of

SIZES = {comfy.model_base.SDXL: 6}  # how many the host's classes embed beside a pooled vector


def refuse_misfit(model: ModelPatcher, name: str, config: Any) -> None:
    """Raise ValueError, naming both sides, unless ``model`` is a network of the kind, context width and pooled width
    that the bridge ``name`` of this BridgeConfig was trained with."""
    from ...lavi_core.vision import VISION_TARGETS

    trained, pooled = config.vision, config.pooled_width or config.vision.other_pooled
    if isinstance(model.model, comfy.model_base.SDXLRefiner):
        raise ValueError(
            f"the bridge {name} speaks to {trained.model_id} in width {trained.context_width}, this model is SDXL's "
            f"refiner, which no bridge speaks to: apply it to {trained.model_id} and give the refiner a stock prompt"
        )
    made_for = f"the model {trained.model_id} of the bridge {name}"
    host_model = host_model_of(VISION_TARGETS[trained.target], made_for)
    network = model.model.diffusion_model
    offered, asked = f"in width {trained.context_width}", ""
    if not isinstance(network, host_model.network):
        asked = f"is built as {type(network).__name__}, not as {host_model.network.__name__}"
    elif not _has(model, host_model.told_by):
        asked = f"is another kind of {host_model.network.__name__}, without {host_model.told_by}"
    elif (width := weight_width(model, host_model.context_weight)) != trained.context_width:
        asked = f"listens in width {width}"
    elif (wanted := pooled_width(model, host_model.pooled_weight)) != pooled:
        offered = f"with {_pooled(pooled)}"
        asked = f"takes {_pooled(wanted)}"
    if asked:
        raise ValueError(
            f"the bridge {name} speaks to {trained.model_id} {offered}, this model ({class_of(model)}) "
            f"{asked}: load {trained.model_id} or a model of its kind"
        )


def class_of(model: ModelPatcher) -> str:
    """The host's class of a model, for messages: that of SD 1.x and 2.x is its base class."""
    name = type(model.model).__name__
    return "BaseModel, as of SD 1.x and 2.x" if name == "BaseModel" else name


def weight_width(model: ModelPatcher, ending: str) -> int | None:
    """How many columns the weight has whose name ends so, a context's or a pooled vector's; None = there is none."""
    name = next((name for name in model.model.state_dict() if name.endswith(ending)), None)
    # of a weight that is packed in blocks (ComfyUI-GGUF), the state dict has the packed shape
    return None if name is None else comfy.utils.get_attr(model.model, name).shape[1]


def pooled_width(model: ModelPatcher, pooled_weight: str) -> int | None:
    """The width of the pooled vector that this model asks for; None = it takes none."""
    if pooled_weight:
        return weight_width(model, pooled_weight)
    sizes = next((count for kind, count in SIZES.items() if isinstance(model.model, kind)), None)
    return None if sizes is None else model.model.adm_channels - sizes * model.model.embedder.dim


def _has(model: ModelPatcher, ending: str) -> bool:
    return any(name.endswith(ending) for name in model.model.state_dict())


def _pooled(width: int | None) -> str:
    return "no pooled vector" if width is None else f"a pooled vector of width {width}"
