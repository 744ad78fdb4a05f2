"""A bridge ready for inference: prompts -> language model -> adapter -> conditioning of a vision model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from . import adapters
from . import lora as _lora
from .adapters import ADAPTERS, Adapter
from .checkpoint import BridgeCheckpoint
from .conditioning import Conditioning, Heard, HiddenStates, TimedConditioning, stack, stack_states
from .config import BridgeConfig, LanguageConfig
from .language import TextEncoder, TokenBatch
from .language.facts import differing
from .language.query_tokenizer import QueryTokenizer
from .language.row_cutter import RowCutter
from .own_encoder import at_strength, together
from .prompt import PromptRecipe
from .registry import Registry
from .vision import VISION_TARGETS

Queries = QueryTokenizer | RowCutter  # what a prompt is for an adapter that ``asks``

_LORA_MODES = Registry("LoRA mode", {"merged": _lora.merge, "live": _lora.attach})


class Bridge(nn.Module):
    """encoder + adapter. ``encoder.lora`` is the language LoRA in place; its ``remove()`` gives the plain model."""

    def __init__(self, encoder: TextEncoder, adapter: Adapter, config: BridgeConfig, queries: Queries | None = None):
        """queries: of an adapter that ``asks``, see ``queries_of``."""
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.config = config
        self.queries = queries
        if queries is not None:
            own = 0 if config.own_encoder is None else config.own_encoder.prompt.max_length
            queries.limited(config.adapter, VISION_TARGETS[config.vision.target].text.limit, own)

    @classmethod
    def connect(
        cls,
        checkpoint: BridgeCheckpoint,
        encoder: TextEncoder,
        *,
        strength: float = 1.0,
        lora: Literal["merged", "live"] | None = "merged",
        allow_other_model: bool = False,
    ) -> Bridge:
        """A bridge file and the language model it was made for, ready for inference.

        strength, lora: of the language LoRA, put into ``encoder.model``; ``encoder.lora.remove()`` undoes it.
        allow_other_model: accept another family, vocabulary or fingerprint (a quantised copy, a fine-tune); another
        width is never accepted. Raises ValueError naming both sides, and for an encoder that still has a LoRA in it.
        """
        if encoder.lora is not None and encoder.lora.active:
            raise ValueError(
                f"{encoder.config.model_id} still has another bridge's LoRA in it; call encoder.lora.remove() first, "
                "or load the language model once more"
            )
        check_language(checkpoint.config.language, encoder.config, allow_other_model)
        with torch.device("meta"):  # the file has every weight: none is drawn first
            adapter = adapters.build(checkpoint.config.adapter)
        weights = {
            name: tensor.to(encoder.computes_on, torch.float32 if tensor.is_floating_point() else None, copy=True)
            for name, tensor in checkpoint.adapter.items()
        }
        adapter.load_state_dict(weights, assign=True)
        adapter.eval().requires_grad_(False)
        bridge = cls(encoder, adapter, checkpoint.config, queries_of(checkpoint))
        if lora is not None and checkpoint.language_lora:
            encoder.lora = _LORA_MODES[lora](encoder.model, checkpoint.language_lora, strength)
        return bridge.eval()

    def forward(
        self, prompts: Sequence[str], timestep: Tensor | None = None, own: Conditioning | None = None
    ) -> Conditioning:
        """Prompts -> Conditioning, on the language model's device. Each is encoded as if it were alone: where
        padding to the longest would change it, prompts go one by one, and a mask leaves out what fills them up.

        timestep: [] or [B], see ``Adapter.forward``. own: see ``adapt``. Raises ValueError where the adapter needs one
        and there is none.
        """
        if self.config.prompt.varies_with_batch and len(prompts) > 1:
            times = [None] * len(prompts) if timestep is None else timestep.expand(len(prompts))
            said = [self.alone(self.hear([prompt]), time) for prompt, time in zip(prompts, times, strict=True)]
            return together(stack(said), own, self.config.own_encoder)
        return self.adapt(self.hear(prompts), timestep, own)

    def heard(self, prompts: Sequence[str], own: Conditioning | None = None, strength: float = 1.0) -> Heard:
        """What a sampler takes: the conditioning of the prompts, or, of an adapter that hears the timestep, what gives
        it at each.

        own: see ``adapt``. strength: of what the bridge says against what it says of the empty prompt, see
        ``own_encoder.at_strength``.
        """
        if strength == 1 and not self.adapter.hears_timestep:
            return self(prompts, None, own)
        adapt = self.adapt if strength == 1 else self._at_strength(prompts, strength)
        hidden = self.hear(prompts)
        return TimedConditioning(hidden, adapt, own=own) if self.adapter.hears_timestep else adapt(hidden, None, own)

    def _at_strength(self, prompts: Sequence[str], strength: float) -> Callable[..., Conditioning]:
        """``adapt``, at a strength, of these prompts."""
        recipe = self.config.prompt
        width = self.encoder.tokenize(prompts, recipe).ids.shape[1]
        blank_recipe = replace(recipe, padding="max_length", max_length=width)
        tokens = self.tokenize([""], blank_recipe)
        blank = self.encoder(tokens.to(self.encoder.computes_on), blank_recipe)

        def adapt(hidden: HiddenStates, timestep: Tensor | None, own: Conditioning | None) -> Conditioning:
            told = self.alone(hidden, timestep)
            rows = len(timestep) if timestep is not None and timestep.ndim else 1
            parts = (None if part is None else part.expand(rows, *part.shape[1:]) for part in blank)
            empty = self.alone(HiddenStates(*parts), timestep)  # type: ignore[arg-type]
            if self.adapter.asks:
                empty = filled_up(empty, told.context.shape[1])
            return together(at_strength(told, empty, strength), own, self.config.own_encoder)

        return adapt

    def hear(self, prompts: Sequence[str]) -> HiddenStates:
        """What the language model says of prompts, each as if it were alone, for ``adapt`` at any timestep."""
        if self.config.prompt.varies_with_batch and len(prompts) > 1:
            return stack_states([self.hear([prompt]) for prompt in prompts])
        tokens = self.tokenize(prompts, self.config.prompt)
        return self.encoder(tokens.to(self.encoder.computes_on), self.config.prompt)

    def tokenize(self, prompts: Sequence[str], recipe: PromptRecipe) -> TokenBatch:
        """As the language model reads them, and as queries where the adapter asks."""
        tokens = self.encoder.tokenize(prompts, recipe)
        return tokens if self.queries is None else tokens._replace(queries=self.queries(prompts, tokens))

    def encode_tokens(
        self, tokens: TokenBatch, timestep: Tensor | None = None, own: Conditioning | None = None
    ) -> Conditioning:
        """Tokens -> Conditioning, on the tokens' device."""
        return self.adapt(self.encoder(tokens, self.config.prompt), timestep, own)

    def adapt(
        self, hidden: HiddenStates, timestep: Tensor | None = None, own: Conditioning | None = None
    ) -> Conditioning:
        """Hidden states -> Conditioning, see ``alone``.

        own: what the vision model's own encoder says of the same prompts, on the same device. Raises ValueError where
        the bridge was trained beside one and it says nothing, or the other way round.
        """
        return together(self.alone(hidden, timestep), own, self.config.own_encoder)

    def alone(self, hidden: HiddenStates, timestep: Tensor | None = None) -> Conditioning:
        """What the bridge says. The adapter runs in float32, whatever the language model's dtype and whatever
        autocast is on. The mask is passed on only where the recipe gives it to the vision model, where it leaves out
        what ``hear`` has filled up, or where the adapter asks: it was trained with it, however long its prompts were.

        timestep: [] or [B], see ``Adapter.forward``; an adapter that does not hear it leaves it alone.
        """
        with torch.autocast(hidden.states.device.type, enabled=False):
            conditioning: Conditioning = self.adapter(hidden._replace(states=hidden.states.float()), timestep)
        check_finite(conditioning)
        recipe, mask = self.config.prompt, conditioning.mask
        filled = recipe.varies_with_batch and mask is not None and not bool(mask.all())
        keeps = filled or self.adapter.asks or (recipe.vision_mask and not self.adapter.own_tokens)
        return conditioning if keeps else replace(conditioning, mask=None)


