"""The table of the core's rows and the ComfyUI models that they are loaded as."""

from __future__ import annotations

from typing import Any

from ...lavi_core.registry import Registry
from .aura_flow import AURA_FLOW
from .chroma import CHROMA
from .cosmos import COSMOS
from .ernie_image import ERNIE_IMAGE
from .flux import FLUX
from .flux2 import FLUX2
from .host_model import HostModel
from .lumina2 import LUMINA2
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sd3 import SD3
from .unet import UNET
from .wan import WAN
from .z_image import Z_IMAGE

HOST_MODELS: Registry[HostModel] = Registry(
    "vision target for ComfyUI",
    {
        **dict.fromkeys(("sd1", "ldm", "sdxl", "unet"), UNET),
        **dict.fromkeys(("pixart", "pixart_sigma"), PIXART),
        "sd3": SD3,
        **dict.fromkeys(("flux", "flux_schnell"), FLUX),
        "chroma": CHROMA,
        "flux2": FLUX2,
        "z_image": Z_IMAGE,
        "lumina2": LUMINA2,
        "qwen_image": QWEN_IMAGE,
        "aura_flow": AURA_FLOW,
        "cosmos": COSMOS,
        "wan": WAN,
        "ernie_image": ERNIE_IMAGE,
    },
)


def counts_by_mask(row: Any) -> bool:
    """See ``HostModel``."""
    return row.name in HOST_MODELS and HOST_MODELS[row.name].counts_by_mask


def host_model_of(row: Any, what: str) -> HostModel:
    """Of a row of the core. what: that needs it, for the message. Raises ValueError where this ComfyUI has no class."""
    if row.name not in HOST_MODELS:
        raise ValueError(
            f"{what} is of {row.name}, for which ComfyUI has no class: bridges to it are trained and drawn by "
            f"lavi-bridge (train, sample), and these nodes speak to {', '.join(sorted(HOST_MODELS))}"
        )
    found = HOST_MODELS[row.name]
    if not found.is_here:
        raise ValueError(
            f"{what} is of {row.name}, for which this ComfyUI has no class yet ({', '.join(found.needs)} of its "
            "supported models): it needs a newer ComfyUI"
        )
    return found
