"""Load Bridge and Bridge Text Encode: a bridge file joined to its language model, and prompts through the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from . import folders, lora
from .clip import TOKENS, connect_clip
from .language import LanguageModel
from .schema import BridgeWire, LanguageModelWire, schema


@dataclass(frozen=True)
class ConnectedBridge:
    """What runs on a LAVI_BRIDGE wire: a bridge and the language model it listens to."""

    name: str
    config: Any  # the core's BridgeConfig
    vision_lora: Any  # the core's LoRA, for the vision model
    clip: comfy.sd.CLIP

    @property
    def patcher(self) -> ModelPatcher:
        return self.clip.patcher

    @classmethod
    def load(
        cls, name: str, language_model: LanguageModel, language_lora: float, allow_other_model: bool
    ) -> ConnectedBridge:
        """Read the file, check that both sides fit, add the language LoRA. Raises ValueError naming both sides."""
        from ..lavi_core.bridge import Bridge
        from ..lavi_core.checkpoint import BridgeCheckpoint

        checkpoint = BridgeCheckpoint.load(folders.resolve("bridge", name, folders.BRIDGES))
        bridge = Bridge.connect(checkpoint, language_model.encoder, lora=None, allow_other_model=allow_other_model)
        clip = connect_clip(language_model, bridge)
        lora.add_to_language_model(clip.patcher, checkpoint.language_lora, language_lora)
        return cls(name, checkpoint.config, checkpoint.vision_lora, clip)

    def encode(self, text: str) -> tuple[Any, str]:
        """Prompt -> CONDITIONING, and one line on what became of its tokens."""
        tokens = self.clip.tokenize(text)
        return self.clip.encode_from_tokens_scheduled(tokens), str(tokens[TOKENS].reports[0])


class LoadBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeLoad",
            display_name="Load Bridge (LaVi-Bridge)",
            description="Joins a bridge file to the language model it was made for.",
            search_aliases=["lavi", "adapter", "ella"],
            inputs=[
                LanguageModelWire.Input(
                    "language_model", tooltip="The language model that the bridge was trained with; another is refused."
                ),
                io.Combo.Input(
                    "bridge",
                    options=folders.names(folders.BRIDGES, suffixes=folders.BRIDGE_FILES),
                    tooltip="A bridge file in models/lavi_bridges.",
                ),
                io.Float.Input(
                    "language_lora",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the bridge's LoRA in the language model: 1 = as trained, 0 = the plain model.",
                ),
                io.Boolean.Input(
                    "allow_other_model",
                    default=False,
                    tooltip="Accept a quantised or fine-tuned copy of the language model. Its width must still fit.",
                ),
            ],
            outputs=[
                BridgeWire.Output(
                    display_name="bridge", tooltip="For Bridge Text Encode and for Apply Bridge to Model."
                ),
                io.Clip.Output(
                    display_name="CLIP", tooltip="The same as a CLIP: for CLIP Text Encode and other stock nodes."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, bridge: str | None = None) -> bool | str:
        return folders.problem("bridge", bridge, folders.BRIDGES)

    @classmethod
    def fingerprint_inputs(cls, bridge: str | None = None, **_: Any) -> str:
        return folders.stamp("bridge", bridge, folders.BRIDGES)

    @classmethod
    def execute(
        cls, language_model: LanguageModel, bridge: str, language_lora: float, allow_other_model: bool
    ) -> io.NodeOutput:
        connected = ConnectedBridge.load(bridge, language_model, language_lora, allow_other_model)
        return io.NodeOutput(connected, connected.clip)


class BridgeTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeTextEncode",
            display_name="Bridge Text Encode (LaVi-Bridge)",
            description="A prompt through the language model and the bridge. CLIP Text Encode does the same, without "
            "the report.",
            search_aliases=["prompt", "clip text encode"],
            inputs=[
                BridgeWire.Input("bridge", tooltip="From Load Bridge."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, in plain language. Parentheses are read as written and carry no weights.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="CONDITIONING", tooltip="For the sampler, like any other."),
                io.String.Output(display_name="report", tooltip="How many tokens were used, padded and cut off."),
            ],
        )

    @classmethod
    def execute(cls, bridge: ConnectedBridge, text: str) -> io.NodeOutput:
        return io.NodeOutput(*bridge.encode(text))
