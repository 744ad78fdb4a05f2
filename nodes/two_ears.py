"""Bridge and CLIP Text Encode: a bridge that was trained beside the vision model's own encoder, and that encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.sd
from comfy.sd1_clip import SDClipModel, SDTokenizer
from comfy_api.latest import io

from .bridge import BridgeTextEncode, ConnectedBridge
from .clip import BridgeShell, check_beside
from .clip_tokens import TOKENS, Beside, BridgeTokens
from .context_tokens import ContextToken
from .from_clip import family_of
from .notice import notice
from .prompt_syntax import PromptOptions, as_written, cut_off, read, unknown
from .schema import BridgeWire, schema

KIND = "clip"  # of ContextToken


def encode(
    bridge: ConnectedBridge,
    clip: comfy.sd.CLIP,
    text: str,
    own_text: str,
    options: PromptOptions,
    strength: float,
    own_strength: float,
) -> tuple[Any, str]:
    """CONDITIONING and report. own_text: read as CLIP Text Encode reads it; "" = ``text``, read as ``options`` say.
    Raises ValueError for a CLIP that the bridge was not trained with."""
    own = bridge.config.own_encoder
    check_beside(True, own)
    refuse_other(clip, own)
    marked = bool(own_text.strip())
    told, weights = (own_text, True) if marked else (text, options.weights)
    beside = repr(clip.tokenizer_options), clip.apply_hooks_to_conds is None
    key = (clip.patcher.patches_uuid, id(clip.cond_stage_model), clip.layer_idx, beside, told, weights, own_strength)
    conditioning, report = bridge.encode(
        text, options, strength, (key, lambda: says(clip, own, told, weights, own_strength))
    )
    return conditioning, f"{report}\n{clip_line(own)}"


def clip_line(own: Any) -> str:
    return f"{own.place} the bridge's tokens: those of {own.name}"


def says(clip: comfy.sd.CLIP, own: Any, text: str, weights: bool, strength: float) -> Beside:
    """What the own encoder says, as CLIP Text Encode has it. weights: parentheses are weights."""
    from ..lavi_core.conditioning import Conditioning
    from ..lavi_core.own_encoder import at_strength

    tokens, listed = _tokens(clip, text, weights)
    told = _encoded(clip, own, tokens)
    if strength != 1:
        empty = _encoded(clip, own, _tokens(clip, "", False)[0])
        length, count = empty.context.shape[1], told.context.shape[1]
        if count % length == 0:  # of several pieces, each has the empty prompt's tokens
            empty = Conditioning(empty.context.repeat(1, count // length, 1), None, empty.pooled)
        told = at_strength(told, empty, strength)
    rows = [ContextToken(name, KIND, weight * strength, 0, None) for name, weight in listed]
    rows += [ContextToken("", KIND, strength, 0, None)] * (told.context.shape[1] - len(rows))
    return Beside(told.context, told.pooled, tuple(rows[: told.context.shape[1]]))


def _encoded(clip: comfy.sd.CLIP, own: Any, tokens: Any) -> Any:
    """The core's Conditioning. Raises ValueError for a CLIP that says other things at other times."""
    from ..lavi_core.conditioning import Conditioning

    found = clip.encode_from_tokens_scheduled(tokens)
    context, more = found[0]
    if len(found) > 1 or more.get("hooks") is not None:
        raise ValueError(
            "this CLIP has hooks (Set CLIP Hooks), which act on a conditioning as a whole: give the CLIP without them, "
            "and add hooks to what this node gives"
        )
    pooled = more.get("pooled_output") if own.pooled_width is not None else None
    return Conditioning(context.float(), None, None if pooled is None else pooled.float())


def _tokens(clip: comfy.sd.CLIP, text: str, weights: bool) -> tuple[Any, list[tuple[str, float]]]:
    """The tokens of the text, and the name and weight of each, as far as they are one row."""
    if isinstance(clip.cond_stage_model, BridgeShell):
        shell = clip.cond_stage_model
        asked = PromptOptions(weights=weights)
        pieces = read(shell.encoder, shell.config.prompt, text, asked)
        for line in (cut_off(pieces), unknown(shell.encoder.tokenizer, pieces), *as_written(text, asked)):
            if line:
                notice(f"own_text: {line}")
        return BridgeTokens({TOKENS: pieces}), _named(shell, pieces)
    tokens = clip.tokenize(text if weights else escaped(text))
    rows = [pair for batch in next(iter(tokens.values())) for pair in batch]  # two CLIPs cut a text alike
    return tokens, [(_name(clip, pair), float(pair[1])) for pair in rows]


def _name(clip: comfy.sd.CLIP, pair: Any) -> str:
    return str(clip.tokenizer.untokenize([pair])[0][1]) if isinstance(pair[0], int) else "embedding"


