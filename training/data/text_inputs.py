"""A batch's captions as the pair takes them: tokens, or the cached text states of a frozen language model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...lavi_core.conditioning import Conditioning, HiddenStates
from ...lavi_core.language import TextEncoder, TokenBatch
from ...lavi_core.language.tokens import pad_id
from ...lavi_core.language.unknown_words import unknown_words
from ...lavi_core.prompt import shortened
from ..models.frozen_language import FrozenLanguage
from ..models.own_encoder import Ears
from ..models.pair import Pair
from ..models.progress import bar
from ..recipe import Recipe
from .content_hash import content_hash
from .own_states import OwnStates
from .text_states import TextStateCache

log = logging.getLogger(__name__)

# What a config says that changes no state: where it lies, who saved it, what its dtype is (a fact of its own).
UNSHAPING = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")
# Captions on their way into the language model, or text states out of it; with what the own encoder says of them.
TextInput = TokenBatch | HiddenStates | Ears


def keeps_states(recipe: Recipe, sharded: bool) -> bool:
    """Whether the language model's states are computed once and kept: it is frozen, and there is room for them.

    sharded: its weights are spread over the processes, which must then run it together.
    """
    if recipe.language.train != "frozen" or not recipe.language.states_gb:
        return False
    if sharded:
        log.warning("the frozen language model runs at every step: a sharded model runs on all processes together")
    return not sharded


class TextInputs:
    """Captions -> tokens without needless padding; or, of a frozen language model, text states, computed once. Where
    the bridge is heard beside the vision model's own encoder, also what that says of them, computed once.

    language: the frozen model whose states are kept, see ``keeps_states``; None = captions become tokens.
    """

    def __init__(self, recipe: Recipe, pair: Pair, output: Path, device: torch.device, language: FrozenLanguage | None):
        self.recipe, self.pair, self.device, self.language = recipe, pair, device, language
        self.cache: TextStateCache | None = None
        self.told_cut = self.told_unasked = self.told_unknown = False
        self.own = None if pair.ear is None else OwnStates(recipe, pair.ear, output, device)
        if language is None:
            return
        folder = Path(recipe.data.cache or output / "latents")
        model: Any = language.encoder.model
        config = {k: v for k, v in model.config.to_dict().items() if k not in UNSHAPING}
        facts = {
            "weights": content_hash(language.files, folder),
            "config": config,
            "pad": pad_id(language.encoder.tokenizer, recipe.prompt),
            "dtype": str(language.dtype),
            "precision": recipe.precision,
            "device": device.type,
        }
        self.cache = TextStateCache(
            folder, facts, pair.hearing, self._compute, recipe.language.states_gb, key_of=self._keys
        )
        if not len(self.cache):
            language.load()  # it will be needed: what it refuses is said now, and not after the latents

    def __call__(self, captions: Sequence[str], own: Sequence[str] | None = None) -> TextInput:
        """own: what the own encoder is told of each, where one is heard; None = the same."""
        text = self._text(captions)
        return text if self.own is None else Ears(text, self.own(captions if own is None else own))

    def _text(self, captions: Sequence[str]) -> TokenBatch | HiddenStates:
        if self.cache is not None:
            hidden = self.cache.get(captions)
            return hidden if self.pair.queries is None else hidden._replace(queries=self._tokens(captions).queries)
        tokens = self._tokens(captions)
        return tokens.trimmed(self.pair.hearing) if self.pair.trims_padding else tokens

    @property
    def caches(self) -> list[TextStateCache]:
        """Of all that is computed once."""
        own = None if self.own is None else self.own.cache
        return [cache for cache in (self.cache, own) if cache is not None]

    def compute_ahead(self, captions: Iterable[Sequence[str]]) -> None:
        """Compute and write the states of all these captions that are not kept yet, those of one sequence together, as
        far as ``states_gb`` reaches."""
        caches = self.caches
        for some in bar(captions, desc="text states", leave=False) if caches else ():
            left = [cache for cache in caches if not cache.full]
            for cache in left:
                cache.fill(some)
            if not left:
                break
        self.flush()

    def encoder(self) -> TextEncoder:
        """The language model with its weights, on the device."""
        return self.pair.encoder if self.language is None else self.language.load().to(self.device)

    def release(self) -> None:
        """Free the language model where its states have all been computed. Whatever asks it after all has it loaded
        again, and held from then on."""
        if self.own is not None and not self.own.cache.full:
            self.own.release()
        if self.language is None or self.cache is None:
            return
        if self.cache.full:
            log.info("the language model stays in memory: not all of its states are kept, see language.states_gb")
            return
        was = "freed" if self.language.loaded is not None else "not loaded"
        self.language.release()
        log.info("all %d text states lie in %s: the language model is %s", len(self.cache), self.cache.folder, was)

    def flush(self) -> None:
        """Write new text states to disk, with each checkpoint of the run: resumed, it goes on to the bit."""
        for cache in self.caches:
            cache.flush()

    def _tokens(self, captions: Sequence[str]) -> TokenBatch:
        """Says once in a run that captions are cut, which the dry run counts, and that words of them have no token."""
        tokens = self.pair.tokenize(captions)
        cut = next((i for i, report in enumerate(tokens.reports) if report.cut), None)
        if cut is not None and not self.told_cut:
            self.told_cut = True
            log.warning(
                "captions of more than %d tokens are cut, such as %r, of which %r is not heard; set prompt.max_length",
                self.recipe.prompt.max_length,
                shortened(captions[cut]),
                shortened(tokens.reports[cut].cut_text),
            )
        self._tell_unasked(captions)
        self._tell_unknown(captions, tokens)
        return tokens

    def _tell_unknown(self, captions: Sequence[str], tokens: TokenBatch) -> None:
        tokenizer = self.pair.encoder.tokenizer
        rows = () if self.told_unknown else enumerate(captions)
        found = next(((c, words) for i, c in rows if (words := unknown_words(tokenizer, tokens, i, c))), None)
        if found is not None:
            self.told_unknown = True
            log.warning(
                "the language model has no token for words of captions, and hears one and the same there: %s of %r",
                ", ".join(map(repr, found[1][:4])),
                shortened(found[0]),
            )

    def _tell_unasked(self, captions: Sequence[str]) -> None:
        """The same of what an adapter does not ask with."""
        queries = self.pair.queries
        if queries is None or queries.longest is None or self.told_unasked:
            return
        lost = next((text for caption in captions if (text := queries.cut_off(caption))), "")
        if lost:
            self.told_unasked = True
            log.warning("captions are cut: %s", shortened(lost, 200))

    def _keys(self, captions: Sequence[str]) -> list[bytes]:
        """By token ids: a tokenizer that was changed has others for the same caption."""
        tokens = self._tokens(captions)
        kept = [None] * len(captions) if tokens.keep is None else tokens.keep
        rows = zip(tokens.ids, tokens.mask, kept, strict=True)
        parts = [(ids[mask], None if keep is None else keep[mask]) for ids, mask, keep in rows]
        texts = [f"{ids.tolist()} {None if keep is None else keep.tolist()}" for ids, keep in parts]
        return [hashlib.sha256(text.encode()).digest()[:16] for text in texts]

    def _compute(self, captions: Sequence[str]) -> HiddenStates:
        tokens = self.pair.encoder.tokenize(captions, self.recipe.prompt).to(self.device)
        with torch.no_grad():
            return self.pair.states(tokens, self.encoder())


def to_device(text: TextInput, device: torch.device) -> TextInput:
    """Of text on the CPU. Waits for nothing that the device was given before."""
    return _each(text, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(text: TextInput) -> TextInput:
    return _each(text, Tensor.pin_memory)


def _each(text: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(text, Ears):
        own = text.own
        parts = (None if part is None else change(part) for part in (own.context, own.mask, own.pooled))
        return Ears(_each(text.text, change), Conditioning(*parts))  # type: ignore[arg-type]
    queries = None if text.queries is None else change(text.queries)
    if isinstance(text, HiddenStates):
        return HiddenStates(change(text.states), change(text.mask), queries)
    keep = None if text.keep is None else change(text.keep)
    return TokenBatch(change(text.ids), change(text.mask), keep, text.reports, queries)
