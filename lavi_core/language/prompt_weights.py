"""Prompt weights, as in (word:1.2), applied to the context as ComfyUI applies them to its own encoders' output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .tokens import Span, TokenBatch


def kept_positions(tokens: TokenBatch) -> Tensor:
    """The positions of a batch of one prompt whose states are given on, the template's cut. -> [K] long"""
    kept = torch.ones_like(tokens.mask[0]) if tokens.keep is None else tokens.keep[0]
    return kept.nonzero().flatten()


def spans(tokens: TokenBatch) -> list[Span | None]:
    """Where the token at each of ``kept_positions`` stands in the prompt; see ``PromptReport.spans``."""
    width, report = tokens.ids.shape[1], tokens.reports[0]
    first = width - report.used if bool(tokens.mask[0, -1]) else 0  # padded on the left, or not at all
    found = dict(enumerate(report.spans, first))
    return [found.get(position) for position in kept_positions(tokens).tolist()]


def token_weights(tokens: TokenBatch, text: str, weights: Sequence[float]) -> Tensor:
    """Weights of a prompt's characters -> weights of its tokens, at ``kept_positions``. -> [K] float32

    A token has the weight of its first character that is no space; what is not of the prompt has 1. Raises ValueError
    where a weight is not 1 and the tokenizer does not tell where its tokens stand.
    """
    found = torch.ones(len(kept_positions(tokens)))
    if all(weight == 1 for weight in weights):
        return found
    if not any(tokens.reports[0].spans):
        raise ValueError(
            "this language model's tokenizer does not tell where its tokens stand in the prompt, so words cannot be "
            "weighted; turn the weights off or save the tokenizer as tokenizer.json"
        )
    return weights_at(spans(tokens), text, weights)


def weights_at(places: Sequence[Span | None], text: str, weights: Sequence[float]) -> Tensor:
    """As ``token_weights``, of tokens that stand at these places in the prompt. -> [K] float32"""
    found = torch.ones(len(places))
    for i, span in enumerate(places):
        if span is not None and span[0] < span[1]:
            lead = next((at for at in range(*span) if not text[at].isspace()), span[0])
            found[i] = weights[lead]
    return found


def weigh(context: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """(context - empty) * weight + empty, token by token where the weight is not 1: the rule of ComfyUI's
    ``comfy.sd1_clip.ClipTokenWeightEncoder``. [1 K C], [1 K C], [K] -> [1 K C]"""
    weights = weights.to(context)
    weighted = (context - empty) * weights[:, None] + empty
    return torch.where((weights == 1)[:, None], context, weighted)


def aligned(empty: Tensor, heard: Tensor, length: int) -> Tensor:
    """The empty prompt's context at the positions of a prompt of ``length``: the same position, or the nearest one
    that the vision model hears; where it hears none, the same position. [1 E C], heard [E] bool -> [1 length C]"""
    known = (heard | ~heard.any()).nonzero().flatten()
    at = torch.arange(length, device=empty.device).clamp(int(known[0]), int(known[-1]))
    return empty[:, at]
