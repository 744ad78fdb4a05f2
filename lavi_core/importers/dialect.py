"""What a row of the table of foreign bridge files says."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ..config import AdapterConfig, LanguageConfig, VisionConfig
from ..prompt import PromptRecipe
from ..vision import VISION_TARGETS
from .key_map import KeyMap


class Shapes(dict[str, tuple[int, ...]]):
    """name -> shape of a file's tensors, from its header. A name that is not there raises ValueError."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], where: str):
        super().__init__(shapes)
        self.where = where

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise ValueError(f"{self.where} lacks the tensor {name}; fetch it again")

    def count(self, prefix: str) -> int:
        """How many numbers follow upon a prefix: blocks of a list, whose last one counts."""
        found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in self)
        return max((int(match[1]) + 1 for match in found if match), default=0)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a file does not say, and where that is from.

    source: whose text path this is, one sentence; recorded in the bridge. model_id, family: of the language model that
    it was published for. in_width, depth: of the published adapters, by which a preset is chosen; None = any. prompt:
    of ``cut_template`` recipes, ``max_length`` counts what is heard; see ``read_foreign``. own_side: the tokenizer's
    own files say the padding side, where they do. heads: of attention, which no shape tells. if_named: it is taken only
    where it is asked for.
    """

    source: str
    model_id: str
    family: str
    in_width: int | None
    prompt: PromptRecipe
    depth: int | None = None
    own_side: bool = False
    heads: int | None = None
    if_named: bool = False

    def fits(self, adapter: AdapterConfig) -> bool:
        """Whether the published adapter has these sizes."""
        return self.in_width in (None, adapter.in_width) and self.depth in (None, adapter.depth)

    def language(self, width: int) -> LanguageConfig:
        """What is known of the language model where none is at hand: its width, and what the preset says."""
        return LanguageConfig(
            model_id=self.model_id, family=self.family, hidden_size=width, num_layers=0, vocab_size=0, fingerprint=None
        )


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """Of a GGUF file that holds an adapter: its general.architecture, its numbers by key, and the names of the matrices
    that are float32 there."""

    architecture: str
    keys: Mapping[str, int]
    float32: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One way in which an adapter is kept in a file.

    what: it is, for messages. signs: parts of names that its file has all of, and no file of another row. unless: parts
    of names by which a file with the signs is of another kind. adapter: the config from the shapes, and the heads that
    a preset or the user names. keys: see ``key_map``. presets: by name. vision: what its adapters speak to, for the
    config of one. elsewhere: how the names begin of tensors in its file that are no part of the adapter. prefixes:
    before all names, the first that a file has; beside one that is not "" lies another model, which is left alone.
    query_tokenizer: whose ids it asks with, for a message. texts: of one that asks with rows, the parts of what they
    are cut by, and the tensors of its file, prefix or not, that are their bytes; told: a preset with what they say.
    gguf: the header of its file, where that is a GGUF file with the first of ``prefixes``; None = it is a safetensors
    file without prefix, or a pickle.
    """

    what: str
    signs: tuple[str, ...]
    adapter: Callable[[Shapes, int | None], AdapterConfig]
    keys: KeyMap
    presets: Mapping[str, Preset]
    vision: Callable[[AdapterConfig], VisionConfig]
    elsewhere: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    query_tokenizer: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    told: Callable[[Preset, Mapping[str, str]], Preset] | None = None
    gguf: Callable[[AdapterConfig], GGUFHeader] | None = None

    def is_of(self, names: Collection[str]) -> bool:
        return self.prefix(names) is not None

    def prefix(self, names: Collection[str]) -> str | None:
        """The one that a file has; None where it is of another row."""
        if any(sign in name for name in names for sign in self.unless):
            return None
        return next((prefix for prefix in self.prefixes if self._has_signs(_without(prefix, names))), None)

    def own(self, shapes: Shapes) -> Shapes:
        """By the names without the prefix."""
        names = _without(self.prefix(shapes) or "", shapes)
        return Shapes({name: shapes[whole] for name, whole in names.items()}, shapes.where)

    def _has_signs(self, names: Collection[str]) -> bool:
        return all(any(sign in name for name in names) for sign in self.signs)


def _without(prefix: str, names: Collection[str]) -> dict[str, str]:
    """Name without the prefix -> with it, of those that have it."""
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def published_vision(model_id: str, target: str) -> Callable[[AdapterConfig], VisionConfig]:
    """The vision model that an adapter was published for, of a row of ``VISION_TARGETS``; of another width than the
    row's, any U-Net of that one. No fingerprint: whatever takes the context is taken."""
    row = VISION_TARGETS[target]

    def vision(adapter: AdapterConfig) -> VisionConfig:
        scale = row.latent_scale
        assert isinstance(scale, float)
        return VisionConfig(
            model_id=model_id,
            target=target if row.told_by.get(row.width_key, adapter.out_width) == adapter.out_width else "unet",
            context_width=adapter.out_width,
            objective="epsilon",
            latent_channels=4,
            latent_scale=scale,
            fingerprint=None,
        )

    return vision
