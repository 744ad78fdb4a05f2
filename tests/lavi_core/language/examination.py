"""What a language model says through TextEncoder beside what transformers' own class says: right, refused or wrong."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import Delta
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.lavi_core.quantized.unpacking import packed
from torch import Tensor, nn

PROMPTS = ("a red circle", "two elephants in the forest , a rabbit in spring")
LENGTH = 60  # tokens that a prompt is padded to
CLOSE, CLOSE_IN_BF16, CLOSE_IN_8_BIT = 1e-4, 0.3, 0.1  # relative
CORE = Path(__file__).resolve().parents[3] / "lavi_core"
Check = Callable[[], float | str]


class Outcome(NamedTuple):
    """kind: "right", "refused" (in a sentence of lavi_core), "wrong" (by a relative error, or in what), "raw" (another
    library's error), "absent" (nothing to compare with)."""

    kind: str
    why: str = ""


class Reference:
    """transformers' own states, from the class that the encoder has as its trunk, as transformers loads it."""

    def __init__(self, folder: Path, trunk: nn.Module, layers: str):
        import transformers as hf

        kind: Any = type(trunk)
        written: Any = hf.AutoConfig.from_pretrained(folder)
        saved = getattr(hf, written.architectures[0], hf.AutoModel)
        for loader in (saved, hf.AutoModel, kind):  # the last where a class has the encoder alone
            model: Any = loader.from_pretrained(folder).eval()
            found = next((module for module in model.modules() if type(module) is kind), None)
            if found is not None:
                break
        self.model: Any = model.base_model
        self.trunk: Any = found
        if hasattr(self.trunk, "config"):  # FSMT's encoder has none
            self.trunk.config.use_cache = False
        self.layers = [*self.trunk.get_submodule(layers)]

    @torch.no_grad()
    def last(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return self.trunk(input_ids=ids, **({} if mask is None else {"attention_mask": mask.long()})).last_hidden_state

    @torch.no_grad()
    def entries(self, ids: Tensor) -> list[Tensor]:
        """[1 T D] each; the last is last_hidden_state, as in ``PromptRecipe.hidden_states``."""
        output = self.trunk(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        return [*(getattr(output, "hidden_states", None) or ())[:-1], output.last_hidden_state]

    @torch.no_grad()
    def normalized_mean(self, ids: Tensor) -> Tensor:
        """The mean of what the layers give, each with its mean 0 and its variance 1 (arXiv 2506.08210). [1 T D]"""
        given = self._given(ids)
        centred = [h - h.mean(-1, keepdim=True) for h in given]
        return torch.stack([h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() for h in centred]).mean(0)

    @torch.no_grad()
    def before_norm(self, ids: Tensor) -> Tensor:
        return self._given(ids)[-1]

    def _given(self, ids: Tensor) -> list[Tensor]:
        """What each layer gives: where it is not transformers' own entry, there is no such thing. Raises
        AssertionError."""
        given: list[Tensor] = []
        with ExitStack() as hooks:
            for layer in self.layers:
                take = lambda _, __, out: given.append((out[0] if isinstance(out, tuple | list) else out).clone())  # noqa: E731
                hooks.callback(layer.register_forward_hook(take).remove)
            entries = self.entries(ids)
        assert len(given) == len(entries) - 1, "its layers are not run once each"
        odd = [
            k
            for k, h in enumerate(given[:-1])
            if h.shape != entries[k + 1].shape or relative(h, entries[k + 1]) > CLOSE
        ]
        assert not odd, f"what layer {odd[0]} gives is not an entry"
        return given


def _entries(own: Reference, ids: Tensor) -> list[Tensor]:
    try:
        return own.entries(ids)
    except Exception:  # some take no output_hidden_states
        return []


def _at(entries: list[Tensor], k: int) -> Tensor:
    assert -len(entries) <= k < len(entries), f"transformers gives {len(entries)} entries"
    return entries[k]


def relative(found: Tensor, expected: Tensor) -> float:
    """Of the norms. Raises AssertionError for another shape."""
    assert found.shape == expected.shape, f"{tuple(found.shape)}, not {tuple(expected.shape)}"
    error = (found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-12)
    return float(error) if error.isfinite() else float("inf")


def tried(check: Check, limit: float = CLOSE) -> Outcome:
    """check: gives a relative error, or a word where there is nothing to compare with."""
    try:
        found = check()
    except AssertionError as error:
        return Outcome("wrong", str(error))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        sentence = " ".join(str(error).split())
        ours = isinstance(error, ValueError) and Path(frame.filename).is_relative_to(CORE)
        return Outcome("refused" if ours else "raw", sentence if ours else f"{type(error).__name__}: {sentence}")
    if isinstance(found, str):
        return Outcome("absent", found)
    return Outcome("right") if found <= limit else Outcome("wrong", f"by {found:.2g}")


def states(encoder: TextEncoder, prompts: Any, **recipe: Any) -> Any:
    """HiddenStates of a recipe of LENGTH tokens that differs from the default one in ``recipe``."""
    made = PromptRecipe(**{"max_length": LENGTH, "vision_mask": True, **recipe})
    with torch.no_grad():
        return encoder(encoder.tokenize(list(prompts), made), made)


def examine(encoder: TextEncoder, folder: Path) -> dict[str, Outcome]:
    """The recipe's options. folder: where the encoder was loaded from."""
    layers = next(name for name, module in encoder.model.named_modules() if module is encoder.layers())
    own = Reference(folder, encoder.model, layers)
    ids = encoder.tokenize(PROMPTS[:1], PromptRecipe(max_length=LENGTH, padding="longest")).ids
    alone = tried(lambda: float(own.last(ids, torch.ones_like(ids)).isnan().any()))
    if alone.kind != "right":  # transformers' own class does not run on text alone
        return {"last": tried(lambda: f"{alone.why}, shape {tuple(states(encoder, PROMPTS[:1]).states.shape)}")}
    return {name: tried(check) for name, check in _recipes(encoder, own)}


def _recipes(encoder: TextEncoder, own: Reference) -> Iterator[tuple[str, Check]]:
    rows = [encoder.tokenize([p], PromptRecipe(max_length=LENGTH, padding="longest")).ids for p in PROMPTS]
    short = rows[0]
    alone = [own.last(ids, torch.ones_like(ids))[0] for ids in rows]

    def real(prompts: Any = PROMPTS[:1], row: int = 0, **recipe: Any) -> Tensor:
        found = states(encoder, prompts, **recipe)
        assert found.states.shape[:2] == found.mask.shape, f"shape {tuple(found.states.shape)}"
        return found.states[row][found.mask[row]]

    def padded(row: int, unmasked: bool = False) -> Tensor:
        """transformers' own states of the prompt, padded to LENGTH tokens. [T D]"""
        tokens = encoder.tokenize([PROMPTS[row]], PromptRecipe(max_length=LENGTH))
        found = own.last(tokens.ids, None if unmasked else tokens.mask)
        return found[0][tokens.mask[0]]

    bare = [{"max_length": ids.shape[1]} for ids in rows]  # no padding
    yield "last", lambda: relative(real(**bare[0]), alone[0])
    yield "longer", lambda: relative(real(PROMPTS[1:], **bare[1]), alone[1])
    yield "padded right", lambda: relative(real(), padded(0))
    yield "unmasked", lambda: relative(real(language_mask=False), padded(0, unmasked=True))
    yield "batch", lambda: max(relative(real(PROMPTS, row), padded(row)) for row in (0, 1))
    yield "in company", lambda: max(relative(real(PROMPTS, row, padding="longest"), alone[row]) for row in (0, 1))
    yield "padded left", lambda: relative(real(padding_side="left"), alone[0])
    entries = _entries(own, short)
    for k in (*range(len(entries) - 1), -2):
        yield f"entry {k}", lambda k=k: relative(real(hidden_states=k, **bare[0]), _at(entries, k)[0])
    before, mean = ("last_before_norm", own.before_norm), ("normalized_mean", own.normalized_mean)
    for which, compute in (before, mean):
        yield (
            which,
            lambda which=which, compute=compute: relative(real(hidden_states=which, **bare[0]), compute(short)[0]),
        )
    room, endless = min(encoder.positions or 300, 300), " ".join(PROMPTS[1:] * 40)
    yield "all positions", lambda: 1.0 - float(real([endless], max_length=room).isfinite().all())
    yield "whole model", lambda: _whole(own, short, alone[0])


@torch.no_grad()
def _whole(own: Reference, ids: Tensor, expected: Tensor) -> float | str:
    """The model around the trunk, given text alone."""
    if own.model is own.trunk or getattr(own.model.config, "is_encoder_decoder", False):
        return "the trunk is the model"
    try:
        found = own.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    except Exception as error:
        return f"the whole model takes more than text ({type(error).__name__})"
    return relative(found, expected) if found.shape == expected.shape else "the whole model gives another shape"


def examine_uses(encoder: TextEncoder, folder: Path) -> dict[str, Outcome]:
    """Other ways to load and use the model that the encoder was loaded from: each beside the encoder itself."""
    plain = states(encoder, PROMPTS[:1]).states

    def bf16() -> float:
        half = TextEncoder.load(folder, dtype=torch.bfloat16)
        found = states(half, PROMPTS[:1]).states
        half.model.float()  # the same weights, computed exactly
        return relative(found, states(half, PROMPTS[:1]).states)

    def eight_bit() -> float:
        rounded = TextEncoder.load(folder, weights="8-bit")
        found = states(rounded, PROMPTS[:1]).states
        error = relative(found, plain)
        if error <= CLOSE_IN_8_BIT:
            return error
        dense = TextEncoder.load(folder)  # with the same weights, rounded: other experts can be chosen by those
        with torch.no_grad():
            for path, part in packed(rounded.model):
                dense.model.get_parameter(path).copy_(part[:])
        return 0.0 if relative(found, states(dense, PROMPTS[:1]).states) < 1e-3 else error

    def streamed() -> float:
        return relative(states(TextEncoder.load(folder, stream=True), PROMPTS[:1]).states, plain)

    def skeleton() -> float | str:
        found = TextEncoder.skeleton(folder).config.fingerprint
        assert found is not None, "it is None"
        assert found == encoder.config.fingerprint, "it is another"
        return 0.0

    def live() -> float:
        deltas = _random_lora(encoder)
        found = []
        for put_in in (lora.attach, lora.merge):
            applied = put_in(encoder.model, deltas)
            try:
                found.append(states(encoder, PROMPTS[:1]).states)
            finally:
                applied.remove()
        assert relative(found[1], plain) > 1e-3, "it changes nothing, live or merged"
        return relative(*found)

    return {
        "bf16": tried(bf16, CLOSE_IN_BF16),
        "8-bit": tried(eight_bit, CLOSE_IN_8_BIT),
        "streamed": tried(streamed, 1e-5),
        "fingerprint": tried(skeleton),
        "LoRA": tried(live, 1e-3),
    }


def _random_lora(encoder: TextEncoder) -> dict[str, Delta]:
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for path in encoder.lora_sites():
        down, up = lora.shapes(encoder.model.get_submodule(path), 2)
        deltas[path] = Delta(torch.randn(down, generator=generator), torch.randn(up, generator=generator), 0.05)
    return deltas
