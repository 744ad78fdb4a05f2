"""A probe's states are those of a recipe, its maps are ridge regression, and what it writes can be read."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.tests.lavi_core.conftest import tiny_model, write_tokenizer
from lavi_bridge.tests.lavi_core.language.gguf_files import write_llama
from lavi_bridge.training.commands import main
from lavi_bridge.training.loop.closed_form import Moments
from lavi_bridge.training.probe.captions import Split, Text, of_file, of_shapebench
from lavi_bridge.training.probe.measure import PENALTIES, SOON, TEST, TOLD, UNSEEN, Share, measure, solve
from lavi_bridge.training.probe.report import Column
from lavi_bridge.training.probe.states import BEFORE, LAST, MEAN, choices, hand_on, named
from lavi_bridge.training.probe.targets import CAPTION, STATES, WORD, Targets, by_word, pooling, teacher_states
from PIL import Image

pytestmark = pytest.mark.usefixtures("on_cpu")
CPU = torch.device("cpu")
PROMPT = PromptRecipe(max_length=20, padding="longest")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bert/, llama/, t5/ and gpt2/, which no row knows, of three layers; llama.gguf."""
    folder = tmp_path_factory.mktemp("languages")
    for kind in ("bert", "llama", "t5", "gpt2"):
        tokenizer = write_tokenizer(folder / kind, bos=kind != "t5", pad=kind != "llama")
        tiny_model(kind, len(tokenizer)).save_pretrained(folder / kind)
    write_llama(folder / "llama.gguf", folder / "llama")
    return folder


@pytest.fixture(scope="module")
def split():
    return of_shapebench("small", 96)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "gpt2", "llama.gguf"])
def test_the_states_of_one_pass_are_those_of_a_recipe(models: Path, kind: str) -> None:
    encoder = TextEncoder.load(models / kind, dtype=torch.float32)
    tokens = encoder.tokenize(["a red circle", "two blue squares and a wedge"], PROMPT)
    known = choices(encoder, PROMPT, CPU)
    assert known == [0, 1, 2, *([] if kind == "bert" else [BEFORE]), LAST, MEAN]  # BERT has no final norm of its own
    found = {}
    hand_on(encoder, tokens, PROMPT, known, found.__setitem__)
    assert found.keys() == set(known)
    with torch.no_grad():
        for which in known:
            asked = encoder(tokens, replace(PROMPT, hidden_states=which)).states
            torch.testing.assert_close(found[which], asked, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.model.modules())


def test_layers_are_named_as_in_a_recipe() -> None:
    assert named("all", [0, 1, LAST, MEAN], 2) == [0, 1, LAST, MEAN]
    assert named("-2, 2,normalized_mean", [0, 1, LAST, MEAN], 2) == [1, LAST, MEAN]
    with pytest.raises(ValueError, match="has 0 to 2"):
        named("3", [0, 1, LAST], 2)
    with pytest.raises(ValueError, match="learned_mean, this model has 0, 1, last"):
        named("learned_mean", [0, 1, LAST], 2)


