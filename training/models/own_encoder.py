"""The vision model's own text encoder, or both of them: the teacher of a bridge, or a second ear beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...lavi_core.bridge import check_language
from ...lavi_core.conditioning import Conditioning, HiddenStates
from ...lavi_core.config import OwnEncoderConfig, VisionConfig
from ...lavi_core.language import TextEncoder, TokenBatch
from ...lavi_core.language.folder import weight_files
from ...lavi_core.prompt import PromptRecipe
from ..recipe import Recipe
from . import named

PROJECTION = "text_projection.weight"
CLIP, T5 = "clip", "t5"
EARS = (CLIP, T5, "bert")  # families whose last states are what a vision model was trained to hear


class Ears(NamedTuple):
    """Captions on their way through two encoders."""

    text: TokenBatch | HiddenStates  # of the language model
    own: Conditioning  # what the vision model's own encoder says of them


def parts(path: Path) -> list[Path]:
    """The encoders' folders of a pipeline's folder, or an encoder's own; first the one whose tokens are heard. Raises
    ValueError for a pipeline of other encoders than ``OwnEncoder`` knows."""
    first, second = path / "text_encoder", path / "text_encoder_2"
    if not first.is_dir():
        return [path]
    if not second.is_dir():
        return [first]
    kinds = [TextEncoder.skeleton(part).family.name for part in (first, second)]
    if kinds == [CLIP, T5]:
        return [second, first]
    if kinds != [CLIP, CLIP]:
        raise ValueError(
            f"the pipeline {path} has text encoders of the families {' and '.join(kinds)}, known are two CLIPs and a "
            "CLIP with a T5: name the folder of the one whose states the vision model hears"
        )
    return [first, second]


class OwnEncoder(nn.Module):
    """Captions -> what the vision model was trained to hear.

    One encoder gives its last states. Two CLIPs give their states before the last layer side by side, and the second's
    projected end token as the pooled vector (SDXL, arXiv 2307.01952, 2.1). A T5 with a CLIP gives the T5's last states,
    and the CLIP's end token as the pooled vector (Flux.1). CLIPs, and Flux.1's T5, get no attention mask, as in
    training.

    encoders: the one whose tokens are heard comes first. projection: of two CLIPs, the second's. nbytes: of the weights
    once they are loaded.
    """

    nbytes = 0

    def __init__(self, encoders: Sequence[TextEncoder], projection: Tensor | None = None):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.register_buffer("projection", projection)  # [P C2]
        self.is_clip = encoders[0].family.name == CLIP
        self.is_t5_with_clip = len(encoders) > 1 and not self.is_clip

    @classmethod
    def load(cls, path: Path, precision: str = "fp32") -> OwnEncoder:
        """path: of a pipeline, or of an encoder; weights in float32. precision: "bf16" leaves those that are stored in
        bfloat16 so (a T5-XXL has 9.5 GB then, not 19)."""
        return cls._of(parts(path), partial(TextEncoder.load, weights="dense"), precision)

    @classmethod
    def skeleton(cls, path: Path, precision: str = "fp32") -> OwnEncoder:
        """Without weights: sizes alone."""
        return cls._of(parts(path), lambda folder, dtype: TextEncoder.skeleton(folder), precision)

    @classmethod
    def _of(cls, folders: Sequence[Path], read: Callable[..., TextEncoder], precision: str) -> OwnEncoder:
        dtypes = [torch.bfloat16 if precision == "bf16" and _is_bf16(folder) else torch.float32 for folder in folders]
        encoders = [read(folder, dtype=dtype) for folder, dtype in zip(folders, dtypes, strict=True)]
        two_clips = len(folders) > 1 and encoders[0].family.name == CLIP
        made = cls(encoders, _projection(folders[1]) if two_clips else None)
        for encoder, dtype in zip(encoders, dtypes, strict=True):
            made.nbytes += dtype.itemsize * sum(p.numel() for p in encoder.parameters())
        return made

    @property
    def first(self) -> TextEncoder:
        return self.encoders[0]  # type: ignore[return-value]

    @property
    def tokenizer(self) -> Any:
        """Of the tokens that are heard: two CLIPs differ in what they pad with alone."""
        return self.first.tokenizer

    @property
    def width(self) -> int:
        heard = [self.first] if self.is_t5_with_clip else self._encoders
        return sum(encoder.config.hidden_size for encoder in heard)

    @property
    def pooled_width(self) -> int | None:
        if self.is_t5_with_clip:
            return self._encoders[-1].config.hidden_size
        return None if self.projection is None else len(self.projection)  # type: ignore[arg-type]

    @property
    def positions(self) -> int | None:
        return self.first.positions

    def length(self, wanted: int) -> int:
        """Tokens that it reads where ``wanted`` are asked for: no more than it has positions."""
        return min(wanted, self.positions or wanted)

    @torch.no_grad()
    def forward(self, captions: Sequence[str], length: int) -> Conditioning:
        """context [B T C] and pooled [B P] float32, padded to ``length`` tokens; the mask tells the real ones."""
        device = self.first.computes_on
        prompt = PromptRecipe(max_length=length, language_mask=not (self.is_clip or self.is_t5_with_clip))
        if len(self._encoders) == 1 or self.is_t5_with_clip:
            hidden = self.first(self.first.tokenize(captions, prompt).to(device), prompt)
            return Conditioning(hidden.states.float(), hidden.mask, self._ends(captions, device))
        inner = replace(prompt, hidden_states=-2)
        read = [encoder.tokenize(captions, prompt).to(device) for encoder in self._encoders]
        states = [encoder(tokens, inner).states for encoder, tokens in zip(self._encoders, read, strict=True)]
        ends = _at_end(self._encoders[-1], read[-1], prompt).float()
        pooled = ends @ self.projection.t()  # type: ignore[operator]
        return Conditioning(torch.cat(states, dim=-1).float(), read[-1].mask, pooled)

    def _ends(self, captions: Sequence[str], device: torch.device) -> Tensor | None:
        """Of the CLIP beside a T5, which reads all of its positions."""
        if not self.is_t5_with_clip:
            return None
        clip = self._encoders[-1]
        assert clip.positions is not None
        prompt = PromptRecipe(max_length=clip.positions, language_mask=False)
        return _at_end(clip, clip.tokenize(captions, prompt).to(device), prompt).float()

    def heard(self, captions: Sequence[str], prompt: PromptRecipe) -> Conditioning:
        """What the vision model hears of the captions with its own pipeline: of CLIPs all positions; of others the
        prompt recipe's length, and a mask where that recipe gives one."""
        if self.is_clip:
            return replace(self(captions, self.positions or prompt.max_length), mask=None)
        said = self(captions, self.length(prompt.max_length))
        return said if prompt.vision_mask else replace(said, mask=None)

    def as_ear(self, recipe: Recipe) -> OwnEncoderConfig:
        """What a bridge records of it. Raises ValueError where what it says is not what its pipeline would."""
        name, prompt = recipe.own_encoder.model, recipe.prompt
        families = {encoder.family.name for encoder in self._encoders}
        if self.is_t5_with_clip:
            raise ValueError(
                f"own_encoder.model {name} is a T5 with a CLIP, which are teachers (align.teacher) and not heard "
                "beside a bridge: the vision model would hear the T5's padding; leave [own_encoder] out"
            )
        if odd := sorted(families - set(EARS)):
            raise ValueError(
                f"own_encoder.model {name} is of the family {odd[0]}, which pipelines give templates and layers of "
                f"their own; heard beside a bridge are {', '.join(EARS)}: leave [own_encoder] out"
            )
        if families == {T5} and not prompt.vision_mask:
            raise ValueError(
                f"own_encoder.model {name} is a T5, whose padding the vision model would hear: set prompt.vision_mask "
                "= true, or leave [own_encoder] out where it takes no mask"
            )
        reads = PromptRecipe(max_length=self.length(prompt.max_length), vision_mask=prompt.vision_mask)
        if self.is_clip:
            states = "last" if self.projection is None else -2
            length = self.positions or prompt.max_length
            reads = PromptRecipe(max_length=length, language_mask=False, hidden_states=states)
        return OwnEncoderConfig(
            encoders=tuple(encoder.config for encoder in self._encoders),
            prompt=reads,
            place=recipe.own_encoder.place,
            pooled_width=self.pooled_width,
        )

    @property
    def _encoders(self) -> list[TextEncoder]:
        return list(self.encoders)  # type: ignore[arg-type]


