"""Alignment before training: the bridge comes to give the context that the vision model's own text encoder gives.

Captions alone are needed, no pictures and no vision model. For each caption the own encoder's context is the target,
word by word: every token of the new language model is asked for the state of the characters that it covers. An adapter
that gives tokens of its own is asked for the own encoder's, place by place, and one that hears the timestep is asked at
timesteps drawn as in training. What no one hears, padding where ``prompt.vision_mask`` leaves it out, is asked of none.

First a closed form (``align.start``), then steps (``align.steps``); the diffusion loss then trains all groups from
there. The paper has no such start.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...lavi_core.conditioning import Conditioning, HiddenStates
from ...lavi_core.config import AdapterConfig
from ...lavi_core.prompt import PromptRecipe
from ..data import Captions
from ..data.order import Order
from ..data.text_states import TextStateCache
from ..models import named, progress
from ..models.lora_layers import copied
from ..models.own_encoder import OwnEncoder
from ..models.pair import Pair, eval_mode
from ..recipe import Recipe
from . import closed_form
from .loss_weighting import drawn
from .word_places import matches, places

log = logging.getLogger(__name__)

KEPT_BYTES = 2**31  # of states, between the passes of the closed form


class Lesson(NamedTuple):
    """Some captions, and what the bridge is to say of them."""

    captions: list[str]
    target: Tensor  # [B T C]
    asked: Tensor  # [B T] bool: the tokens that have a target
    pooled: Tensor | None  # [B P]
    timesteps: Tensor | None  # [B]


class Lessons:
    """A lesson a step, as a function of (seed, step). cache: of the language model's states, see ``align``."""

    def __init__(
        self,
        recipe: Recipe,
        pair: Pair,
        source: Captions,
        device: torch.device,
        own: OwnEncoder,
        cache: TextStateCache | None = None,
    ):
        self.recipe, self.pair, self.source, self.device = recipe, pair, source, device
        self.language, self.own, self.cache = pair.encoder, own, cache
        self.order = Order(len(source), recipe.align.batch_size, recipe.seed)
        self.tokens = pair.adapter_config.tokens
        if self.tokens is None:
            check_prompt(recipe.prompt)
            for name, tokenizer in (
                (self.language.config.model_id, self.language.tokenizer),
                ("align.teacher", own.tokenizer),
            ):
                if not tokenizer.is_fast:
                    raise ValueError(
                        f"the tokenizer of {name} cannot say which letters a token covers (it has no tokenizer.json), "
                        "which alignment needs: set align.steps = 0, and leave out align.start"
                    )

    def __call__(self, step: int) -> Lesson:
        recipe, device = self.recipe, self.device
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        indices, epochs = self.order.batch(step)
        captions = [self.source.caption(i, e) for i, e in zip(indices, epochs, strict=True)]
        plain = [self.source.plain_caption(i, e) for i, e in zip(indices, epochs, strict=True)]
        said = self.own(plain, self.tokens or self.own.length(recipe.prompt.max_length))
        target, asked = said.context, torch.ones(said.context.shape[:2], dtype=torch.bool, device=device)
        if self.tokens is None:
            texts = zip(captions, plain, strict=True)
            weights = torch.stack([self._matches(*text) for text in texts]).to(device)
            target, asked = weights @ target, weights.any(dim=-1)
        pooled = None if self.pair.adapter.config.pooled_width is None else said.pooled
        timesteps = None
        if self.pair.adapter.hears_timestep:
            timesteps = self.pair.timesteps(drawn(torch.rand(len(captions)), recipe.loss)).to(device)
        return Lesson(captions, target, asked, pooled, timesteps)

    def hear(self, lesson: Lesson) -> HiddenStates:
        """What the language model says of the captions."""
        if self.cache is not None:
            hidden = self.cache.get(lesson.captions)
            # As long as what is asked for: a batch from the cache is as long as its longest caption.
            missing = 0 if self.tokens is not None else lesson.asked.shape[1] - hidden.mask.shape[1]
            states, mask = functional.pad(hidden.states, (0, 0, 0, missing)), functional.pad(hidden.mask, (0, missing))
            return HiddenStates(states.to(self.device), mask.to(self.device))
        tokens = self.language.tokenize(lesson.captions, self.recipe.prompt).to(self.device)
        with copied(self.pair.encoder.model):
            return self.pair.states(tokens)

    def answer(self, lesson: Lesson, hidden: HiddenStates | None = None) -> tuple[Conditioning, Tensor]:
        """What the bridge says, and which of its tokens count [B T]: those that are asked for, and heard. hidden: what
        ``hear`` gave."""
        hidden = self.hear(lesson) if hidden is None else hidden
        return self.pair.alone(hidden, lesson.timesteps), self._counted(lesson, hidden)

    def _counted(self, lesson: Lesson, hidden: HiddenStates) -> Tensor:
        unheard = self.recipe.prompt.vision_mask and self.tokens is None
        return lesson.asked & hidden.mask if unheard else lesson.asked

    def _matches(self, caption: str, plain: str) -> Tensor:
        prompt = self.recipe.prompt
        ours = places(self.language.tokenizer, caption, prompt.max_length, prompt.add_special_tokens)
        theirs = places(self.own.tokenizer, plain, self.own.length(prompt.max_length))
        return matches(caption, plain, ours, theirs, self.recipe.align.padding)


