"""A bridge and its language model as ComfyUI's own CLIP object, which every stock node with a CLIP input takes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.hooks
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from .casting import managed, settle
from .clip_tokens import Beside, BridgeTokenizer, BridgeTokens, heard
from .context_tokens import CONTEXT_TOKENS, asked_tokens, context_tokens, own_tokens
from .kohya_names import hear_kohya, kohya_names
from .language import OURS, LanguageModel
from .notice import notice
from .prompt_syntax import Piece
from .same_bridge import OF
from .timed import SHOWN_AT, TIMED, TimedContext
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
        self.queries = bridge.queries  # the core's ``Queries``, of an adapter that asks; else None
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
        and what each vector of the context is. Pieces are joined on their tokens; the pooled vector is the first's. Of
        a bridge that was trained beside the vision model's own encoder, what that says is in it too
        (``BridgeTokens.beside``).

        Masked tokens are dropped, since the host's models take no mask or throw it away; zeros are put in where the
        vision model was trained with them. Raises ValueError for more tokens than it hears, and for an own encoder that
        is missing or one too many.
        """
        if self._layer not in (None, -1):
            notice(
                f"CLIP Set Last Layer {self._layer} has the bridge hear another layer than the one it was trained on: "
                "take it out for what was trained"
            )
        asked = tokens if isinstance(tokens, BridgeTokens) else BridgeTokens()
        check_beside(asked.beside is not None, self.config.own_encoder)
        said = self._said(heard(tokens), asked.strength, asked.beside)
        comfy.model_management.load_models_gpu([self._adapter])  # after the language model, which it may push out
        timed, there = self.adapter.hears_timestep, {"device": comfy.model_management.intermediate_device()}
        context, pooled = self._context(said, torch.tensor(SHOWN_AT) if timed else None)
        context = context.to(**there, dtype=torch.float32)
        row = self._row()
        listed = self._listed(said)
        if said.beside is not None:
            listed = listed.beside(said.beside.tokens, self.config.own_encoder.place)
        more: dict[str, Any] = {CONTEXT_TOKENS: listed.padded(context.shape[1], row.text.side), OF: self.config}
        if timed:
            more[TIMED] = TimedContext(context, lambda timestep: self._context(said, timestep)[0], said.nbytes)
        if row.embedded_guidance != 1:
            more["guidance"] = row.embedded_guidance
        if counts_by_mask(row):
            more["attention_mask"] = torch.ones(context.shape[:2], dtype=torch.long)
        return context, None if pooled is None else pooled.to(**there, dtype=torch.float32), more

    def _row(self) -> Any:
        """The core's row of the vision model."""
        from ..lavi_core.vision import VISION_TARGETS

        return VISION_TARGETS[self.config.vision.target]

    def _said(self, pieces: list[Piece], strength: float = 1.0, beside: Beside | None = None) -> Said:
        """What the language model says of the pieces, and of the empty prompt where any word is weighted."""
        weights = [self.weights(piece) for piece in pieces]
        blanks = {
            _blank_key(piece): self._asking(self._states(_blank(self.encoder, piece), piece.recipe), "", piece)
            for piece, weighted in zip(pieces, weights, strict=True)
            if strength != 1 or (self.queries is None and bool((weighted != 1).any()))
        }
        found = zip(self._states_of(pieces), pieces, strict=True)
        hidden = [self._asking(states, piece.prompt.text, piece) for states, piece in found]
        return Said(pieces, weights, hidden, blanks, strength, beside)

    def weights(self, piece: Piece) -> Tensor:
        """The weight of each token whose state is given on, or of each query. -> [K] float32"""
        from ..lavi_core.language import prompt_weights

        prompt = piece.prompt
        if self.queries is None:
            return prompt_weights.token_weights(piece.tokens, prompt.text, prompt.weights)
        places = [query.span for query in self.queries.read(prompt.text)]
        return prompt_weights.weights_at(places, prompt.text, prompt.weights)

    def _asking(self, hidden: Any, text: str, piece: Piece) -> Any:
        return hidden if self.queries is None else hidden._replace(queries=self.queries([text], piece.tokens))

    def _context(self, said: Said, timestep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the vision model hears, [1 T C], and the pooled vector, on the adapter's device."""
        from ..lavi_core.bridge import filled_up
        from ..lavi_core.conditioning import Conditioning
        from ..lavi_core.own_encoder import together

        settle(self._adapter.model, self._adapter.load_device)
        contexts, pooled, own_tokens, asks = [], None, self.adapter.own_tokens, self.adapter.asks
        for piece, hidden, weights in zip(said.pieces, said.hidden, said.weights, strict=True):
            blank = said.blanks.get(_blank_key(piece)) if not asks and bool((weights != 1).any()) else None
            if blank is not None and own_tokens:  # no token of its is one of the prompt's
                hidden = hidden._replace(states=_weighed(hidden.states, blank.states, blank.mask[0], weights))
                blank, weights = None, torch.ones(self.config.adapter.tokens)
            elif own_tokens and not asks:
                weights = torch.ones(self.config.adapter.tokens)
            found = self._adapt(hidden, timestep)
            context = found.context
            if asks:  # as the host's Anima weighs what its adapter gives
                context, weights = context * weights.to(context)[:, None], torch.ones(len(weights))
            if said.strength != 1:
                blank, weights = said.blanks[_blank_key(piece)], weights * said.strength
            if blank is not None:
                empty = self._adapt(blank, timestep)
                empty = filled_up(empty, context.shape[1]) if asks else empty
                heard = blank.mask[0] if piece.recipe.vision_mask and not own_tokens else None
                attended = torch.ones(empty.context.shape[1], dtype=torch.bool) if heard is None else heard
                context = _weighed(context, empty.context, attended, weights)
                found = replace(found, pooled=_between(found.pooled, empty.pooled, said.strength))
            masked = piece.recipe.vision_mask and not own_tokens
            contexts.append(context[:, hidden.mask[0]] if masked else context)
            pooled = found.pooled if pooled is None else pooled
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=1)
        masked = asks or (said.pieces[0].recipe.vision_mask and not own_tokens)  # as it was trained, see TextRule
        mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device) if masked else None
        ours, own = Conditioning(context, mask, pooled), None
        if said.beside is not None:
            parts = said.beside.context, None, said.beside.pooled
            own = Conditioning(*(None if part is None else part.to(context.device) for part in parts))
        found = self._row().text.hear(together(ours, own, self.config.own_encoder))
        return found.context, found.pooled

    def _listed(self, said: Said) -> Any:
        """What each vector of the context is."""
        if self.queries is not None:
            return asked_tokens(self.queries, said.pieces, said.weights)
        if self.adapter.own_tokens:
            return own_tokens(self.config.adapter.tokens, said.pieces)
        pairs = zip(said.pieces, said.hidden, strict=True)
        masks = [s.mask[0] if p.recipe.vision_mask else s.mask[0] | True for p, s in pairs]
        return context_tokens(self.encoder, said.pieces, masks, said.weights)

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
            counted = counted_from(recipe.hidden_states, self._layer, self.encoder.config.num_layers)
            recipe = replace(recipe, hidden_states=counted)
        self.language.settle(self._device)
        return self.encoder(tokens.to(self._device), recipe)

    def _adapt(self, hidden: Any, timestep: Tensor | None) -> Any:
        """The core's Conditioning."""
        from ..lavi_core.bridge import check_finite

        here = self._adapter.load_device
        queries = None if hidden.queries is None else hidden.queries.to(here)
        states = type(hidden)(hidden.states.to(here, torch.float32), hidden.mask.to(here), queries)
        conditioning = self.adapter(states, None if timestep is None else timestep.to(here))
        check_finite(conditioning)
        return conditioning

    @property
    def adapter(self) -> Any:
        """The core's ``Adapter``."""
        return self._adapter.model

    @property
    def adapter_patcher(self) -> ModelPatcher:
        return self._adapter

    def generate(self, *_: Any, **__: Any) -> Any:
        """Raises ValueError: a bridge's language model has no head that could write."""
        raise ValueError(
            "a bridge listens, its language model has no head to write text with: give Generate Text a CLIP of "
            "ComfyUI's own loaders"
        )

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        return self.load_state_dict(sd, strict=False)