def _at_end(clip: TextEncoder, tokens: TokenBatch, prompt: PromptRecipe) -> Tensor:
    """Its last state of the end token, which a cut caption has too. -> [B D]"""
    last = clip(tokens, prompt).states
    return last[torch.arange(len(last), device=last.device), tokens.mask.sum(1) - 1]


def _is_bf16(part: Path) -> bool:
    """By the largest tensor of its first file: norms may be stored in another dtype."""
    files = weight_files(part) if part.is_dir() else []
    if not files:
        return False
    with safe_open(files[0], "pt") as opened:
        stored: Any = opened
        largest = max((stored.get_slice(name) for name in stored.keys()), key=lambda s: prod(s.get_shape()))  # noqa: SIM118
        return largest.get_dtype() == "BF16"


def _projection(part: Path) -> Tensor:
    for file in weight_files(part):
        stored: Any = safe_open(file, "pt")
        if PROJECTION in stored.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            return stored.get_tensor(PROJECTION).float()
    raise ValueError(f"{part} has no {PROJECTION}, which makes the pooled vector: take a CLIPTextModelWithProjection")


def read_ear(recipe: Recipe) -> OwnEncoderConfig | None:
    """What the recipe's bridge is heard beside; no weights are loaded. None = nothing."""
    name = recipe.own_encoder.model
    return OwnEncoder.skeleton(named.teacher(name)).as_ear(recipe) if name else None


