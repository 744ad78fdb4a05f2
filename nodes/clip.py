"""A bridge and its language model as ComfyUI's own CLIP object, which every stock node with a CLIP input takes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from .casting import managed, settle
from .clip_tokens import BridgeTokenizer, heard
from .context_tokens import CONTEXT_TOKENS, context_tokens
from .kohya_names import hear_kohya, kohya_names
from .language import OURS, LanguageModel
from .prompt_syntax import Piece
from .vision_model import counts_by_mask

BATCH = 8  # pieces of a long prompt that go through the language model together


def connect_clip(language_model: LanguageModel, bridge: Any) -> comfy.sd.CLIP:
    """A CLIP over a core ``Bridge``. Its patcher is a clone of the language model's: one set of weights, however many
    bridges listen to it."""
    shell = BridgeShell(bridge, language_model)
    device = language_model.patcher.load_device
    clip = comfy.sd.CLIP(
        ClipTarget(lambda **_: BridgeTokenizer(bridge), lambda **_: shell),
        model_options={
            "load_device": device,
            "offload_device": language_model.patcher.offload_device,
            "initial_device": None,  # the weights are where the language model's patcher has them
            "dtype": next(iter(shell.dtypes)),
        },
    )
    clip.patcher = language_model.patcher.clone()
    clip.patcher.is_clip = True
    if shell.kohya_names:
        hear_kohya(clip.patcher, shell.kohya_names)
    clip.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
    return clip


class BridgeShell(nn.Module):
    """What the host calls a CLIP's ``cond_stage_model``. Its state dict is that of the patcher's model."""

    disable_offload = True  # the throw-away patcher that comfy.sd.CLIP makes over this shell is a plain one

    def __init__(self, bridge: Any, language_model: LanguageModel):
        super().__init__()
        patcher = language_model.patcher
        self._modules.update(patcher.model.named_children())
        self.dtypes = {bridge.encoder.dtype}
        self.config = bridge.config
        self.language = language_model
        ours = language_model.prefix == OURS  # ComfyUI's own encoders have the names that it looks for
        family = bridge.encoder.config.family
        self.kohya_names = kohya_names(bridge.encoder.model, family, OURS) if ours else {}
        self._adapter = managed(bridge.adapter, patcher.load_device, patcher.offload_device)
        self._device = patcher.load_device
        self.reset_clip_options()

    @property
    def encoder(self) -> Any:
        """The core's ``TextEncoder``."""
        return self.language.encoder

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The patcher's, with the names beside them by which the host's LoRA loaders find kohya's."""
        state = super().state_dict(*args, **kwargs)
        state.update({name: state[key] for name, key in self.kohya_names.items()})
        return state

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """layer: the hidden states to hear, -1 being those the bridge was trained on; execution_device."""
        self._layer = options.get("layer", self._layer)
        self._device = options.get("execution_device", self._device) or self._device

    def reset_clip_options(self) -> None:
        self._layer: int | None = None

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """The pieces of one prompt -> context [1 T C], pooled [1 P] | None, float32 on the host's intermediate device,
        and what each vector of the context is. Pieces are joined on their tokens; the pooled vector is the first's.

        Masked tokens are dropped, since the host's models take no mask or throw it away; zeros are put in where the
        vision model was trained with them. Raises ValueError for more tokens than it hears.
        """
        pieces = heard(tokens)
        weights = [token_weights(piece) for piece in pieces]
        blanks = {
            _blank_key(piece): self._states(_blank(self.encoder, piece), piece.recipe)
            for piece, weighted in zip(pieces, weights, strict=True)
            if bool((weighted != 1).any())
        }
        hidden = self._states_of(pieces)
        comfy.model_management.load_models_gpu([self._adapter])  # after the language model, which it may push out
        settle(self._adapter.model, self._adapter.load_device)
        contexts, pooled = [], None
        for piece, states, weighted in zip(pieces, hidden, weights, strict=True):
            context, first = self._adapt(states)
            if _blank_key(piece) in blanks:
                context = self._weighed(context, blanks[_blank_key(piece)], weighted, piece.recipe.vision_mask)
            contexts.append(context[:, states.mask[0]] if piece.recipe.vision_mask else context)
            pooled = first if pooled is None else pooled
        there = {"device": comfy.model_management.intermediate_device(), "dtype": torch.float32}
        masks = [s.mask[0] if p.recipe.vision_mask else s.mask[0] | True for p, s in zip(pieces, hidden, strict=True)]
        listed = context_tokens(self.encoder, pieces, masks, weights)
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=1)
        context, more = self._for_the_vision_model(context, listed, pieces[0].recipe.vision_mask)
        return context.to(**there), None if pooled is None else pooled.to(**there), more

    def _for_the_vision_model(self, context: Tensor, listed: Any, masked: bool) -> tuple[Tensor, dict[str, Any]]:
        """With the zeros that it hears, and what else travels in a conditioning. context: [1 T C], of real tokens where
        a mask left out the others. Raises ValueError."""
        from ..lavi_core.conditioning import Conditioning
        from ..lavi_core.vision import VISION_TARGETS

        row = VISION_TARGETS[self.config.vision.target]
        mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device) if masked else None
        told = row.text.hear(Conditioning(context, mask)).context
        more: dict[str, Any] = {CONTEXT_TOKENS: listed.padded(told.shape[1], row.text.side)}
        if row.embedded_guidance != 1:
            more["guidance"] = row.embedded_guidance
        if counts_by_mask(row):
            more["attention_mask"] = torch.ones(told.shape[:2], dtype=torch.long)
        return told, more

    def _states_of(self, pieces: list[Piece]) -> list[Any]:
        """The core's HiddenStates of each piece; pieces of one length go through the model together."""
        found: list[Any] = []
        for _, group in itertools.groupby(pieces, _lengths):
            alike = list(group)
            size = 1 if alike[0].recipe.varies_with_batch else BATCH
            for first in range(0, len(alike), size):
                some = alike[first : first + size]
                hidden = self._states(_together([piece.tokens for piece in some]), some[0].recipe)
                rows = zip(hidden.states.split(1), hidden.mask.split(1), strict=True)
                found += [type(hidden)(states, mask) for states, mask in rows]
        return found

    def _states(self, tokens: Any, recipe: Any) -> Any:
        """Tokens -> the core's HiddenStates. Stops where the user has pressed cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self._layer not in (None, -1):
            recipe = replace(recipe, hidden_states=counted_from(recipe.hidden_states, self._layer))
        self.language.settle(self._device)
        return self.encoder(tokens.to(self._device), recipe)

    def _adapt(self, hidden: Any) -> tuple[Tensor, Tensor | None]:
        from ..lavi_core.bridge import check_finite

        here = self._adapter.load_device
        conditioning = self._adapter.model(type(hidden)(hidden.states.to(here, torch.float32), hidden.mask.to(here)))
        check_finite(conditioning)
        return conditioning.context, conditioning.pooled

    def _weighed(self, context: Tensor, blank: Any, weights: Tensor, masked: bool) -> Tensor:
        from ..lavi_core.language.prompt_weights import aligned, weigh

        empty, _ = self._adapt(blank)
        attended = blank.mask[0] if masked else torch.ones_like(blank.mask[0])
        return weigh(context, aligned(empty, attended.to(empty.device), context.shape[1]), weights)

    def adapter_state(self) -> dict[str, Tensor]:
        return self._adapter.model.state_dict()

    def generate(self, *_: Any, **__: Any) -> Any:
        """Raises ValueError: a bridge's language model has no head that could write."""
        raise ValueError(
            "a bridge listens, its language model has no head to write text with: give Generate Text a CLIP of "
            "ComfyUI's own loaders"
        )

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        return self.load_state_dict(sd, strict=False)


