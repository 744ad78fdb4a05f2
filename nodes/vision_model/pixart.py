"""A diffusers ``PixArtTransformer2DModel`` as the host's PixArt, whatever its size.

The host's own detection takes every checkpoint for one of width 1152 with 16 heads, and that of 512 pixels for
PixArt-Sigma.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.pixart.pixartms import PixArtMS, get_2d_sincos_pos_embed_torch
from torch import Tensor

from .folder import demand
from .host_model import HostModel
from .latents import latent_format
from .renaming import renamed
from .scheduler import sampling

# What the host's PixArtMS has no knob for: the only value of each key.
DEMANDS: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "double_self_attention": False,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
    "only_cross_attention": False,
}

# What sampling never reads: the caption that training drops to, absent in newer files, of 120 tokens in the host's
# network; and the positions, which some files hold.
CAPTION, CAPTION_TOKENS = "caption_projection.y_embedding", 120
POSITIONS = "pos_embed.pos_embed"


class DiffusersPixArt(comfy.supported_models.PixArtAlpha):
    """The host's description of one such transformer: its shape, what it predicts, its latents."""

    def __init__(self, config: dict[str, Any], scheduler: dict[str, Any], row: Any, space: Any):
        super().__init__(shape(config, row))
        self.predicts, self.sampling_settings = sampling(scheduler)
        self.latent_format = latent_format(self.unet_config["in_channels"], space.factor)

    def get_model(self, state_dict: dict[str, Any], prefix: str = "", device: Any = None) -> comfy.model_base.PixArt:
        return PixArtModel(self, self.predicts, device).eval()


class PixArtModel(comfy.model_base.PixArt):
    """The host's PixArt over a network that knows its own positions."""

    def __init__(self, model_config: DiffusersPixArt, model_type: comfy.model_base.ModelType, device: Any):
        network: Any = PositionedPixArt
        super(comfy.model_base.PixArt, self).__init__(model_config, model_type, device=device, unet_model=network)


class PositionedPixArt(PixArtMS):
    """The host's PixArtMS derives its positions from the picture and has none below 33 latents a side; here they are
    those of diffusers: ``base_size`` patches of the trained size, ``pe_interpolation`` of them to one step."""

    def __init__(self, *, base_size: int, **config: Any):
        super().__init__(**config)
        self.base_size = base_size

    def forward_orig(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: None = None,
        c_size: Tensor | None = None,
        c_ar: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """x [B C H W], timestep [B], y [B 1 T context], sizes [B 2] and shapes [B 1] where the checkpoint has them ->
        [B out H W]. As PixArtMS.forward_orig but for the positions; arXiv 2310.00426, 2.3. Raises ValueError."""
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"PixArt draws whole patches of {self.patch_size} x {self.patch_size} cells, and these latents have "
                f"{height} x {width} of them: make both sides of the picture multiples of {8 * self.patch_size} pixels"
            )
        positions = get_2d_sincos_pos_embed_torch(
            self.hidden_size,
            h=height // self.patch_size,
            w=width // self.patch_size,
            pe_interpolation=self.pe_interpolation,
            base_size=self.base_size,
            device=x.device,
        )
        x = self.x_embedder(x) + positions.to(x.dtype)
        t = self.t_embedder(timestep, x.dtype)
        if self.micro_conditioning and c_size is not None and c_ar is not None:
            sizes = self.csize_embedder(c_size, len(x)), self.ar_embedder(c_ar, len(x))
            t = t + torch.cat(sizes, dim=1)
        modulation = self.t_block(t)
        context = self.y_embedder(y, self.training).squeeze(1)
        for block in self.blocks:
            x = block(x, context, modulation, None, (height, width), **options)
        return self.unpatchify(self.final_layer(x, t), height, width)


def shape(config: dict[str, Any], row: Any) -> dict[str, Any]:
    """The host's ``unet_config`` from diffusers' ``config.json``; refuses what the host's PixArt cannot be."""
    demand(config, DEMANDS, "PixArt transformer")
    heads, channels = config.get("num_attention_heads", 16), config.get("in_channels", 4)
    width, out = heads * config.get("attention_head_dim", 72), config.get("out_channels") or channels
    if config.get("cross_attention_dim", width) != width:
        raise ValueError(
            f"this PixArt transformer has cross_attention_dim {config['cross_attention_dim']} and "
            f"ComfyUI's attends in its own width {width} only"
        )
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"this PixArt transformer has {channels} channels in and {out} out: ComfyUI's has as many, or twice as many"
        )
    size, patch = config.get("sample_size", 128), config.get("patch_size", 2)
    takes_sizes = config.get("use_additional_conditions")
    return {
        "image_model": "pixart_alpha",
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "num_heads": heads,
        "depth": config.get("num_layers", 28),
        "pred_sigma": out == 2 * channels,
        "caption_channels": row.context_width(config),
        "micro_condition": size == 128 if takes_sizes is None else takes_sizes,  # as diffusers decides it
        "base_size": size // patch,
        "pe_interpolation": config.get("interpolation_scale") or max(size // 64, 1),
    }


def host_names(state: dict[str, Tensor], unet_config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights under the host's names, queries, keys and values joined as it has them; empties ``state``."""
    state.pop(POSITIONS, None)
    state[CAPTION] = torch.zeros(CAPTION_TOKENS, unet_config["caption_channels"])
    return renamed(state, comfy.utils.pixart_to_diffusers(unet_config))


PIXART = HostModel(
    network=PixArtMS,
    context_weight="y_embedder.y_proj.fc1.weight",
    describe=DiffusersPixArt,
    rename=host_names,
)