def test_maps_are_ridge_regression_with_an_intercept() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 6).double() + 3, torch.randn(50, 4).double()
    moments = Moments()
    for part in (slice(0, 20), slice(20, 50)):
        moments.add(x[part], y[part])
    found = solve(moments)
    for penalty, weights in zip(PENALTIES, found.weights, strict=True):
        rows = torch.cat([x - x.mean(0), (50 * penalty) ** 0.5 * torch.eye(6).double()])  # the penalty as six more rows
        wanted = torch.linalg.lstsq(rows, torch.cat([y - y.mean(0), torch.zeros(6, 4).double()])).solution
        torch.testing.assert_close(weights.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_share_is_one_less_the_error_over_the_variance() -> None:
    share = Share(np.array([1.0, 0.0, 2.0]), np.array([4.0, 4.0, 2.0]))
    other = Share(np.array([1.0, 2.0]), np.array([2.0, 4.0]))  # the same of both captions, whichever are drawn
    assert share.value == pytest.approx(0.7) and other.value == 0.5
    alone, both = (Column("", keys) for keys in ((("b", "", 1.0),), (("a", "", 1.0), ("b", "", 1.0))))
    shares = {("a", "", 1.0): share, ("b", "", 1.0): other}
    assert alone.interval(shares) == (0.5, 0.5) and both.value(shares) == pytest.approx(0.6)
    low, high = both.interval(shares)
    assert low == pytest.approx(0.25 + np.quantile(share.drawn(), 0.025) / 2) and low < 0.6 < high


def test_a_word_is_the_mean_of_its_tokens(models: Path) -> None:
    tokenizer = TextEncoder.load(models / "bert").tokenizer
    weights = pooling(tokenizer, "a vermilion circle", 20)
    counts = (weights > 0).sum(1)
    assert len(weights) == 3 and counts[1] > 1 and torch.allclose(weights.sum(1), torch.ones(3))
    cut = pooling(tokenizer, "a vermilion circle", int(counts[:2].sum()) + 1)
    assert cut.isfinite().all(1).tolist() == [True, True, False]  # of the second word a piece, then the end token


def test_targets_are_words_and_their_neighbours_in_plain_words(split) -> None:
    targets = Targets(split, None)
    found = targets(Text("a crimson disc", "a red circle")).reshape(3, 3, -1)
    index = targets.index
    for row, (word, before, after) in enumerate([("a", "", "red"), ("red", "a", "circle"), ("circle", "red", "")]):
        for place, expected in enumerate((word, before, after)):
            assert found[row, place].nonzero().flatten().tolist() == ([index[expected]] if expected else [])


def test_own_states_are_heard_whole_and_layers_by_layer_the_same(models: Path, split) -> None:
    """The teacher's own language model: BERT ends in a LayerNorm, so its last states are the targets."""
    folder = models / "bert"
    split = replace(split, fit=_plain(split.fit), test=_plain(split.test))
    targets = Targets(split, teacher_states(folder, split.all, 24, CPU))
    encoder = TextEncoder.load(folder, dtype=torch.float32)
    found = measure("own", encoder, split, targets, max_length=24)
    shares = {which: of[TEST, STATES, 1e-4].value for which, of in found.shares.items()}
    assert list(shares) == [0, 1, 2, LAST, MEAN]
    assert shares[LAST] > 0.99 > shares[2] > shares[1] > shares[0]
    assert all(0 < of[TEST, CAPTION, 1e-2].value < 1 for of in found.shares.values())
    apart = measure("own", encoder, split, targets, max_length=24, batch=7, most_bytes=1)  # a pass a state
    for which, of in found.shares.items():
        assert apart.shares[which].keys() == of.keys()
        for key, share in of.items():
            assert apart.shares[which][key].value == pytest.approx(share.value, abs=1e-4)
    some = measure("own", encoder, split, targets, "1,last", max_length=24)
    assert list(some.shares) == [1, LAST]


def _plain(texts: Sequence[Text]) -> list[Text]:
    return [Text(text.plain, text.plain) for text in texts]


def test_new_words_alone_count_among_the_unseen(tiny: Path, split) -> None:
    encoder = TextEncoder.load(tiny / "text_encoder", dtype=torch.float32)
    targets = Targets(split, None)
    shares = measure("own", encoder, split, targets, "last", max_length=24).shares[LAST]
    kept = replace(split, unseen=split.fit)  # captions without a new word have nothing to say here
    assert (UNSEEN, CAPTION, 1e-2) in shares and (TOLD, WORD, 1e-2) in shares
    assert (UNSEEN, CAPTION, 1e-2) not in measure("own", encoder, kept, targets, "last", max_length=24).shares[LAST]


def test_a_new_word_means_what_the_teacher_says_where_it_stands(models: Path, split) -> None:
    said = [Text(text.said, text.said) for text in split.unseen]
    own = replace(split, fit=_plain(split.fit), unseen=said)
    states = teacher_states(models / "bert", own.all, 24, CPU)
    targets = Targets(own, states)
    found = targets.meanings[STATES]
    assert "crimson" in found.places and "red" in found.places and "scarlet" not in found.places
    here = [states[text.said][i] for text in said for i, word in enumerate(text.said.split()) if word == "crimson"]
    torch.testing.assert_close(found.rows[found.places["crimson"]], torch.stack(here).mean(0))
    circle = Text("a crimson disc", "a red circle")
    assert targets.meant(STATES, circle).tolist() == [found.places[word] for word in ("a", "red", "circle")]
    assert Targets(split, None).meant(WORD, Text("a crimson thing", "a crimson thing")).tolist()[1:] == [-1, -1]
    once = Split("once", [Text("one", "one")], [], [Text("two", "two")], named=False)  # no word of it comes twice
    assert WORD not in Targets(once, teacher_states(models / "bert", once.all, 24, CPU)).meanings


def test_new_words_are_told_by_the_nearest_meaning(models: Path, split) -> None:
    """The embeddings' share again, by least squares and cosines of one word after the other."""
    own = replace(split, fit=_plain(split.fit), unseen=[Text(text.said, text.said) for text in split.unseen])
    states = teacher_states(models / "bert", own.all, 24, CPU)
    targets, encoder = Targets(own, states), TextEncoder.load(models / "bert", dtype=torch.float32)
    shares = measure("own", encoder, own, targets, "0", max_length=24).shares[0]

    def features(texts: Sequence[Text]) -> torch.Tensor:
        found = []
        with torch.no_grad():
            for text in texts:
                asked = replace(PROMPT, hidden_states=0, max_length=24)
                heard = encoder(encoder.tokenize([text.said], asked), asked).states[0]
                normed = torch.nn.functional.layer_norm(heard, heard.shape[-1:]) / heard.shape[-1] ** 0.5
                found.append(by_word(pooling(encoder.tokenizer, text.said, 24)[:, : len(heard)], normed))
        return torch.cat(found).double()

    x, y = features(own.fit), torch.cat([states[text.said] for text in own.fit]).double()
    read = x.isfinite().all(1) & y.isfinite().all(1)  # the others were cut off
    x, y = x[read], y[read]
    size, mean, middle = x.shape[1], x.mean(0), y.mean(0)
    rows = torch.cat([x - mean, (len(x) * SOON) ** 0.5 * torch.eye(size).double()])
    weight = torch.linalg.lstsq(rows, torch.cat([y - middle, torch.zeros(size, y.shape[1]).double()])).solution
    meanings, right = targets.meanings[STATES], []
    words = [word for text in own.unseen for word in text.said.split()]
    for word, answer in zip(words, (features(own.unseen) - mean) @ weight, strict=True):
        near = torch.cosine_similarity(answer[None], meanings.rows.double() - middle)
        if word not in own.known and answer.isfinite().all():
            right.append(list(meanings.places)[int(near.argmax())] == word)
    assert shares[TOLD, STATES, SOON].value == pytest.approx(np.mean(right), abs=0.005)
    assert 0.1 < np.mean(right) < 0.99


def test_what_is_solved_on_has_no_caption_and_no_word_of_the_others(split, tmp_path: Path) -> None:
    assert not {text.said for text in split.fit} & {text.said for text in (*split.test, *split.unseen)}
    assert all(set(text.said.split()) - split.known for text in split.unseen)
    assert any(text.said != text.plain for text in split.fit)
    words = [f"word{chr(97 + i)}" for i in range(26)] + ["harbour", "lantern", "meadow", "thimble", "walnut", "orchard"]
    words = [word for word in words for _ in range(4)]
    lines = [f"A {words[i % len(words)]}, {words[(7 * i + 3) % len(words)]} number {i}." for i in range(200)]
    (tmp_path / "data.tsv").write_text("\n".join(f"pictures/{i}.png\t{line}" for i, line in enumerate(lines)))
    (tmp_path / "data.txt").write_text("\n".join([*lines, "", lines[0]]))
    found, same = of_file(tmp_path / "data.tsv", 128), of_file(tmp_path / "data.txt", 128)
    assert found.fit == same.fit and len(found.all) == len({text.said for text in found.all}) == 192
    assert 32 <= len(found.unseen) < 64 and len(found.test) == 32
    plain = [{word.lower().strip(".,") for word in text.said.split()} for text in found.unseen]
    assert all(any(word.isalpha() and word not in found.known for word in words) for words in plain)
    (tmp_path / "few.txt").write_text("\n".join(lines[:50]))
    with pytest.raises(ValueError, match="has 50 different captions; a probe needs 96"):
        of_file(tmp_path / "few.txt", 128)
    spaceless = Split("zh", [Text(f"\u7ea2\u5706{i}", f"\u7ea2\u5706{i}") for i in range(9)], [], [], named=False)
    with pytest.raises(ValueError, match="no word comes twice in the captions of zh"):
        Targets(spaceless, None)
    with pytest.raises(ValueError, match="is no file of captions"):
        of_file(tmp_path / "data.csv", 128)


def test_the_command_writes_a_table_a_picture_and_what_to_put_into_the_recipe(
    models: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    names = [str(models / "bert"), str(models / "llama.gguf"), str(models / "t5")]
    command = ["probe", *names, "--count", "96", "--max-length", "24", "--device", "cpu", "-o", str(output)]
    assert main([*command, "--teacher", str(tiny / "text_encoder")]) == 0
    text = capsys.readouterr().out
    assert (output / "table.md").read_text() == text.removesuffix("\n")
    assert "| both | seen words | new words | new words told | in the end |" in text
    assert all(f"| {name} | 0 |" in text for name in names)
    assert "    [prompt]\n    hidden_states = " in text and "the own encoder's states" in text
    found = json.loads((output / "probe.json").read_text())
    assert [model["name"] for model in found["models"]] == names and found["captions"]["fit"] == 96
    best = {model["name"]: max(_soon(model).items(), key=lambda item: item[1]) for model in found["models"]}
    first = max(best, key=lambda name: best[name][1])
    states = best[first][0] if isinstance(best[first][0], int) else f'"{best[first][0]}"'
    assert f'model = "{first}"\n    [prompt]\n    hidden_states = {states}\n' in text
    with Image.open(io.BytesIO((output / "probe.png").read_bytes())) as picture:
        assert picture.width == 1320 and np.asarray(picture).std() > 0


def test_states_that_overflow_are_told(tiny: Path, split) -> None:
    encoder = TextEncoder.load(tiny / "text_encoder", dtype=torch.float32)
    encoder.layers()[0].register_forward_pre_hook(lambda _, args: (args[0] * torch.inf, *args[1:]))
    encoder.layers()[0].register_forward_hook(lambda _, args, output: torch.zeros_like(args[0]))
    with pytest.raises(ValueError, match=r"hidden states 0 of own are not finite in torch.float32; take a wider"):
        measure("own", encoder, split, Targets(split, None), "0", max_length=24)


def _soon(model: dict) -> dict:
    """hidden states -> the mean of seen and new words."""
    wanted = [("test", "states", 1e-2), ("unseen", "states", 1e-2)]
    return {
        one["hidden_states"]: sum(
            share["share"] / 2
            for share in one["shares"]
            if (share["captions"], share["part"], share["penalty"]) in wanted
        )
        for one in model["hidden_states"]
    }


def test_captions_of_ones_own_without_a_vision_model(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes, colors = ["circle", "square", "wedge", "cross"], ["red", "blue", "green", "jade"]
    pairs = [f"{color} {shape}" for color in colors for shape in shapes]
    lines = [f"a {one} and a {two}" for one in pairs for two in pairs if one != two]
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    output = tmp_path / "out"
    command = ["probe", str(models / "llama"), "--captions", str(tmp_path / "mine.txt"), "--count", "120"]
    assert main([*command, "--layers", "0,last", "--device", "cpu", "-o", str(output)]) == 0
    text = capsys.readouterr().out
    assert (
        "each word and its neighbours" in text and "| seen words | in the end |" in text
    )  # what they mean, no one has said
    assert text.count(f"| {models / 'llama'} |") == 2


def test_what_it_cannot_do_is_told(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["-o", str(tmp_path / "out")]
    for args, told in (
        ([], "name language models to probe, or --check PLAN"),
        ([str(models / "bert"), "--check", "plan.toml"], "one of the two"),
        (["--check", "plan.toml"], "--check needs --work"),
        ([str(models / "bert"), "--count", "95"], "--count must be at least 96, below which nothing can be told"),
        ([str(models / "bert"), "--count", "96", "--layers", "7"], "has 0 to 3"),
    ):
        assert main(["probe", *args, "--device", "cpu", *output]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
