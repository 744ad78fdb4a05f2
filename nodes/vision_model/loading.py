"""A diffusers folder as a stock MODEL: built, filled and handed to the host's memory management."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils

from .folder import configs, network, weights
from .registry import host_model_of


def load(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Same steps as the host's ``load_diffusion_model_state_dict``. Raises ValueError for what the host cannot be."""
    from ...lavi_core.vision import latent_space

    management = comfy.model_management
    config, scheduler, row = configs(folder)
    host_model = host_model_of(row, f"the vision model {folder.name}")
    model_config = host_model.describe(config, scheduler, row, latent_space(network(folder), row))
    state = host_model.rename(weights(network(folder)), model_config.unet_config)
    management.throw_exception_if_processing_interrupted()
    device = management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(state)
    supported = list(model_config.supported_inference_dtypes)
    dtype = management.unet_dtype(
        model_params=parameters, supported_dtypes=supported, weight_dtype=comfy.utils.weight_dtype(state)
    )
    model_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = model_config.get_model(state, "")
    host_model.adjust(model)
    shapes = {name: weight.shape for name, weight in model.diffusion_model.state_dict().items()}
    if lost := state.keys() - shapes.keys():
        raise ValueError(
            f"{len(lost)} of {len(state)} weights of {folder.name} have no place in ComfyUI's "
            f"{type(model.diffusion_model).__name__}, the first: {min(lost)}"
        )
    if missing := shapes.keys() - state.keys():
        raise ValueError(f"{folder.name} lacks {len(missing)} weights of its network, the first: {min(missing)}")
    if other := [name for name in sorted(shapes) if state[name].shape != shapes[name]]:
        raise ValueError(
            f"{len(other)} of {len(state)} weights of {folder.name} have other shapes than its config.json says, the "
            f"first: {other[0]} is {list(state[other[0]].shape)}, not {list(shapes[other[0]])}: copy both again"
        )
    kind = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        kind = getattr(comfy.model_patcher, "CoreModelPatcher", kind)
    patcher = kind(model, load_device=device, offload_device=management.unet_offload_device())
    if not management.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    model.load_model_weights(state, "", **({"assign": True} if dynamic else {}))
    patcher.cached_patcher_init = (load, (folder,))  # how the host makes a second copy of this model
    return patcher
