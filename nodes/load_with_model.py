"""Load Bridge with its Language Model: a bridge, joined to the installed language model that it was made for."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import folders
from .bridge import ConnectedBridge
from .language import PRECISIONS, LanguageModel
from .model_search import search
from .schema import BridgeWire, schema


def find(bridge: str) -> tuple[str, str]:
    """Name of a bridge -> name of its language model, and why it is that. Raises ValueError where there is none."""
    from ..lavi_core.checkpoint import read_config

    found = search(read_config(folders.resolve("bridge", bridge, folders.BRIDGES)).language)
    if not found.fitting:
        raise ValueError(found.report)
    return found.fitting[0], found.report


class LoadBridgeWithModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeLoadWithModel",
            display_name="Load Bridge with its Language Model (LaVi-Bridge)",
            description="Finds, among the installed language models, the one that a bridge was made for, and joins the "
            "two.",
            search_aliases=["lavi", "auto", "find language model", "adapter"],
            inputs=[
                io.Combo.Input(
                    "bridge",
                    options=folders.names(folders.BRIDGES, suffixes=folders.BRIDGE_FILES),
                    tooltip="A bridge file in models/lavi_bridges. Its language model is looked for in models/LLM and "
                    "models/text_encoders.",
                ),
                io.Float.Input(
                    "language_lora",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the bridge's LoRA in the language model: 1 = as trained, 0 = the plain model.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="Precision, as in Load Language Model. auto: bfloat16 or float16 where the device is fast "
                    "with it, else float32.",
                ),
            ],
            outputs=[
                BridgeWire.Output(
                    display_name="bridge", tooltip="For Bridge Text Encode and for Apply Bridge to Model."
                ),
                io.Clip.Output(display_name="CLIP", tooltip="The same as a CLIP, as from Load Bridge."),
                io.String.Output(display_name="report", tooltip="Which language model was found, and why."),
            ],
        )

    @classmethod
    def validate_inputs(cls, bridge: str | None = None) -> bool | str:
        return folders.problem("bridge", bridge, folders.BRIDGES)

    @classmethod
    def fingerprint_inputs(cls, bridge: str | None = None, **_: Any) -> str:
        if bridge is None:
            return ""
        try:
            model = folders.stamp("language model", find(bridge)[0], *folders.LANGUAGE)
        except ValueError as error:  # told when the node runs
            model = str(error)
        return folders.stamp("bridge", bridge, folders.BRIDGES) + model

    @classmethod
    def execute(cls, bridge: str, language_lora: float, dtype: str) -> io.NodeOutput:
        name, report = find(bridge)
        model = LanguageModel.load(folders.resolve("language model", name, *folders.LANGUAGE), *PRECISIONS[dtype])
        connected = ConnectedBridge.load(bridge, model, language_lora, allow_other_model=False)
        return io.NodeOutput(connected, connected.clip, report)
