"""Apply Bridge to Model and Load Vision Model: the vision side of a bridge."""

from __future__ import annotations

import logging
from typing import Any

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from . import folders, lora
from .bridge import ConnectedBridge
from .notice import notice, take_back
from .same_bridge import listen
from .saved_model import bridges_in_file
from .schema import BridgeWire, advanced, schema
from .timed import follow
from .vision_model import class_of, is_vision_model, latent_format, load, lora_keys, refuse_misfit
from .window import within

APPLIED = "lavi_bridge"  # the attachment of a model that says which bridge's LoRA it has


def apply(
    model: ModelPatcher, bridge: ConnectedBridge, strength: float, start: float = 0.0, end: float = 1.0
) -> ModelPatcher:
    """A clone of ``model`` with the bridge's vision LoRA and latent scale; the model itself where nothing changes.

    start, end: the part of the sampling in which the LoRA acts, 0 to 1. Raises ValueError where the bridge was made for
    another model, where the LoRA of a bridge is in the model already, and where the part is none.
    """
    from ..lavi_core.vision import VISION_TARGETS

    take_back()
    refuse_misfit(model, bridge.name, bridge.config)
    if start >= end:
        raise ValueError(f"start_percent {start:g} is not before end_percent {end:g}: the LoRA would act at no step")
    trained = bridge.config.vision
    bridged = model
    timed = bridge.clip.cond_stage_model.adapter.hears_timestep
    if not bridge.vision_lora and not timed:
        notice(f"Apply Bridge changes no weight: {bridge.name} has no LoRA for its vision model")
    elif bridge.vision_lora and strength:
        refuse_second(model, bridge)
        _tell_of_first(model, bridge)
        if (start, end) == (0.0, 1.0):
            bridged = model.clone()
            lora.add(bridged, deltas_of(bridge), keys_of(model, bridge), strength, _sides(model, bridge))
        else:
            bridged = within(model, patches(model, bridge), strength, start, end)
        bridged.set_attachments(APPLIED, bridge.name)
        deltas, keys = deltas_of(bridge), keys_of(model, bridge)
        listen(bridged, bridge.name, bridge.config, lambda sampled: lora.times_in(sampled, deltas, keys))
    if timed:
        bridged = bridged if bridged is not model else model.clone()
        follow(bridged, bridge.clip.cond_stage_model.adapter_patcher)
    _check_objective(model, trained)
    return _with_latents(bridged, trained, VISION_TARGETS[trained.target])


def refuse_second(model: ModelPatcher, bridge: ConnectedBridge) -> None:
    """Raise ValueError where the LoRA of a bridge is in the model already."""
    before = model.get_attachment(APPLIED)
    if before is not None:
        raise ValueError(
            f"this model already has the LoRA of the bridge {before}, that of {bridge.name} would be added to it: "
            "take one of the two nodes (Apply Bridge to Model or Bridge as Hook) out, or set the strength of Apply "
            "Bridge to Model to 0; strengths that change while sampling are made by Bridge as Hook with keyframes"
        )


def _tell_of_first(model: ModelPatcher, bridge: ConnectedBridge) -> None:
    """Of a LoRA that is in the model without Apply Bridge's doing, as far as it can be known."""
    keys, saved = keys_of(model, bridge), bridges_in_file(model)
    if saved:
        notice(
            f"this model was saved from a graph with the LoRA of {' and '.join(saved)}, and may have it in its weights "
            f"when Apply Bridge adds that of {bridge.name}: if so, take Apply Bridge out or set its strength to 0"
        )
    elif lora.times_in(model, deltas_of(bridge), keys):
        notice(
            f"the LoRA of {bridge.name} is in this model already, from a LoRA loader, and Apply Bridge adds it "
            "once more: take one of the two out"
        )


def patches(model: ModelPatcher, bridge: ConnectedBridge) -> dict[Any, Any]:
    """The bridge's vision LoRA as the host's patches for hooks on ``model``. Raises ValueError where the bridge was
    made for another, where the LoRA of a bridge is in the model already, and where its weights take no hooks."""
    refuse_misfit(model, bridge.name, bridge.config)
    refuse_second(model, bridge)
    keys = keys_of(model, bridge)
    whole = (key if isinstance(key, str) else key[0] for key in keys.values())
    if any(hasattr(comfy.utils.get_attr(model.model, key), "tensor_type") for key in whole):
        raise ValueError(
            "the weights of this model are packed (ComfyUI-GGUF), and ComfyUI's hooks patch no packed ones: take Apply "
            "Bridge to Model for the whole sampling, or the model as .safetensors"
        )
    return lora.patches(model, deltas_of(bridge), keys, _sides(model, bridge))