class Said(NamedTuple):
    """What a language model said of the pieces of a prompt. weights: [K] of each piece. hidden: the core's HiddenStates
    of each; blanks: of the empty prompt, by ``_blank_key``. strength, beside: see ``BridgeTokens``."""

    pieces: list[Piece]
    weights: list[Tensor]
    hidden: list[Any]
    blanks: dict[Any, Any]
    strength: float = 1.0
    beside: Beside | None = None

    @property
    def nbytes(self) -> int:
        own = 0 if self.beside is None else self.beside.context.nbytes
        return own + sum(hidden.states.nbytes for hidden in [*self.hidden, *self.blanks.values()])


def _weighed(told: Tensor, empty: Tensor, attended: Tensor, weights: Tensor) -> Tensor:
    """Of a prompt and of the empty one, [1 T C] each; attended: [T] bool, of the latter."""
    from ..lavi_core.language.prompt_weights import aligned, weigh

    return weigh(told, aligned(empty, attended.to(empty.device), told.shape[1]), weights)


def _between(told: Tensor | None, empty: Tensor | None, strength: float) -> Tensor | None:
    """Of pooled vectors."""
    return told if told is None or empty is None or strength == 1 else empty + strength * (told - empty)


def check_beside(given: bool, own_encoder: Any) -> None:
    """Raise ValueError, with the way out in a graph, for a bridge that is not heard as it was trained. own_encoder: of
    its config."""
    if own_encoder is not None and not given:
        raise ValueError(
            f"this bridge was trained beside the vision model's own text encoder ({own_encoder.name}), which says "
            "nothing here: take Bridge and CLIP Text Encode, and give it the checkpoint's CLIP"
        )
    if own_encoder is None and given:
        raise ValueError(
            "this bridge was trained to be heard alone: take Bridge Text Encode and CLIP Text Encode, and join the two "
            "with Conditioning (Concat) if you will"
        )