def check_ear(ear: OwnEncoderConfig, vision: str, width: int, pooled_width: int | None) -> None:
    """Raise ValueError unless the ``vision`` model takes a context of the ear's width, and its pooled vector if it
    gives one."""
    if ear.width != width:
        raise ValueError(
            f"own_encoder.model {ear.name} gives width {ear.width}, the vision model {vision} takes {width}: name its "
            "own text encoder, or its pipeline's folder"
        )
    if ear.pooled_width not in (None, pooled_width):
        raise ValueError(
            f"own_encoder.model {ear.name} gives a pooled vector of width {ear.pooled_width}, the vision model "
            f"{vision} takes {pooled_width or 'none'}: name its own pipeline"
        )


def load_ear(bridge: str | Path, wanted: OwnEncoderConfig, path: Path, vision: VisionConfig) -> OwnEncoder:
    """The own encoder that a bridge was trained beside. Raises ValueError for a folder without one, or with another."""
    if not any((path / name).exists() for name in ("text_encoder", "config.json")):
        raise ValueError(
            f"{bridge} was trained beside {vision.model_id}'s own text encoder ({wanted.name}), {path} has no "
            "text_encoder/: give --own-encoder its folder, or the whole pipeline's"
        )
    if len(found := parts(path)) != len(wanted.encoders):
        raise ValueError(
            f"{bridge} was trained beside {wanted.name}, {path} holds {len(found)} text encoders: give --own-encoder "
            "the folder of the former"
        )
    own = OwnEncoder.load(path)
    for theirs, ours in zip(own.encoders, wanted.encoders, strict=True):
        check_language(ours, theirs.config)  # type: ignore[arg-type]
    return own.eval()