def align(
    recipe: Recipe, pair: Pair, source: Captions, device: torch.device, cache: TextStateCache | None = None
) -> float:
    """Solve for the adapter's last map, as ``recipe.align.start`` says, then train the adapter and the language LoRA
    for ``recipe.align.steps``; returns the last loss of the states, 1 = the targets' mean.

    cache: the states of a frozen language model, which then is not run for captions that training knows; None = the
    pair's model is run.

    Deterministic in the recipe's seed. Raises ValueError where the two tokenisations cannot be brought together.
    """
    own = OwnEncoder.load(named.teacher(recipe.align.teacher), recipe.precision).to(device)
    check_teacher(recipe, own, pair.adapter_config)
    lessons = Lessons(recipe, pair, source, device, own, cache)
    if pair.adapter.config.pooled_width is not None and own.pooled_width is None:
        log.warning(
            "align.teacher %s has no pooled vector, so the bridge's stays as it is: name the pipeline's folder, if it "
            "has a CLIP beside it",
            recipe.align.teacher,
        )
    found = math.nan
    if recipe.align.start:
        found = _solve(recipe, pair, lessons)
    if recipe.align.steps:
        found = _train(recipe, pair, lessons)
    return found


def error(lesson: Lesson, said: Conditioning, counted: Tensor) -> Tensor:
    """Of the states: mean squared error in units of the targets' variance over tokens, averaged over channels."""
    target = lesson.target[counted]
    return functional.mse_loss(said.context.float()[counted], target) / target.var(dim=0).mean()


def _train(recipe: Recipe, pair: Pair, lessons: Lessons) -> float:
    section = recipe.align
    groups = pair.parameter_groups("adapter", "layers", "language")
    optimizer = torch.optim.AdamW(groups, betas=recipe.optimizer.betas, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: section.boost * min((step + 1) / 20, 1 - step / section.steps)
    )
    trained = [p for group in groups for p in group["params"]]
    loss = torch.ones(())
    bar = progress.bar(range(section.steps), desc="aligning")
    for step in bar:
        lesson = lessons(step)
        said, counted = lessons.answer(lesson)
        loss = error(lesson, said, counted)
        whole = loss
        if lesson.pooled is not None and said.pooled is not None:
            spread = lesson.pooled.var(dim=0).mean()
            whole = loss + functional.mse_loss(said.pooled.float(), lesson.pooled) / spread
        if not math.isfinite(whole.item()):
            raise ValueError(
                f"the alignment loss is {whole.item()} at step {step}: lower align.boost or the learning rates, or "
                f"load {lessons.language.config.model_id} with precision = 'fp32'"
            )
        optimizer.zero_grad()
        whole.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.optimizer.clip_norm or math.inf)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    optimizer.zero_grad()
    log.info("aligned with %s in %d steps, relative error %.3f", section.teacher, section.steps, loss.item())
    return loss.item()


