"""Hidden states that are kept: what comes back, how much is stored, and when nothing may be reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.conditioning import Conditioning, HiddenStates
from lavi_bridge.lavi_core.files import read_safetensors
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.training.data import TextStateCache
from lavi_bridge.training.data import text_states as states_module
from lavi_bridge.training.models.vision_model import load_vision_model

MASKED = PromptRecipe(max_length=16, vision_mask=True)
HEARD = PromptRecipe(max_length=16, language_mask=False)
CAPTIONS = ["a red circle", "a small blue square left of two green triangles", "", "a red circle"]


class Model:
    """A tiny BERT, and what it was asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype, prompt: PromptRecipe):
        self.encoder, self.prompt = TextEncoder.load(folder, dtype=dtype), prompt
        self.asked: list[list[str]] = []

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> HiddenStates:
        self.asked.append(list(captions))
        return self.encoder(self.encoder.tokenize(captions, self.prompt), self.prompt)

    def alone(self, caption: str) -> HiddenStates:
        """As the cache does not see it."""
        found = self([caption])
        self.asked.pop()
        return found


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def test_states_come_back_to_the_bit_with_the_padding_that_is_heard(
    tiny: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = Model(tiny / "text_encoder", dtype, HEARD)
    uncached = model(CAPTIONS[:3])
    for attempt in range(2):
        cache = TextStateCache(tmp_path, {"dtype": str(dtype)}, HEARD, model)
        assert len(cache) == (3 if attempt else 0)
        found = cache.get(CAPTIONS)
        assert model.asked[1:] == [CAPTIONS[:3]]  # each once, together, and not again
        assert found.states.dtype == dtype and found.states.shape == (4, 16, 32)
        assert torch.equal(found.states, uncached.states[[0, 1, 2, 0]])
        assert torch.equal(found.mask, uncached.mask[[0, 1, 2, 0]]) and not found.mask.all()
        cache.flush()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_states_come_back_to_the_bit_without_padding_that_is_masked(
    tiny: Path, tmp_path: Path, dtype: torch.dtype, side: str, padding: str
) -> None:
    prompt = replace(MASKED, padding_side=side, padding=padding)  # type: ignore[arg-type]
    model = Model(tiny / "text_encoder", dtype, prompt)
    uncached = model(CAPTIONS[:3])
    tokens = uncached.mask.sum(1).tolist()
    assert tokens[0] < tokens[1] < 16
    for _ in range(2):
        cache = TextStateCache(tmp_path, {}, prompt, model)
        for rows in ([0, 1, 2], [2, 0], [1], [0, 0]):
            found = cache.get([CAPTIONS[i] for i in rows])
            assert found.mask.shape[1] == found.states.shape[1] == max(tokens[i] for i in rows)
            for row, i in enumerate(rows):
                assert torch.equal(found.states[row][found.mask[row]], uncached.states[i][uncached.mask[i]])
                assert found.mask[row, 0 if side == "right" else -1] and not found.states[row][~found.mask[row]].any()
        cache.flush()
    (file,) = tmp_path.glob("*/0*.safetensors")
    assert len(read_safetensors(file)["states"]) == sum(tokens)  # no padding is stored


def test_the_vision_model_hears_the_same(tiny: Path, tmp_path: Path) -> None:
    model, vision = Model(tiny / "text_encoder", torch.float32, MASKED), load_vision_model(tiny / "vision")
    x, t = torch.randn(3, 4, 4, 4, generator=torch.manual_seed(0)), torch.tensor([900.0, 500.0, 10.0])
    width = vision.context_width

    def predict(said: HiddenStates) -> torch.Tensor:
        with torch.no_grad():
            return vision.predict(x, t, Conditioning(said.states[..., :width], said.mask))

    expected = predict(model(CAPTIONS[:3]))
    found = predict(TextStateCache(tmp_path, {}, MASKED, model).get(CAPTIONS[:3]))
    swapped = predict(model([CAPTIONS[1], CAPTIONS[0], CAPTIONS[2]]))
    assert (found - expected).abs().max() < 1e-5 < 1e-3 < (swapped - expected).abs().max()


def test_no_setting_takes_what_another_made(tiny: Path, tmp_path: Path) -> None:
    model = Model(tiny / "text_encoder", torch.float32, MASKED)
    settings = [({"print": "a"}, MASKED), ({"print": "b"}, MASKED), ({"print": "a", "dtype": "x"}, MASKED)]
    settings += [({"print": "a"}, replace(MASKED, **change)) for change in ({"max_length": 8}, {"hidden_states": 1})]
    for facts, prompt in settings:
        cache = TextStateCache(tmp_path, facts, prompt, model)
        assert len(cache) == 0
        cache.get(CAPTIONS)
        cache.flush()
    assert len(list(tmp_path.iterdir())) == len(model.asked) == 5
    assert len(TextStateCache(tmp_path, {"dtype": "x", "print": "a"}, MASKED, model)) == 3


def company(captions: Sequence[str]) -> HiddenStates:
    """States that show in which company they were computed, as a last bit does."""
    states = torch.tensor([[[float(text), float(len(captions))]] * 2 for text in captions])
    return HiddenStates(states, torch.ones(states.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("file_bytes", [1, 60, 10**6])
def test_a_run_that_is_killed_and_resumed_gets_the_same_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    monkeypatch.setattr(states_module, "FILE_BYTES", file_bytes)
    generator = torch.manual_seed(0)
    steps = [[str(int(i)) for i in torch.randint(0, 30, (4,), generator=generator)] for _ in range(24)]

    def run(folder: str, begin: int, end: int) -> list[torch.Tensor]:
        cache, said = TextStateCache(tmp_path / folder, {}, HEARD, company, most_gb=400e-9), []
        for step in range(begin, end):
            if step % 4 == 0:
                cache.flush()  # with the state of the run
            said.append(cache.get(steps[step]).states)
        return said

    whole = run("whole", 0, 24)
    assert {float(states[0, 0, 1]) for states in whole} >= {1.0, 4.0}
    killed = [*run("killed", 0, 7)[:4], *run("killed", 4, 11)[:4], *run("killed", 8, 24)]
    assert len(killed) == 24 and all(torch.equal(a, b) for a, b in zip(whole, killed, strict=True))


def test_what_other_processes_wrote_is_taken_in(tmp_path: Path) -> None:
    one, other = (TextStateCache(tmp_path, {}, HEARD, company) for _ in range(2))
    one.get(["1", "2"])
    other.get(["2", "3"])
    one.flush()
    other.flush()
    assert (len(one), len(other)) == (2, 3)
    assert other.get(["1"]).states[0, 0, 1] == 2 and len(TextStateCache(tmp_path, {}, HEARD, company)) == 3
    one.flush()
    assert len(one) == 3


def test_a_full_cache_computes_what_it_does_not_keep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TextStateCache(tmp_path, {}, HEARD, company, most_gb=40e-9)  # two captions of 16 bytes
    cache.get(["1", "2"])
    for _ in range(2):
        assert cache.get(["3", "1"]).states[:, 0, 0].tolist() == [3, 1]
    assert len(cache) == 2 and caplog.text.count("further states are not kept") == 1


def test_a_batch_of_templates_cut_to_several_lengths_is_computed_as_it_is(tmp_path: Path) -> None:
    def cut(captions: Sequence[str]) -> HiddenStates:
        length = max(int(text) for text in captions)
        return HiddenStates(torch.full((len(captions), length, 2), 7.0), torch.ones(len(captions), length) > 0)

    cache = TextStateCache(tmp_path, {}, HEARD, cut)
    assert cache.get(["2"]).states.shape == (1, 2, 2) and cache.get(["3"]).states.shape == (1, 3, 2)
    assert cache.get(["2", "3"]).states.eq(7).all()  # no zeros, which would be heard


def test_states_that_are_the_batchs_are_refused(tmp_path: Path) -> None:
    for prompt in (
        PromptRecipe(padding="longest"),
        PromptRecipe(padding="longest", vision_mask=True, language_mask=False),
    ):
        with pytest.raises(ValueError, match=r"cannot be kept: .* they depend on the batch"):
            TextStateCache(tmp_path, {}, prompt, company)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    cache = TextStateCache(tmp_path, {}, HEARD, company)
    cache.get(["1"])
    (cache.folder / "facts.json").unlink()
    cache.folder.rmdir()
    cache.folder.write_text("")
    with pytest.raises(ValueError, match=r"the hidden states cannot be written to .*; make room there"):
        cache.flush()


def test_states_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    broken = True

    def compute(captions: Sequence[str]) -> HiddenStates:
        states = torch.full((len(captions), 4, 2), float("inf") if broken else 1.0)
        return HiddenStates(states, torch.ones(len(captions), 4) > 0)

    cache = TextStateCache(tmp_path, {}, HEARD, compute)
    with pytest.raises(ValueError, match=r"are not finite .* so none is kept"):
        cache.get(["a"])
    broken = False
    assert len(cache) == 0 and cache.get(["a"]).states.eq(1).all() and len(cache) == 1
