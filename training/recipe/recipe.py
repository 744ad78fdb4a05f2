"""A recipe as a whole, and what of it does not go together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...lavi_core.adapters import ADAPTERS, Adapter, check_options
from ...lavi_core.prompt import PromptRecipe
from .sections import (
    AdapterSection,
    AlignSection,
    DataSection,
    LanguageSection,
    LossSection,
    OptimizerSection,
    OwnEncoderSection,
    SampleSection,
    ValidationSection,
    VisionSection,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. batch_size is global: what one optimiser step sees over all processes and accumulation steps. steps: 0 =
    the bridge is written as the head start leaves it (``align``).

    precision: "bf16" keeps frozen weights in bf16 and computes in it, the adapter too while it is trained; trained
    weights are float32 in both.
    gradient_checkpointing: both models' layers are run again in the backward pass instead of kept: less memory, the
    same gradients, about a third more time. compile: both models' layers through torch.compile.
    ema: decay of an average over the trained weights (0 = none), which grows to it as (1 + n) / (10 + n) over n steps:
    it lags by a tenth of them, unless less is asked for. With one, the bridge file, the pictures and the validation
    loss are the average's. keep: the newest states that are kept; keep_every: also each state whose step it divides
    (0 = none). trackers: "tensorboard", "wandb" (offline as long as WANDB_MODE says so).
    """

    name: str
    output: str
    steps: int
    batch_size: int
    language: LanguageSection
    vision: VisionSection
    data: DataSection
    prompt: PromptRecipe = field(default_factory=PromptRecipe)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    loss: LossSection = field(default_factory=LossSection)
    validation: ValidationSection = field(default_factory=ValidationSection)
    align: AlignSection = field(default_factory=AlignSection)
    own_encoder: OwnEncoderSection = field(default_factory=OwnEncoderSection)
    sample: SampleSection = field(default_factory=SampleSection)
    seed: int = 0
    accumulation: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema: float = 0.0
    trackers: tuple[str, ...] = ("tensorboard",)
    caption_dropout: float = 0.1
    save_every: int = 500
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        numbers = {key: getattr(self, key) for key in ("batch_size", "accumulation", "save_every", "keep")}
        numbers |= {} if self.align.asked and not self.steps else {"steps": self.steps}
        numbers |= {"language.rank": self.language.rank, "vision.rank": self.vision.rank}
        numbers |= {"validation.bins": self.validation.bins, "validation.batch_size": self.validation.batch_size}
        numbers |= {"align.batch_size": self.align.batch_size, "align.captions": self.align.captions}
        numbers |= {"sample.steps": self.sample.steps}
        for key, value in numbers.items():
            if value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not divide into accumulation = {self.accumulation}")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout is a share from 0 up to 1, got {self.caption_dropout}")
        if not 0 <= (self.adapter.dropout or 0) < 1:
            raise ValueError(f"adapter.dropout is a share from 0 up to 1, got {self.adapter.dropout}")
        own = self.own_encoder
        if own.dropout < 0 or own.language_dropout < 0 or own.dropout + own.language_dropout >= 1:
            raise ValueError(
                f"own_encoder.dropout {own.dropout} and own_encoder.language_dropout {own.language_dropout} are shares "
                "of the captions that come to less than 1 together: lower one of them"
            )
        if self.adapter.preset is not None and not self.adapter.from_:
            raise ValueError(f"adapter.preset is {self.adapter.preset!r}, without adapter.from: leave it out")
        asks, named = ADAPTERS[self.adapter.kind].asks, self.adapter.query_tokenizer
        if named and asks != "ids":
            raise ValueError(
                f"adapter.query_tokenizer is {named!r}, but the adapter {self.adapter.kind!r} asks with no second "
                "tokenizer: leave it out"
            )
        if asks == "rows" and not self.adapter.from_:
            raise ValueError(
                f"the adapter {self.adapter.kind!r} cuts a prompt by a lexicon that lies in its file alone: set "
                "adapter.from to such a file, or take another adapter.kind"
            )
        if asks and not named and not self.adapter.from_:
            raise ValueError(
                f"the adapter {self.adapter.kind!r} asks with the token ids of a second tokenizer: set "
                "adapter.query_tokenizer to a tokenizer.json, such as T5's, or to its folder"
            )
        check_options(self.adapter.kind, ADAPTERS[self.adapter.kind].options, self.adapter.options())
        self._check_freezing()
        self._check_alignment()
        if self.prompt.varies_with_batch:
            deaf = "vision" if self.prompt.language_mask else "language"
            raise ValueError(
                f'prompt.padding = "longest" with prompt.{deaf}_mask = false makes a prompt depend on its '
                f'batch: set prompt.{deaf}_mask = true or prompt.padding = "max_length"'
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay from 0 (none) up to 1, such as 0.999, got {self.ema}")
        if unknown := set(self.trackers) - {"tensorboard", "wandb"}:
            raise ValueError(f"trackers names {', '.join(sorted(unknown))}; known: tensorboard, wandb")
        if self.optimizer.kind == "schedule_free" and self.optimizer.schedule != "constant":
            raise ValueError(
                f"optimizer.kind = 'schedule_free' takes the place of a schedule, got {self.optimizer.schedule!r}: "
                "set optimizer.schedule = 'constant'"
            )

    def _check_alignment(self) -> None:
        align, kind = self.align, self.adapter.kind
        if not 0 <= align.prediction_steps <= self.steps:
            raise ValueError(
                f"align.prediction_steps is {align.prediction_steps}, they are the first of the run's {self.steps}: "
                "set steps to as many or more"
            )
        if align.prediction_steps and self.vision.train == "full":
            raise ValueError(
                "align.prediction_steps needs the vision model as it was, which vision.train = 'full' changes: set "
                "vision.train = 'lora' or 'frozen', or align.prediction_steps = 0"
            )
        if (align.asked or align.prediction_steps) and not align.teacher:
            raise ValueError(
                "[align] has no teacher: name the vision model's own text encoder, or its pipeline's folder"
            )
        if align.asked and ADAPTERS[kind].asks:
            raise ValueError(
                f"alignment goes by the language model's tokens, but the adapter {kind!r} gives "
                f"{'those of a second tokenizer' if ADAPTERS[kind].asks == 'ids' else 'rows of its own cutting'}: set "
                "align.steps = 0 and leave out align.start"
            )
        if align.start and ADAPTERS[kind].last_map is Adapter.last_map:
            raise ValueError(
                f"align.start is {align.start!r}, but the adapter {kind!r} has no linear map that could be solved for: "
                "leave it out, or take another adapter.kind"
            )
        if align.start and self.adapter.from_:
            raise ValueError(
                f"align.start is {align.start!r}, which would set the last map of {self.adapter.from_} anew: leave out "
                "align.start, or adapter.from"
            )
        if align.ridge <= 0:
            raise ValueError(f"align.ridge is a share of the features' variance, more than 0, got {align.ridge}")

    def _check_freezing(self) -> None:
        step = self.adapter.freeze_layer_weights
        if step is None:
            return
        if step < 1:
            raise ValueError(f"adapter.freeze_layer_weights is a step from 1 on, got {step}")
        if self.prompt.hidden_states != "learned_mean":
            raise ValueError(
                f"adapter.freeze_layer_weights is {step}, but no weights of layers are learnt: set "
                'prompt.hidden_states = "learned_mean", or leave it out'
            )
        if self.optimizer.kind == "schedule_free":
            raise ValueError(
                "optimizer.kind = 'schedule_free' goes on averaging what it trained, so it cannot freeze: leave out "
                "adapter.freeze_layer_weights, or take 'adamw'"
            )

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data: nested dicts, as JSON and TOML hold it."""
        return json.loads(json.dumps(asdict(self)))