def _named(shell: BridgeShell, pieces: Any) -> list[tuple[str, float]]:
    (piece,) = pieces
    if shell.queries is None:
        words = shell.encoder.tokenizer.convert_ids_to_tokens(piece.tokens.ids[0].tolist())
    else:
        words = [query.text for query in shell.queries.read(piece.prompt.text)]
    return list(zip(map(str, words), shell.weights(piece).tolist(), strict=False))


def escaped(text: str) -> str:
    """Text whose parentheses the host takes for text."""
    return text.replace("(", "\\(").replace(")", "\\)")


def refuse_other(clip: comfy.sd.CLIP, own: Any) -> None:
    """Raise ValueError, naming both sides, for a CLIP of other encoders than ``own``, the bridge's OwnEncoderConfig.
    Fine-tuned weights of the same kind are taken, as of the vision model."""
    wanted = sorted((encoder.family, encoder.hidden_size) for encoder in own.encoders)
    shell = clip.cond_stage_model
    if isinstance(shell, BridgeShell):
        theirs, kind = shell.config, shell.config.adapter.kind
        if kind != "identity" or theirs.prompt != own.prompt or [_told(theirs.language)] != wanted:
            raise ValueError(
                f"this bridge was trained beside {own.name}, as it is, at {own.prompt.max_length} tokens; this CLIP is "
                f"a bridge ({kind}) from {theirs.language.model_id} at {theirs.prompt.max_length}: give the CLIP of "
                "the former"
            )
        return
    found = sorted(_kinds(clip))
    if found != wanted:
        names = (" and ".join(f"{family} of width {width}" for family, width in side) for side in (wanted, found))
        ours, theirs = (name or "no text encoder" for name in names)
        raise ValueError(
            f"this bridge was trained beside {own.name} ({ours}), this CLIP holds {theirs}: give the CLIP of the "
            "checkpoint that the bridge is applied to"
        )
    asked = clip.tokenizer_options  # T5 Tokenizer Options
    padded = any(count > (1 if name.endswith("_min_length") else 0) for name, count in asked.items())
    padded |= any(_fills_up(one) for one in vars(clip.tokenizer).values())
    if "t5" in {family for family, _ in found} and padded:
        raise ValueError(
            "this CLIP fills a prompt for its T5 up with padding, which the bridge was trained without: load the T5 "
            "with type pixart" + (", and take T5 Tokenizer Options out" if asked else "")
        )


def _told(language: Any) -> tuple[str, int]:
    return language.family, language.hidden_size


def _kinds(clip: comfy.sd.CLIP) -> Iterator[tuple[str, int]]:
    """Family and width of each text encoder of ComfyUI's in it."""
    for path, module in clip.cond_stage_model.named_modules():
        if isinstance(module, SDClipModel):
            yield family_of(module, path)


def _fills_up(tokenizer: Any) -> bool:
    return isinstance(tokenizer, SDTokenizer) and (tokenizer.pad_to_max_length or (tokenizer.min_length or 1) > 1)


class BridgeAndClipTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        ours = {field.id: field for field in BridgeTextEncode.define_schema().inputs}
        return schema(
            node_id="LaViBridgeTextEncodeWithClip",
            display_name="Bridge and CLIP Text Encode (LaVi-Bridge)",
            description="For a bridge that was trained beside the vision model's own text encoder: prose for the "
            "language model, tags for the CLIP, both heard.",
            search_aliases=["two ears", "mix clip", "tags", "trigger words", "concat", "prompt"],
            inputs=[
                BridgeWire.Input("bridge", tooltip="From Load Bridge; one that was trained beside this CLIP."),
                io.Clip.Input(
                    "clip",
                    tooltip="The checkpoint's own CLIP, with its LoRAs. Another kind than in training is refused.",
                ),
                ours["text"],
                io.String.Input(
                    "own_text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the CLIP hears: tags, trigger words, embeddings, weights, all as in CLIP Text "
                    "Encode. Empty: the same as text.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Of what the language model says: 1 = as trained, 0 = as if its prompt were empty.",
                ),
                io.Float.Input(
                    "own_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Of what the CLIP says: 1 = as trained, 0 = as if its prompt were empty.",
                ),
                ours["weights"],
                ours["long_prompts"],
                ours["template"],
            ],
            outputs=BridgeTextEncode.define_schema().outputs,
        )

    @classmethod
    def execute(
        cls,
        bridge: ConnectedBridge,
        clip: comfy.sd.CLIP,
        text: str,
        own_text: str,
        strength: float,
        own_strength: float,
        weights: bool = False,
        long_prompts: str = "cut",
        template: str = "",
    ) -> io.NodeOutput:
        options = PromptOptions(weights=weights, long_prompts=long_prompts, template=template)
        return io.NodeOutput(*encode(bridge, clip, text, own_text, options, strength, own_strength))