def queries_of(checkpoint: BridgeCheckpoint) -> Queries | None:
    """What its adapter asks with; None where it asks nothing. Raises ValueError for what cannot be read."""
    text = checkpoint.query_tokenizer
    if text is None:
        return None
    rows = ADAPTERS[checkpoint.config.adapter.kind].asks == "rows"
    return RowCutter(text, checkpoint.adapter) if rows else QueryTokenizer(text)


def filled_up(empty: Conditioning, length: int) -> Conditioning:
    """Of an adapter that asks, what it says of the empty prompt beside one of ``length`` queries: zeros behind, all
    attended. It never has more: whatever the tokenizer adds to a prompt, it adds to the empty one."""
    context = pad(empty.context, (0, 0, 0, length - empty.context.shape[1]))
    return replace(empty, context=context, mask=None)


def check_finite(conditioning: Conditioning) -> None:
    """Raise ValueError for a context or pooled vector that is not finite, which every sampler would spread."""
    for name, part in (("context", conditioning.context), ("pooled vector", conditioning.pooled)):
        if part is not None and not bool(torch.isfinite(part).all()):
            raise ValueError(
                f"the {name} that the bridge's adapter gives is not finite (inf or NaN), though the language model's "
                "states are: its weights are damaged; fetch or train the bridge again"
            )


def check_language(wanted: LanguageConfig, loaded: LanguageConfig, allow_other_model: bool = False) -> None:
    """Raise ValueError, naming both sides, unless ``loaded`` is the language model that a bridge was made for."""

    def refuse(fact: str, ours: object, theirs: object, way_out: str) -> None:
        raise ValueError(
            f"this bridge was made for {wanted.model_id} ({fact} {ours}), the loaded model is {loaded.model_id} "
            f"({fact} {theirs}): load {wanted.model_id}{way_out}"
        )

    if wanted.hidden_size != loaded.hidden_size:
        more = ", since the adapter takes no other width, whatever is allowed" if allow_other_model else ""
        refuse("hidden", wanted.hidden_size, loaded.hidden_size, more)
    if allow_other_model:
        return
    ours, theirs = wanted.fingerprint, loaded.fingerprint
    same = ours is not None and ours == theirs  # then it is that model, whatever the library that loaded it calls it
    families = () if same else (("family", "family"),)
    way_out = ", or allow another model if you know this one to be a copy of it"
    for fact, name in (*families, ("layers", "num_layers"), ("vocabulary", "vocab_size")):
        if getattr(wanted, name) and getattr(wanted, name) != getattr(loaded, name):
            refuse(fact, getattr(wanted, name), getattr(loaded, name), way_out)
    if ours is not None and theirs is not None and ours != theirs:
        refuse("fingerprint", ours[:12], theirs[:12], way_out)
    if (odd := differing(wanted.facts, loaded.facts)) is not None:
        refuse(*odd, way_out)