def _solve(recipe: Recipe, pair: Pair, lessons: Lessons) -> float:
    """The closed-form start, on ``align.captions`` captions; -> the error on a batch that comes after them."""
    section = recipe.align
    batches = -(-min(section.captions, len(lessons.source)) // section.batch_size)
    with eval_mode(pair):
        before = _measure(lessons, batches)
        linear, norm = pair.adapter.last_map()
        kept: dict[int, tuple[Lesson, HiddenStates]] = {}

        def heard(step: int) -> tuple[Lesson, HiddenStates]:
            """The language model is as it was drawn in all passes, so it is run once, as far as memory reaches."""
            if step in kept:
                return kept[step]
            lesson = lessons(step)
            found = lesson, lessons.hear(lesson)
            if sum(hidden.states.nbytes for _, hidden in kept.values()) < KEPT_BYTES:
                kept[step] = found
            return found

        def states(of: nn.Linear) -> Iterator[closed_form.Seen]:
            for step in progress.bar(range(batches), desc="solving", leave=False):
                lesson, hidden = heard(step)
                with closed_form.watched(of, norm) as seen:
                    said, counted = lessons.answer(lesson, hidden)
                output = seen.get("output", said.context)
                rest = output - seen["given"] if of is linear else output[..., :0]
                rows = (seen["features"], rest, output, lesson.target)
                yield closed_form.Seen(*(_summed_on(row[counted]) for row in rows))

        if (middle := pair.adapter.open_linear_path()) is not None:
            closed_form.fit_middle(section.start, section.ridge, middle, partial(states, middle))
        closed_form.fit(section.start, section.ridge, linear, norm, partial(states, linear))
        head = pair.adapter.pooled
        if head is not None and lessons.own.pooled_width is not None:
            proj = head.proj

            def pooled() -> Iterator[closed_form.Seen]:
                for step in progress.bar(range(batches), desc="solving, pooled", leave=False):
                    lesson, hidden = heard(step)
                    with closed_form.watched(proj, None) as seen:
                        lessons.answer(lesson, hidden)
                    assert lesson.pooled is not None
                    rows = (seen["features"], torch.zeros_like(lesson.pooled), seen["given"], lesson.pooled)
                    yield closed_form.Seen(*(_summed_on(row) for row in rows))

            closed_form.fit(section.start, section.ridge, proj, None, pooled)
        after = _measure(lessons, batches)
    if not math.isfinite(after):
        raise ValueError(
            f"align.start = {section.start!r} leads to an error of {after}: raise align.ridge or align.captions, or "
            f"load {lessons.language.config.model_id} with precision = 'fp32'"
        )
    told = (section.start, batches * section.batch_size, before, after)
    log.info("started by %s on %d captions, relative error %.3f before and %.3f after", *told)
    return after


def _measure(lessons: Lessons, step: int) -> float:
    lesson = lessons(step)
    return error(lesson, *lessons.answer(lesson)).item()


def _summed_on(x: Tensor) -> Tensor:
    """Where sums are kept in float64, which not every accelerator has."""
    return x.detach() if x.device.type == "cuda" else x.detach().cpu()


def check_teacher(recipe: Recipe, teacher: OwnEncoder, adapter: AdapterConfig) -> None:
    """Raise ValueError for a teacher whose states are not what the adapter is to give; its weights are not read."""
    name, width = recipe.align.teacher, teacher.width
    if width != adapter.out_width:
        raise ValueError(
            f"align.teacher {name} gives width {width}, the vision model takes {adapter.out_width}: name the vision "
            "model's own text encoder, or its pipeline's folder"
        )
    if teacher.pooled_width not in (None, adapter.pooled_width):
        raise ValueError(
            f"align.teacher {name} gives a pooled vector of width {teacher.pooled_width}, the vision model takes "
            f"{adapter.pooled_width or 'none'}: name the vision model's own pipeline"
        )
    if adapter.tokens is not None and teacher.positions is not None and adapter.tokens > teacher.positions:
        raise ValueError(
            f"align.teacher {name} has {teacher.positions} positions, the adapter gives {adapter.tokens} tokens: set "
            f"adapter.tokens = {teacher.positions} or fewer, or align.steps = 0"
        )


def prediction_teacher(recipe: Recipe, pair: Pair) -> OwnEncoder:
    """For ``align.prediction_steps``. Raises ValueError for one that does not say all that the vision model hears."""
    own = OwnEncoder.load(named.teacher(recipe.align.teacher), recipe.precision)
    check_prediction(recipe, own, pair.adapter_config)
    return own


def check_prediction(recipe: Recipe, own: OwnEncoder, adapter: AdapterConfig) -> None:
    name = recipe.align.teacher
    if (own.width, own.pooled_width) != (adapter.out_width, adapter.pooled_width):
        raise ValueError(
            f"align.teacher {name} gives width {own.width} and a pooled vector of {own.pooled_width or 'none'}, the "
            f"vision model takes {adapter.out_width} and {adapter.pooled_width or 'none'}, without which it predicts "
            "nothing: name the vision model's own pipeline, or set align.prediction_steps = 0"
        )


def check_prompt(prompt: PromptRecipe) -> None:
    """Raise ValueError for a prompt recipe whose tokens do not lie where ``places`` counts them."""
    for key in ("template", "padding", "padding_side", "cut_template"):
        found, wanted = getattr(prompt, key), getattr(PromptRecipe(), key)
        if found != wanted:
            raise ValueError(
                f"alignment needs prompt.{key} = {wanted!r}, not {found!r}: set it so, or set align.steps = 0 and "
                "leave out align.start"
            )
