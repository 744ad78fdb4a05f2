"""Load Bridge and Bridge Text Encode: a bridge file joined to its language model, and prompts through the two."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from . import folders, foreign, lora, model_search, same_bridge
from .clip import connect_clip
from .clip_tokens import TOKENS, Beside, BridgeTokens
from .language import AUTO, LanguageModel
from .notice import log, notice, repeat, take_back
from .prompt_cache import PromptCache
from .prompt_syntax import LONG_PROMPTS, PromptOptions, as_written, cut_off, describe, read, unasked, unknown
from .schema import BridgeWire, LanguageModelWire, advanced, schema

LOADER = "LaViBridgeLoadLanguageModel"
WIRES = 16  # followed through nodes that give a language model on, as Apply LoRA to Language Model does


@dataclass(frozen=True)
class ConnectedBridge:
    """What runs on a LAVI_BRIDGE wire: a bridge and the language model it listens to.

    stamp: of the bridge file, as it was read.
    """

    name: str
    config: Any  # the core's BridgeConfig
    vision_lora: Any  # the core's LoRA, for the vision model
    clip: comfy.sd.CLIP
    stamp: str = ""
    prompts: PromptCache[tuple[str, str]] = field(default_factory=PromptCache, init=False, compare=False, repr=False)

    def __str__(self) -> str:
        return f"bridge {self.name} from {self.config.language.model_id} to {self.config.vision.model_id}"

    @property
    def encoder(self) -> Any:
        """The core's ``TextEncoder``; load the patcher before running it."""
        return self.clip.cond_stage_model.encoder

    @property
    def patcher(self) -> ModelPatcher:
        return self.clip.patcher

    @classmethod
    def load(
        cls,
        name: str,
        language_model: LanguageModel,
        language_lora: float,
        allow_other_model: bool,
        preset: str = foreign.AUTO,
    ) -> ConnectedBridge:
        """Read the file, check that both sides fit, add the language LoRA. Raises ValueError naming both sides."""
        from ..lavi_core.bridge import Bridge

        take_back()
        stamp = folders.stamp("bridge", name, *folders.ADAPTERS)
        path, encoder = folders.resolve("bridge", name, *folders.ADAPTERS), language_model.encoder
        model_search.refuse_other(foreign.read_wanted(path, preset), encoder.config, allow_other_model)
        checkpoint = foreign.read(path, preset, encoder)
        if language_lora:
            lora.refuse_second(language_model.patcher, checkpoint.language_lora, name)
        if not checkpoint.language_lora and language_lora != 1.0:
            notice(f"language_lora = {language_lora:g} does nothing: {name} left its language model as it was")
        bridge = Bridge.connect(checkpoint, language_model.encoder, lora=None, allow_other_model=allow_other_model)
        clip = connect_clip(language_model, bridge)
        lora.add_to_language_model(language_model, clip.patcher, checkpoint.language_lora, language_lora)
        timed = clip.cond_stage_model.adapter.hears_timestep
        same_bridge.tell_where_not_applied(name, timed, checkpoint.vision_lora)
        return cls(name, checkpoint.config, checkpoint.vision_lora, clip, stamp)

    def encode(
        self,
        text: str,
        options: PromptOptions | None = None,
        strength: float = 1.0,
        own: tuple[Hashable, Callable[[], Beside]] | None = None,
        pooled: Any = None,
    ) -> tuple[Any, str]:
        """Prompt -> CONDITIONING, and what became of its tokens. One that was encoded before is remembered: the
        language model is neither run nor loaded. Raises ValueError.

        strength: see ``BridgeTokens``. own: of a bridge that is heard beside the vision model's own encoder: what that
        says, and all that it depends on. pooled: a CONDITIONING of which the pooled vector is taken, where the vision
        model takes another encoder's.
        """
        options = options or PromptOptions()
        take_back()
        added = other_pooled(self.config.vision, pooled)
        key, says = own or (None, None)
        key = (*self._state(), options, text, strength, key)
        conditioning, (report, lost) = self.prompts.get(key, lambda: self._encode(text, options, strength, says))
        if lost:
            repeat(lost)
        return [[context, {**more, **added}] for context, more in conditioning], report

    def _encode(
        self, text: str, options: PromptOptions, strength: float, own: Callable[[], Beside] | None
    ) -> tuple[Any, tuple[str, str]]:
        pieces = read(self.encoder, self.config.prompt, text, options)
        odd = [*filter(None, [unknown(self.encoder.tokenizer, pieces)]), *as_written(text, options)]
        report = "\n".join([describe(pieces, self.config.prompt), *odd])
        lost = cut_off(pieces)
        if (queries := self.clip.cond_stage_model.queries) is not None:
            count = sum(len(queries.read(piece.prompt.text)) for piece in pieces)
            report += f"\nthe adapter asks with {count} {queries.unit}"
        if lost:
            whole = self.config.adapter.positions is None and options.long_prompts != "full length"
            lost += "; long_prompts can chunk it" + (" or hear it at full length" if whole else "")
        lost = "\n".join(filter(None, (lost, unasked(queries, pieces), *odd)))
        if lost:
            log(lost)
        tokens = BridgeTokens({TOKENS: pieces})
        tokens.strength, tokens.beside = strength, None if own is None else own()
        return self.clip.encode_from_tokens_scheduled(tokens), (report, lost)

    def _state(self) -> tuple[Any, ...]:
        """What the conditioning of a prompt depends on, besides the prompt."""
        encoder = self.encoder
        dtypes = tuple(sorted(str(dtype) for dtype in {p.dtype for p in encoder.model.parameters()}))
        language = (encoder.config.model_id, encoder.config.fingerprint, dtypes, self.patcher.patches_uuid)
        return (*language, self.name, self.stamp, repr(self.config), self.clip.layer_idx)


