"""A diffusers ``UNet2DConditionModel`` as the host's ``UNetModel``, whatever its shape.

The host's own detection knows eighteen exact shapes; this builds its network from the folder's configs.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.ops
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep, UNetModel
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .latents import latent_format
from .renaming import renamed
from .scheduler import sampling

# What the host's UNetModel has no knob for: the only value, and diffusers' own default, of each key.
DEMANDS: dict[str, Any] = {
    "act_fn": "silu",
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


class DiffusersUNet(comfy.supported_models_base.BASE):
    """The host's description of one such U-Net: its shape, what it predicts, its latents."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 (the host's own form)
    memory_usage_factor = comfy.supported_models.SD15.memory_usage_factor

    def __init__(self, unet: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any):
        super().__init__(shape(unet, row))
        self.predicts, self.sampling_settings = sampling(scheduler)
        self.latent_format = latent_format(unet.get("out_channels", 4), space.factor)
        self.norms = {"groups": unet.get("norm_num_groups", 32), "eps": unet.get("norm_eps", 1e-5)}
        self.size_width = unet["addition_time_embed_dim"] if row.size_ids else None

    def model_type(self, state_dict: dict[str, Any], prefix: str = "") -> comfy.model_base.ModelType:
        return self.predicts

    def inpaint_model(self) -> bool:
        return self.unet_config["in_channels"] > self.unet_config["out_channels"]

    def get_model(self, state_dict: dict[str, Any], prefix: str = "", device: Any = None) -> comfy.model_base.BaseModel:
        stock = comfy.ops.pick_operations(self.unet_config["dtype"], self.manual_cast_dtype)
        self.custom_operations = with_norms(stock, **self.norms)
        if self.size_width is None:
            return super().get_model(state_dict, prefix, device)
        model = comfy.model_base.SDXL(self, model_type=self.predicts, device=device)
        model.embedder = Timestep(self.size_width)
        return model


def with_norms(operations: Any, groups: int, eps: float) -> Any:
    """The host's operations, with group norms of so many groups, which its network takes for 32, and of this eps,
    where the network does not ask for another (those before its transformers do, as diffusers')."""

    class GroupNorm(operations.GroupNorm):
        def __init__(self, num_groups: int, num_channels: int, **options: Any):
            super().__init__(groups, num_channels, **{"eps": eps, **options})

    return type(operations.__name__, (operations,), {"GroupNorm": GroupNorm})


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's U-Net cannot be."""
    demand(config, DEMANDS, "U-Net")
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
    sizes: dict[str, Any] = {"adm_in_channels": None}
    if row.size_ids:
        sizes = {"adm_in_channels": config["projection_class_embeddings_input_dim"], "num_classes": "sequential"}
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
        "legacy": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        **sizes,
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


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    return renamed(state, comfy.utils.unet_to_diffusers(unet_config))


UNET = HostModel(network=UNetModel, context_weight="attn2.to_k.weight", describe=DiffusersUNet, rename=host_names)
