"""Alignment before training: the bridge learns to give the context that the vision model's own text encoder gives.

Captions alone are needed, no pictures and no vision model, so a step costs a fraction of a training step. For each
caption the own encoder's context is the target, word by word: every token of the new language model is asked for the
state of the word that it lies in. An adapter that gives tokens of its own is asked for the own encoder's, place by
place, and one that hears the timestep is asked at timesteps drawn as in training. The diffusion loss then trains all
groups from there. The paper has no such start; with ``steps = 0`` there is none.
"""

from __future__ import annotations

import logging
import math
from difflib import SequenceMatcher

import torch
from torch import Tensor
from torch.nn import functional

from ...lavi_core.config import AdapterConfig
from ...lavi_core.language import TextEncoder
from ...lavi_core.prompt import PromptRecipe
from ..data import Captions
from ..data.order import Order
from ..models import named, progress
from ..models.lora_layers import copied
from ..models.pair import Pair
from ..recipe import Recipe
from .loss_weighting import drawn

log = logging.getLogger(__name__)


def align(
    recipe: Recipe, pair: Pair, source: Captions, device: torch.device, encoder: TextEncoder | None = None
) -> float:
    """Train the adapter and the language LoRA for ``recipe.align.steps``; returns the last loss, 1 = the targets' mean.

    encoder: the language model with its weights; None = the pair's own.

    Deterministic in the recipe's seed. Raises ValueError where the two tokenisations cannot be brought together.
    """

    section, language, own = recipe.align, encoder or pair.encoder, pair.adapter_config.tokens
    teacher = TextEncoder.load(named.language(section.teacher), dtype=torch.float32, weights="dense").to(device)
    check_teacher(recipe, teacher, pair.adapter_config)
    if own is None:
        check_prompt(recipe.prompt)
        for model in (language, teacher):
            if not model.tokenizer.is_fast:
                raise ValueError(
                    f"the tokenizer of {model.config.model_id} cannot say which letters a token covers (it has no "
                    "tokenizer.json), which alignment needs: set align.steps = 0"
                )
    teacher_prompt = PromptRecipe(max_length=own or recipe.prompt.max_length)
    groups = pair.parameter_groups("adapter", "layers", "language")
    optimizer = torch.optim.AdamW(groups, betas=recipe.optimizer.betas, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: section.boost * min((step + 1) / 20, 1 - step / section.steps)
    )
    order = Order(len(source), section.batch_size, recipe.seed)
    trained = [p for group in groups for p in group["params"]]
    loss = torch.ones(())
    bar = progress.bar(range(section.steps), desc="aligning")
    for step in bar:
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        indices, epochs = order.batch(step)
        captions = [source.caption(i, e) for i, e in zip(indices, epochs, strict=True)]
        plain = [source.plain_caption(i, e) for i, e in zip(indices, epochs, strict=True)]
        with torch.no_grad():
            target = teacher(teacher.tokenize(plain, teacher_prompt).to(device), teacher_prompt).states  # [B T C]
            if own is None:
                texts = zip(captions, plain, strict=True)
                places = torch.stack([_target_positions(a, b, language, teacher, recipe) for a, b in texts]).to(device)
                target = torch.gather(target, 1, places.unsqueeze(-1).expand(-1, -1, target.shape[-1]))
            scale = target.var(dim=(0, 1)).mean()
        tokens = language.tokenize(captions, recipe.prompt).to(device)
        timesteps = None
        if pair.adapter.hears_timestep:
            timesteps = pair.timesteps(drawn(torch.rand(len(captions)), recipe.loss)).to(device)
        with copied(pair.encoder.model):
            context = pair.condition(pair.states(tokens, encoder), timesteps).context
        loss = functional.mse_loss(context.float(), target) / scale
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the alignment loss is {loss.item()} at step {step}: lower align.boost or the learning rates, or load "
                f"{language.config.model_id} with precision = 'fp32'"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    optimizer.zero_grad()
    log.info("aligned with %s in %d steps, relative error %.3f", section.teacher, section.steps, loss.item())
    return loss.item()


def check_teacher(recipe: Recipe, teacher: TextEncoder, adapter: AdapterConfig) -> None:
    """Raise ValueError for a teacher whose states are not what the adapter is to give; its weights are not read."""
    name, width = recipe.align.teacher, teacher.config.hidden_size
    if width != adapter.out_width:
        raise ValueError(
            f"align.teacher {name} gives width {width}, the vision model takes {adapter.out_width}: name the vision "
            "model's own text encoder"
        )
    if adapter.tokens is not None and teacher.positions is not None and adapter.tokens > teacher.positions:
        raise ValueError(
            f"align.teacher {name} has {teacher.positions} positions, the adapter gives {adapter.tokens} tokens: set "
            f"adapter.tokens = {teacher.positions} or fewer, or align.steps = 0"
        )


def check_prompt(prompt: PromptRecipe) -> None:
    """Raise ValueError for a prompt recipe whose tokens do not lie where ``_target_positions`` counts them."""
    for key in ("template", "padding", "padding_side", "cut_template"):
        found, wanted = getattr(prompt, key), getattr(PromptRecipe(), key)
        if found != wanted:
            raise ValueError(f"alignment needs prompt.{key} = {wanted!r}, not {found!r}: set it so, or align.steps = 0")


def _target_positions(caption: str, plain: str, student: TextEncoder, teacher: TextEncoder, recipe: Recipe) -> Tensor:
    """For every token of ``caption`` the position in the teacher's tokens of ``plain`` whose state it learns. [T]"""
    ours, theirs = (_words(encoder, text, recipe) for encoder, text in ((student, caption), (teacher, plain)))
    # The teacher's positions of each word, of what stands before and after the words, and of padding.
    first = {word: place for place, word in reversed(list(enumerate(theirs)))}
    end = max((place for place, word in enumerate(theirs) if isinstance(word, int)), default=0) + 1
    same = _same_words(caption.split(), plain.split())
    found = []
    for place, word in enumerate(ours):
        if isinstance(word, int):
            found.append(first.get(same[word], 0))
        elif word == "before":
            found.append(first.get("before", 0))
        elif word == "after":
            found.append(first.get("after", min(end, len(theirs) - 1)))
        elif recipe.align.padding == "ends":
            found.append(first.get(0, 0) if place % 2 else end - 1)
        else:
            found.append(max(place, first.get("padding", len(theirs) - 1)))
    return torch.tensor(found)


def _words(encoder: TextEncoder, text: str, recipe: Recipe) -> list[int | str]:
    """For every token of ``text``: which word it lies in, or "before", "after" or "padding"."""
    coded = encoder.tokenizer(
        text,
        return_offsets_mapping=True,
        truncation=True,
        max_length=recipe.prompt.max_length,
        add_special_tokens=recipe.prompt.add_special_tokens,
    )
    words: list[int | str] = []
    for start, end in coded["offset_mapping"]:
        inside = end > start
        words.append(len(text[:end].rstrip().split()) - 1 if inside else "after" if words else "before")
    return words + ["padding"] * (recipe.prompt.max_length - len(words))


def _same_words(words: list[str], plain: list[str]) -> list[int]:
    """For every word of a paraphrase the word of the plain caption that it stands for."""
    same = [0] * len(words)
    for _, i1, i2, j1, j2 in SequenceMatcher(None, words, plain, autojunk=False).get_opcodes():
        for i in range(i1, i2):
            same[i] = min(j1 + (i - i1) * max(j2 - j1, 1) // (i2 - i1), max(len(plain) - 1, 0))
    return same
