"""A diffusers ``UNet2DConditionModel`` folder as a stock ComfyUI model, whatever its shape.

The host's own detection knows eighteen exact shapes; this builds the host's ``UNetModel`` from the folder's configs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
from safetensors import SafetensorError

from . import folders

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")

# What the host's UNetModel has no knob for: the only value, and diffusers' own default, of each key.
DEMANDS: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}

BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "squaredcos_cap_v2"}


class DiffusersUNet(comfy.supported_models_base.BASE):
    """The host's description of one such U-Net: its shape, what it predicts, its latents."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (the host's own form)

    def __init__(self, unet: dict[str, Any], scheduler: dict[str, Any], latent_scale: float):
        super().__init__(shape(unet))
        self.predicts, self.sampling_settings = sampling(scheduler)
        self.latent_format = Latents(unet.get("in_channels", 4), latent_scale)

    def model_type(self, state_dict: dict[str, Any], prefix: str = "") -> comfy.model_base.ModelType:
        return self.predicts


class Latents(comfy.latent_formats.SD15):
    """Latents of any width and scale; only four channels are worth the preview colours of SD 1.x."""

    def __init__(self, channels: int, scale: float):
        super().__init__(scale)
        self.latent_channels = channels
        if channels != 4:
            self.latent_rgb_factors = self.taesd_decoder_name = None


def shape(config: dict[str, Any]) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's U-Net cannot be."""
    for key, only in DEMANDS.items():
        if config.get(key, only) != only:
            raise ValueError(f"this U-Net has {key} = {config[key]!r} and ComfyUI's U-Net knows {only!r} only")
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    if not isinstance(layers, int):
        raise ValueError(f"this U-Net has layers_per_block = {layers!r} and ComfyUI's U-Net needs one number for all")
    for width in widths:
        if width % widths[0]:
            raise ValueError(f"this U-Net has block_out_channels {widths}: ComfyUI needs whole multiples of the first")
    levels = len(widths)
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * levels if isinstance(depths, int) else depths
    down = [_depth(kind, depth) for kind, depth in zip(config["down_block_types"], depths, strict=True)]
    up = [_depth(kind, depth) for kind, depth in zip(config["up_block_types"][::-1], depths, strict=True)]
    return {
        "image_size": 32,
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * levels,
        "transformer_depth": [depth for depth in down for _ in range(layers)],
        "transformer_depth_output": [depth for depth in up for _ in range(layers + 1)],
        "transformer_depth_middle": depths[-1],
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "use_spatial_transformer": True,
        "adm_in_channels": None,
        "legacy": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        **_heads(config, widths),
    }


def _depth(block: str, depth: int) -> int:
    if block in ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"):
        return depth
    if block in ("DownBlock2D", "UpBlock2D"):
        return 0
    raise ValueError(f"this U-Net has a {block} and ComfyUI's U-Net has cross-attention and plain blocks only")


def _heads(config: dict[str, Any], widths: list[int]) -> dict[str, int]:
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)  # diffusers: a number of heads
    heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    head_widths = [width // count for width, count in zip(widths, heads, strict=True)]
    if len(set(heads)) == 1:
        return {"num_heads": heads[0], "num_head_channels": -1}
    if len(set(head_widths)) == 1:
        return {"num_heads": -1, "num_head_channels": head_widths[0]}
    raise ValueError(
        f"this U-Net has {heads} heads at widths {widths}: ComfyUI needs one number of heads or one head width"
    )


def sampling(scheduler: dict[str, Any]) -> tuple[comfy.model_base.ModelType, dict[str, Any]]:
    """What the network predicts and on which noise schedule, from ``scheduler_config.json``."""
    kinds = comfy.model_base.ModelType
    if "FlowMatch" in scheduler.get("_class_name", "") or scheduler.get("prediction_type") == "flow_prediction":
        return kinds.FLOW, {"shift": scheduler.get("shift", scheduler.get("flow_shift", 1.0)), "multiplier": 1000}
    predicts = scheduler.get("prediction_type", "epsilon")
    betas = scheduler.get("beta_schedule", "linear")
    if predicts not in ("epsilon", "v_prediction") or betas not in BETAS or scheduler.get("trained_betas"):
        raise ValueError(
            f"the scheduler predicts {predicts!r} on {betas!r} betas; this node knows epsilon, v_prediction and flow "
            f"matching, on {', '.join(BETAS)} betas without trained_betas"
        )
    return kinds.EPS if predicts == "epsilon" else kinds.V_PREDICTION, {
        "beta_schedule": BETAS[betas],
        "linear_start": scheduler.get("beta_start", 0.0001),
        "linear_end": scheduler.get("beta_end", 0.02),
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "zsnr": scheduler.get("rescale_betas_zero_snr", False),
    }


def host_names(state: dict[str, Any], unet_config: dict[str, Any]) -> dict[str, Any]:
    """The weights under the host's names; every one of them must have a name there."""
    known = comfy.utils.unet_to_diffusers(unet_config)
    lost = [key for key in state if key not in known]
    if lost:
        raise ValueError(f"{len(lost)} of {len(state)} weights have no place in ComfyUI's U-Net, the first: {lost[0]}")
    return {known[key]: weight for key, weight in state.items()}


def load(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Build, fill and hand to the host's memory management; same steps as ``load_diffusion_model_state_dict``."""
    management = comfy.model_management
    model_config = DiffusersUNet(*configs(folder))
    state = host_names(_weights(network(folder)), model_config.unet_config)
    management.throw_exception_if_processing_interrupted()
    device = management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(state)
    supported = list(model_config.supported_inference_dtypes)
    dtype = management.unet_dtype(
        model_params=parameters, supported_dtypes=supported, weight_dtype=comfy.utils.weight_dtype(state)
    )
    model_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = model_config.get_model(state, "")
    missing = model.diffusion_model.state_dict().keys() - state.keys()
    if missing:
        raise ValueError(f"{folder.name} lacks {len(missing)} weights of its U-Net, the first: {min(missing)}")
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


def network(folder: Path) -> Path:
    """The folder of the network itself: ``unet/`` of a pipeline folder, or the folder given."""
    return folder / "unet" if (folder / "unet" / "config.json").is_file() else folder


def is_unet(path: Path) -> bool:
    """Whether this folder is one that ``load`` takes."""
    return folders.read_json(network(path) / "config.json").get("_class_name") == "UNet2DConditionModel"


def configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The U-Net's config, its scheduler's, and the scale of its latents."""
    from ..lavi_core.vision import VISION_TARGETS, latent_scale

    unet = folders.read_json(network(folder) / "config.json")
    pipeline = network(folder).parent
    scheduler = folders.read_json(pipeline / "scheduler" / "scheduler_config.json")
    if not scheduler:
        raise ValueError(
            f"{folder.name} has no scheduler/scheduler_config.json, so what its U-Net predicts is not known; "
            f"put it into {pipeline / 'scheduler'}"
        )
    return unet, scheduler, latent_scale(network(folder), VISION_TARGETS["unet"])


def _weights(folder: Path) -> dict[str, Any]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            try:
                return comfy.utils.load_torch_file(str(folder / name), safe_load=True)
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{folder / name} cannot be read ({error}): copy it again") from error
    raise ValueError(f"{folder} has neither {' nor '.join(WEIGHTS)}; other formats are not read")