def deltas_of(bridge: ConnectedBridge) -> dict[str, Any]:
    """The bridge's vision LoRA by the names that it has in a file, matrices that the host keeps as one joined."""
    from ..lavi_core.vision import VISION_TARGETS
    from ..lavi_core.vision.keys import joined

    return joined(bridge.vision_lora, VISION_TARGETS[bridge.config.vision.target].keys)


def keys_of(model: ModelPatcher, bridge: ConnectedBridge) -> dict[str, Any]:
    """Name of ``deltas_of`` -> the host's key of that weight, where it has one."""
    from ..lavi_core.vision import VISION_TARGETS

    return lora_keys(model, VISION_TARGETS[bridge.config.vision.target], deltas_of(bridge))


def _sides(model: ModelPatcher, bridge: ConnectedBridge) -> str:
    trained = bridge.config.vision.model_id
    return f"this model ({class_of(model)}), the bridge {bridge.name} being made for {trained}"


def _with_latents(model: ModelPatcher, trained: Any, target: Any) -> ModelPatcher:
    """Latents of another scale than the bridge's are put right, in a clone, where the row says so; else warned of."""
    scale = model.get_model_object("latent_format").scale_factor
    if abs(scale - trained.latent_scale) <= 1e-3 * trained.latent_scale:
        return model
    if not target.sets_latent_scale:
        logging.warning(
            "LaVi-Bridge: trained on latents scaled by %g, this model's are scaled by %g", trained.latent_scale, scale
        )
        return model
    if trained.fingerprint is None:
        notice(
            f"this model's latents, scaled by {scale:g}, are taken as {trained.model_id}'s, scaled by "
            f"{trained.latent_scale:g}: if it is no {trained.model_id}, import the adapter with --vision-model"
        )
    right = model.clone()
    right.add_object_patch("latent_format", latent_format(trained.latent_channels, trained.latent_scale))
    return right


def _check_objective(model: ModelPatcher, trained: Any) -> None:
    kinds = {"epsilon": ("EPS",), "v_prediction": ("V_PREDICTION",), "flow": ("FLOW", "FLUX", "FLOW_COSMOS")}
    if model.model.model_type.name not in kinds[trained.objective]:
        notice(
            f"trained on a model that predicts {trained.objective}, this one is of type {model.model.model_type.name}; "
            "the pictures may suffer"
        )


def _share(name: str, default: float, tooltip: str) -> Any:
    return advanced(io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, optional=True, tooltip=tooltip))


class ApplyBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeApply",
            display_name="Apply Bridge to Model (LaVi-Bridge)",
            description="Adds the bridge's LoRA to the vision model, so that it hears the language model.",
            search_aliases=["lavi", "vision lora"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The vision model that the bridge was trained with, or one of its kind."
                ),
                BridgeWire.Input("bridge", tooltip="From Load Bridge."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the bridge's LoRA in the vision model: 1 = as trained, 0 = none.",
                ),
                _share("start_percent", 0.0, "Share of the sampling at which the LoRA begins to act."),
                _share("end_percent", 1.0, "Share of the sampling at which the LoRA ceases to act."),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="A clone with the LoRA added, for the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        bridge: ConnectedBridge,
        strength: float,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        return io.NodeOutput(apply(model, bridge, strength, start_percent, end_percent))


class LoadVisionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeLoadVisionModel",
            display_name="Load Vision Model (diffusers folder, LaVi-Bridge)",
            description="A diffusers folder of any shape (U-Net, PixArt, SD3, Flux, Chroma, Lumina 2, Wan and others) "
            "as a MODEL, also where the stock loaders do not recognise it or take it for another.",
            search_aliases=["diffusers", "unet loader", "flux", "sd3", "chroma", "lumina"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=folders.names(*folders.VISION, folder=is_vision_model),
                    tooltip="A folder with unet/ or transformer/, and scheduler/, as diffusers saves them, in "
                    "models/diffusers or models/diffusion_models.",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The model, as a stock loader would give it.")],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return folders.problem("vision model", model, *folders.VISION)

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **_: Any) -> str:
        return folders.stamp("vision model", model, *folders.VISION)

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        return io.NodeOutput(load(folders.resolve("vision model", model, *folders.VISION)))
