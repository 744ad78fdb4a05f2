"""The nodes: the only layer that imports comfy. A file a concern; ``execute`` calls plain code in a few lines."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders
from .attention_maps import BridgeAttentionMaps
from .attention_recorder import WatchAttention
from .bridge import BridgeTextEncode, LoadBridge
from .context_tokens import BridgeTokens
from .from_clip import LanguageModelFromCLIP
from .hook import BridgeAsHook
from .language import LoadLanguageModel
from .load_with_model import LoadBridgeWithModel
from .lora import ApplyLanguageLoRA
from .same_bridge import watch_queue
from .save import SaveBridge
from .two_ears import BridgeAndClipTextEncode
from .vision import ApplyBridge, LoadVisionModel

NODES: list[type[io.ComfyNode]] = [
    LoadLanguageModel,
    LanguageModelFromCLIP,
    ApplyLanguageLoRA,
    LoadBridge,
    LoadBridgeWithModel,
    BridgeTextEncode,
    BridgeAndClipTextEncode,
    ApplyBridge,
    BridgeAsHook,
    SaveBridge,
    LoadVisionModel,
    BridgeTokens,
    WatchAttention,
    BridgeAttentionMaps,
]


class LaViBridgeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()  # here, because hosts before 0.4 never call on_load
        watch_queue()
        return NODES