def counted_from(trained: Any, layer: int, layers: int) -> Any:
    """The hidden states that CLIP Set Last Layer asks for: -1 = those the bridge was ``trained`` on, -2 = one before.
    layers: of the language model.

    Raises ValueError where there are none.
    """
    if trained in ("normalized_mean", "learned_mean") or isinstance(trained, tuple):
        raise ValueError("this bridge hears several layers, from which CLIP Set Last Layer cannot count: take it out")
    if isinstance(trained, str):
        if -layer > layers + 1:
            raise ValueError(
                f"this bridge's language model has {layers} layers: CLIP Set Last Layer can go back to {-1 - layers} "
                "here"
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
    ids, keep = piece.tokens.ids, piece.tokens.keep
    return ids.shape[1], ids.shape[1] if keep is None else int(keep.sum())


def _together(tokens: list[Any]) -> Any:
    """The core's TokenBatch of them all."""
    if len(tokens) == 1:
        return tokens[0]
    ids, masks, keeps, reports, _ = zip(*tokens, strict=True)
    keep = None if keeps[0] is None else torch.cat(keeps)
    return type(tokens[0])(torch.cat(ids), torch.cat(masks), keep, tuple(r for row in reports for r in row))


def _blank(encoder: Any, piece: Piece) -> Any:
    """The empty prompt, padded to the length of the piece: what a weight of 0 comes to."""
    width = piece.tokens.ids.shape[1]
    return encoder.tokenize([""], replace(piece.recipe, padding="max_length", max_length=width))


def _blank_key(piece: Piece) -> tuple[int, Any]:
    return piece.tokens.ids.shape[1], piece.recipe