def other_pooled(vision: Any, given: Any) -> dict[str, Tensor]:
    """What of the CONDITIONING ``given`` goes with a bridge's to the vision model of this VisionConfig: its pooled
    vector, where the bridge has none for it. Raises ValueError for one that is missing, of no use or of another width.
    """
    wanted = vision.other_pooled
    if wanted is None and given is None:
        return {}
    if wanted is None:
        raise ValueError(
            f"this bridge gives {vision.model_id} all that it hears, pooled would not be heard: disconnect it"
        )
    pooled = None if given is None else given[0][1].get("pooled_output")
    if pooled is None or pooled.shape[-1] != wanted:
        found = "nothing is connected to pooled" if given is None else "what is connected to pooled has none"
        found = found if pooled is None else f"what is connected to pooled has one of width {pooled.shape[-1]}"
        raise ValueError(
            f"{vision.model_id} takes a pooled vector of width {wanted} from another encoder, {found}: connect a CLIP "
            "Text Encode that has one (Flux: on CLIP-L)"
        )
    return {"pooled_output": pooled}


class LoadBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeLoad",
            display_name="Load Bridge (LaVi-Bridge)",
            description="Joins a bridge file to the language model it was made for.",
            search_aliases=["lavi", "adapter", "ella", "rouwei", "anima", "t5free", "pig_clip", "llm adapter"],
            inputs=[
                LanguageModelWire.Input(
                    "language_model",
                    lazy=True,  # another model is refused before it is loaded
                    tooltip="The language model that the bridge was trained with; another is refused.",
                ),
                io.Combo.Input(
                    "bridge",
                    options=folders.names(*folders.ADAPTERS, suffixes=folders.ADAPTER_FILES),
                    tooltip="A bridge file in models/lavi_bridges, or another project's adapter (ELLA, RouWei, "
                    "qwen-sdxl-adapter, DistillT5, Anima, AnimaT5Free, gguf-trainer), there or in models/ella or "
                    "models/llm_adapters.",
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
                advanced(
                    io.Combo.Input(
                        "preset",
                        options=list(foreign.PRESETS),
                        default=foreign.AUTO,
                        optional=True,
                        tooltip="For another project's adapter, whose file does not say how prompts are put to its "
                        "language model. auto: by its sizes; the node shows which. A bridge file says it itself.",
                    )
                ),
            ],
            outputs=[
                BridgeWire.Output(
                    display_name="bridge", tooltip="For Bridge Text Encode and for Apply Bridge to Model."
                ),
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip="The same as a CLIP: for CLIP Text Encode and other stock nodes. Parentheses are "
                    "plain text there; weights are a switch on Bridge Text Encode.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(cls, bridge: str | None = None) -> bool | str:
        return folders.problem("bridge", bridge, *folders.ADAPTERS)

    @classmethod
    def fingerprint_inputs(cls, bridge: str | None = None, **_: Any) -> str:
        return folders.stamp("bridge", bridge, *folders.ADAPTERS)

    @classmethod
    def check_lazy_status(
        cls,
        bridge: str,
        allow_other_model: bool,
        language_model: LanguageModel | None = None,
        preset: str = foreign.AUTO,
        **_: Any,
    ) -> list[str]:
        """Refuses a model that is picked in the graph and does not fit, before it is loaded."""
        chosen = picked(cls.hidden.dynprompt, cls.hidden.unique_id) if language_model is None else None
        if chosen is not None:
            wanted = foreign.read_wanted(folders.resolve("bridge", bridge, *folders.ADAPTERS), preset)
            model_search.refuse_choice(wanted, chosen, allow_other_model)
        return ["language_model"]

    @classmethod
    def execute(
        cls,
        language_model: LanguageModel,
        bridge: str,
        language_lora: float,
        allow_other_model: bool,
        preset: str = foreign.AUTO,
    ) -> io.NodeOutput:
        connected = ConnectedBridge.load(bridge, language_model, language_lora, allow_other_model, preset)
        return io.NodeOutput(connected, connected.clip)


def picked(graph: Any, node_id: str) -> str | None:
    """The name that Load Language Model has at the other end of a node's wire; None where it is not told there, and
    where a config is chosen beside it, without which its files may tell something else."""
    for _ in range(WIRES):
        link = graph.get_node(node_id)["inputs"].get("language_model")
        if not isinstance(link, list):
            return None
        node_id = link[0]
        node = graph.get_node(node_id)
        if node["class_type"] == LOADER:
            name, config = node["inputs"].get("model"), node["inputs"].get("config", AUTO)
            return name if isinstance(name, str) and config == AUTO else None
    return None


class BridgeTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeTextEncode",
            display_name="Bridge Text Encode (LaVi-Bridge)",
            description="A prompt through the language model and the bridge. CLIP Text Encode on the bridge's CLIP "
            "does the same for plain text.",
            search_aliases=["prompt", "clip text encode", "prompt weights", "long prompt", "break", "system prompt"],
            inputs=[
                BridgeWire.Input("bridge", tooltip="From Load Bridge."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, in plain language. Parentheses are read as written unless weights are on.",
                ),
                io.Boolean.Input(
                    "weights",
                    default=False,
                    optional=True,
                    tooltip="Read (word:1.2), (word) and \\( as CLIP Text Encode does: the weight acts on what the "
                    "vision model hears of each token. Off: parentheses are plain text.",
                ),
                io.Combo.Input(
                    "long_prompts",
                    options=list(LONG_PROMPTS),
                    default="cut",
                    optional=True,
                    tooltip="Of a prompt with more tokens than the bridge was trained with. cut: the end is dropped, "
                    "and the report says what. chunk: pieces are encoded one by one and joined; the word BREAK ends a "
                    "piece. full length: all in one go, as far as the language model's positions reach.",
                ),
                advanced(
                    io.String.Input(
                        "template",
                        default="",
                        placeholder="as the bridge was trained",
                        optional=True,
                        tooltip="Text around the prompt (system prompt, chat template) with {prompt} once, instead of "
                        "the bridge's own, which the report shows. Empty: the bridge's own.",
                    )
                ),
                io.Conditioning.Input(
                    "pooled",
                    optional=True,
                    tooltip="Only where the vision model takes the pooled vector of another encoder, as Flux with "
                    "DistillT5 that of CLIP-L: the same prompt through CLIP Text Encode on that one.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="CONDITIONING", tooltip="For the sampler, like any other."),
                io.String.Output(
                    display_name="report", tooltip="Pieces, tokens used, padded and cut off, and the template."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        bridge: ConnectedBridge,
        text: str,
        weights: bool = False,
        long_prompts: str = "cut",
        template: str = "",
        pooled: Any = None,
    ) -> io.NodeOutput:
        options = PromptOptions(weights=weights, long_prompts=long_prompts, template=template)
        return io.NodeOutput(*bridge.encode(text, options, pooled=pooled))
