"""The configuration that a bridge file carries in its header: frozen records, unknown keys refused."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from keyword import iskeyword
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .prompt import PromptRecipe

# 2: facts of the language model. 3: options of adapters, several layers. 4: own encoders, other projects' text paths.
# 5: queries of a second tokenizer.
SCHEMA = 5

T = TypeVar("T")


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the (nested, frozen) dataclass ``cls`` from plain data, as read from TOML or JSON. A key that is a word of
    Python's belongs to the field of that name with a ``_`` behind it.

    Raises ValueError naming the key, by its dotted path, for an unknown key, a missing one or a value of another type.
    """
    prefix = f"{where}." if where else ""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    data = {f"{key}_" if iskeyword(key) else key: value for key, value in data.items()}
    for key in data:
        if key not in known:
            names = [name.rstrip("_") for name in known]
            near = difflib.get_close_matches(key.rstrip("_"), names, 1)
            meant = f" (did you mean {prefix}{near[0]}?)" if near else ""
            raise ValueError(f"unknown key {prefix}{key}{meant}; known here: {', '.join(names)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"missing key {prefix}{name} ({cls.__name__})")
    hints = get_type_hints(cls)
    return cls(**{key: _value(hints[key], value, f"{prefix}{key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _value(option, value, where)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError(errors[0] if len(errors) == 1 else f"{where} = {value!r} fits none of its types: {hint}")
    if origin is Literal:
        if value not in args or type(value) not in {type(a) for a in args}:
            raise ValueError(f"{where} = {value!r}; it must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} = {value!r}; it must be a list")
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        if inner is None and len(value) != len(args):
            raise ValueError(f"{where} has {len(value)} entries, it must have {len(args)}")
        return tuple(_value(inner or args[i], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} = {value!r}; it must be a table")
        return {str(k): _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} = {value!r}; it must be a table")
        return from_dict(hint, value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where} = {str(value)[:20]}...; it is too large for a number") from None
    if hint is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # 1e3
        return int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} = {value!r}; it must be of type {hint.__name__}")
    return value


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The language model that a bridge was trained with.

    family: "", num_layers, vocab_size: 0 = not recorded (a bridge of a file that does not say them), never checked
        against; the width always is.
    fingerprint: sha256 over a sample of its weights and its whole vocabulary, see ``fingerprint.py``; None = not
        recorded (a bridge imported where no weights were), never checked against.
    facts: what of its config, its tokenizer and the size of its weights shapes its states, see ``language/facts.py``;
        None = not recorded (schema 1).
    """

    model_id: str
    family: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    fingerprint: str | None
    facts: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """kind: a row of ``adapters.ADAPTERS``; widths in the authors' order (in, inner, out).

    layers: how many of the language model's layers each state holds side by side, each of ``in_width``, of which the
        adapter learns a mean; None = one state.
    The others are None for kinds that do not have them. tokens: given out, whatever number comes in. depth: blocks;
    narrow_depth: those over the tokens that are given. heads: of attention. outer_norms: LayerNorm of what comes in and
    of what is given. timestep_channels: of the sinusoids that the timestep becomes. positions: places of what comes in
    that have vectors of their own, and so the most states that are heard. vocabulary: ids that it asks with, of the
    second tokenizer that the bridge holds, or constants of rows.
    """

    kind: str
    in_width: int
    inner_width: int
    out_width: int
    pooled_width: int | None = None
    layers: int | None = None
    tokens: int | None = None
    depth: int | None = None
    narrow_depth: int | None = None
    heads: int | None = None
    outer_norms: bool | None = None
    timestep_channels: int | None = None
    positions: int | None = None
    vocabulary: int | None = None

    @property
    def state_width(self) -> int:
        """Of the states that are handed to it."""
        return self.in_width * (self.layers or 1)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision model that a bridge was trained with.

    target: a row of ``vision.VISION_TARGETS``. objective: what the network predicts. fingerprint: sha256 over a
    sample of its frozen weights; None = not recorded, never checked against. other_pooled: width of the pooled vector
    that the network takes from an encoder beside the bridge, as Flux from CLIP-L; None = it takes the bridge's or none.
    """

    model_id: str
    target: str
    context_width: int
    objective: Literal["epsilon", "v_prediction", "flow"]
    latent_channels: int
    latent_scale: float
    fingerprint: str | None
    other_pooled: int | None = None


@dataclass(frozen=True, kw_only=True)
class OwnEncoderConfig:
    """The vision model's own text encoder, where a bridge was trained beside it: the vision model heard the context of
    both, one after the other on the tokens.

    encoders: one, or two whose states lie side by side on the width (SDXL). prompt: how they read a prompt, always to
    ``max_length`` tokens. place: of their tokens, before or after the bridge's. pooled_width: of the pooled vector that
    they give, which is then the one that is heard; None = they give none.
    """

    encoders: tuple[LanguageConfig, ...]
    prompt: PromptRecipe
    place: Literal["before", "after"] = "before"
    pooled_width: int | None = None

    @property
    def width(self) -> int:
        return sum(encoder.hidden_size for encoder in self.encoders)

    @property
    def name(self) -> str:
        return " and ".join(encoder.model_id for encoder in self.encoders)


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """rank and alpha as in LoRA (arXiv 2106.09685): delta W = alpha / rank * up @ down."""

    rank: int
    alpha: float


def check_positions(adapter: AdapterConfig, prompt: PromptRecipe) -> None:
    """Raise ValueError where the places of a prompt's tokens, which the adapter knows, depend on the prompts beside."""
    placed = adapter.positions is not None or adapter.vocabulary is not None
    if placed and prompt.padding == "longest" and prompt.padding_side == "left":
        raise ValueError(
            f"the adapter {adapter.kind!r} knows the places of tokens, which padding to the longest prompt on the left "
            "moves with its company: set prompt.padding_side = 'right' or prompt.padding = 'max_length'"
        )


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """What one bridge file says of itself. own_encoder: heard beside the bridge; None = the bridge is heard alone."""

    language: LanguageConfig
    prompt: PromptRecipe
    adapter: AdapterConfig
    vision: VisionConfig
    language_lora: LoRAConfig | None = None
    vision_lora: LoRAConfig | None = None
    own_encoder: OwnEncoderConfig | None = None
    schema: int = SCHEMA
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema > SCHEMA:
            raise ValueError(
                f"this bridge has schema {self.schema}, this version reads up to {SCHEMA}; update the pack"
            )
        wanted = self.language.num_layers if self.prompt.hidden_states == "learned_mean" else None
        if self.adapter.layers != wanted:
            raise ValueError(
                f"the adapter takes {self.adapter.layers or 'no'} layers for a learned mean, the prompt recipe hands "
                f"it {wanted or 'none'} (hidden_states = {self.prompt.hidden_states!r})"
            )
        check_positions(self.adapter, self.prompt)
        given = self.language.hidden_size * self.prompt.stacked
        if self.adapter.in_width != given:
            raise ValueError(
                f"the adapter takes width {self.adapter.in_width}, the language model {self.language.model_id} "
                f"gives {given}"
            )
        if self.adapter.out_width != self.vision.context_width:
            raise ValueError(
                f"the adapter gives width {self.adapter.out_width}, the vision model {self.vision.model_id} "
                f"takes {self.vision.context_width}"
            )
        if (own := self.own_encoder) is not None and own.width != self.vision.context_width:
            raise ValueError(
                f"the own encoder {own.name} gives width {own.width}, the vision model {self.vision.model_id} takes "
                f"{self.vision.context_width}"
            )

    @property
    def pooled_width(self) -> int | None:
        """Of the pooled vector that the vision model is given with this bridge; None = none."""
        own = None if self.own_encoder is None else self.own_encoder.pooled_width
        return self.adapter.pooled_width if own is None else own
