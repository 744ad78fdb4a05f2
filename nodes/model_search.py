"""The search for the installed language model that a bridge was made for, by its files alone: no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import comfy.model_management
import comfy.utils

from . import folders
from .language import models
from .progress import interruptible

REMEMBERED = 256  # looks at models, by their files' stamps
# The names that architectures give to a size in their config.json
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim")
VOCABULARIES = ("vocab_size",)


@dataclass(frozen=True)
class Candidate:
    """What the files of an installed language model tell. width, vocabulary: None = config.json does not say.

    config: the core's LanguageConfig; None where a size says already that it is another model, or for the problem told.
    """

    name: str
    width: int | None = None
    vocabulary: int | None = None
    config: Any = None
    problem: str = ""

    def likeness(self, wanted: Any) -> tuple[bool, ...]:
        """Sorts looks: the last is nearest to ``wanted``."""
        rest = [getattr(self.config, fact, None) == getattr(wanted, fact) for fact in ("num_layers", "family")]
        sizes = self.width == wanted.hidden_size, self.vocabulary == wanted.vocab_size
        damaged = all(sizes) and bool(self.problem)  # of those with the sizes, one that cannot be read may be the one
        return self.width is not None, *sizes, damaged, *rest

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name} ({self.problem})"
        sizes = f"hidden {self.width or 'unknown'}, vocabulary {self.vocabulary or 'unknown'}"
        if self.config is None:
            return f"{self.name} ({sizes})"
        print_ = self.config.fingerprint[:12] if self.config.fingerprint else "unknown"
        return f"{self.name} ({sizes}, {self.config.num_layers} layers, fingerprint {print_})"


@dataclass(frozen=True)
class ModelSearch:
    """Installed language models beside the one that a bridge was made for. fitting: names, the first is to be taken."""

    wanted: Any  # the core's LanguageConfig
    fitting: tuple[str, ...]
    others: tuple[Candidate, ...]

    @property
    def report(self) -> str:
        """Which model was found and why, in lines; or, in one sentence, what was sought and what came nearest."""
        wanted, count = self.wanted, len(self.others)
        known = (
            wanted.num_layers and f"{wanted.num_layers} layers",
            wanted.vocab_size and f"vocabulary {wanted.vocab_size}",
        )
        sizes = ", ".join([f"hidden {wanted.hidden_size}", *filter(None, known)])
        if wanted.fingerprint is None:
            return (
                f"this bridge was made for {wanted.model_id} ({sizes}) and records no fingerprint of it, so nothing "
                "tells that model from others: choose it in Load Bridge"
            )
        sought = f"{wanted.model_id} ({sizes}, fingerprint {wanted.fingerprint[:12]})"
        if self.fitting:
            why = f"why: of its weights and vocabulary the bridge records the fingerprint, as {sought}"
            copies = [f"a copy of it: {name}" for name in self.fitting[1:]]
            others = f"other language models installed: {count}"
            return "\n".join([f"language model: {self.fitting[0]}", why, *copies, others])
        where = folders.places(*folders.LANGUAGE)
        if not self.others:
            return f"this bridge was made for {sought}, and there is no language model in {where} yet: put it there"
        nearest = max(self.others, key=lambda look: look.likeness(wanted))
        return (
            f"this bridge was made for {sought}, which is not among the language models in {where} (of {count} the "
            f"nearest is {nearest}): put {wanted.model_id} there, or choose a copy of it in Load Bridge with "
            "allow_other_model"
        )


def search(wanted: Any) -> ModelSearch:
    """Look at every installed language model; at those whose sizes fit for their print, which is remembered until a
    file changes."""
    names = [name for name in models() if name != folders.NONE_FOUND]
    progress, fitting, others = comfy.utils.ProgressBar(len(names)), [], []
    for name in names:
        comfy.model_management.throw_exception_if_processing_interrupted()
        look = look_at(name, wanted)
        fits = wanted.fingerprint is not None and getattr(look.config, "fingerprint", None) == wanted.fingerprint
        (fitting if fits else others).append(look)
        progress.update(1)
    called = wanted.model_id.rpartition("/")[2]  # of copies, the one of that name
    fitting.sort(key=lambda look: PurePosixPath(look.name).name != called)
    return ModelSearch(wanted, tuple(look.name for look in fitting), tuple(others))


def look_at(name: str, wanted: Any) -> Candidate:
    """At a model: at the sizes in its config.json or .gguf alone where they are not those wanted. The second look is
    free."""
    stamp = folders.stamp("language model", name, *folders.LANGUAGE)
    look = _sizes(name, stamp)
    differs = (look.width or wanted.hidden_size) != wanted.hidden_size
    differs |= (look.vocabulary or wanted.vocab_size) != wanted.vocab_size
    return look if differs else _whole(name, stamp)


@lru_cache(REMEMBERED)
def _sizes(name: str, stamp: str) -> Candidate:
    from ..lavi_core.language.gguf_file import gguf_sizes, is_gguf

    del stamp  # of the cache's key
    path = folders.resolve("language model", name, *folders.LANGUAGE)
    if is_gguf(path):
        return Candidate(name, *gguf_sizes(path))
    data = folders.read_json(path / "config.json")
    nested = data.get("text_config")
    data = nested if isinstance(nested, dict) else data
    return Candidate(name, _size(data, WIDTHS), _size(data, VOCABULARIES))


def _size(data: dict[str, Any], names: Sequence[str]) -> int | None:
    return next((data[name] for name in names if isinstance(data.get(name), int)), None)


@lru_cache(REMEMBERED)
def _whole(name: str, stamp: str) -> Candidate:
    from ..lavi_core.language import TextEncoder

    look = _sizes(name, stamp)
    try:
        path = folders.resolve("language model", name, *folders.LANGUAGE)
        tokenizers = folders.host_tokenizers()
        config = interruptible(lambda: TextEncoder.skeleton(path, tokenizers=tokenizers).config)
    except ValueError as error:
        return Candidate(name, look.width, look.vocabulary, problem=str(error))
    return Candidate(name, config.hidden_size, config.vocab_size, config)


def refuse_other(wanted: Any, loaded: Any, allow_other_model: bool) -> None:
    """The core's ``check_language``, whose sentence goes on with the installed model that does fit."""
    from ..lavi_core.bridge import check_language

    try:
        check_language(wanted, loaded, allow_other_model)
    except ValueError as error:
        if wanted.fingerprint is None:  # nothing tells which of those installed it is
            raise
        fitting = search(wanted).fitting
        hint = f"; it is installed as {fitting[0]}" if fitting else "; it is not among the installed language models"
        raise ValueError(f"{error}{hint}") from None


def refuse_choice(wanted: Any, name: str, allow_other_model: bool) -> None:
    """The same for a model that is chosen in a graph and not loaded yet. What its files do not tell is left to be seen
    when it is loaded."""
    look = look_at(name, wanted)
    config = look.config
    if config is None and not look.problem:  # its sizes are others, which is all that was looked at
        sizes = {"hidden_size": look.width, "vocab_size": look.vocabulary}
        told = {fact: size for fact, size in sizes.items() if size is not None}
        config = replace(wanted, model_id=PurePosixPath(name).name, fingerprint=None, **told)
    if config is not None:
        refuse_other(wanted, config, allow_other_model)
