"""The nodes: the only layer that imports comfy. One file per concern; ``execute`` is a doorway of a few lines."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders
from .attention import WatchAttention
from .bridge import BridgeTextEncode, LoadBridge
from .fitting import LoadBridgeWithModel
from .from_clip import LanguageModelFromCLIP
from .hearing import BridgeTokens
from .heat import AttentionPictures
from .hook import BridgeAsHook
from .language import LoadLanguageModel
from .lora import ApplyLanguageLoRA
from .vision import ApplyBridge, LoadVisionModel

NODES: list[type[io.ComfyNode]] = [
    LoadLanguageModel,
    LanguageModelFromCLIP,
    ApplyLanguageLoRA,
    LoadBridge,
    LoadBridgeWithModel,
    BridgeTextEncode,
    ApplyBridge,
    BridgeAsHook,
    LoadVisionModel,
    BridgeTokens,
    WatchAttention,
    AttentionPictures,
]


class LaViBridgeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()  # here, because hosts before 0.4 never call on_load
        return NODES