def counted_from(trained: Any, layer: int) -> Any:
    """The hidden states that CLIP Set Last Layer asks for: -1 = those the bridge was ``trained`` on, -2 = one before.

    Raises ValueError where there are none.
    """
    if isinstance(trained, str):
        if trained == "normalized_mean":
            raise ValueError(
                "this bridge hears the mean of all layers, from which CLIP Set Last Layer cannot count: take it out"
            )
        return layer
    counted = trained + layer + 1
    if trained >= 0 > counted:
        raise ValueError(
            f"this bridge hears hidden state {trained}, there is none at {counted}: CLIP Set Last Layer can go back to "
            f"{-1 - trained} here"
        )
    return counted


def _lengths(piece: Piece) -> tuple[int, int]:
    """Of a piece's tokens, and of those whose states are given on."""
    ids, _, keep, _ = piece.tokens
    return ids.shape[1], ids.shape[1] if keep is None else int(keep.sum())


def _together(tokens: list[Any]) -> Any:
    """The core's TokenBatch of them all."""
    if len(tokens) == 1:
        return tokens[0]
    ids, masks, keeps, reports = zip(*tokens, strict=True)
    keep = None if keeps[0] is None else torch.cat(keeps)
    return type(tokens[0])(torch.cat(ids), torch.cat(masks), keep, tuple(r for row in reports for r in row))


def token_weights(piece: Piece) -> Tensor:
    """The weight of each token whose state is given on. -> [K] float32"""
    from ..lavi_core.language import prompt_weights

    return prompt_weights.token_weights(piece.tokens, piece.prompt.text, piece.prompt.weights)


def _blank(encoder: Any, piece: Piece) -> Any:
    """The empty prompt, padded to the length of the piece: what a weight of 0 comes to."""
    width = piece.tokens.ids.shape[1]
    return encoder.tokenize([""], replace(piece.recipe, padding="max_length", max_length=width))


def _blank_key(piece: Piece) -> tuple[int, Any]:
    return piece.tokens.ids.shape[1], piece.recipe
