"""The head start: words are brought together, and the bridge comes to say what the vision model's own encoder says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.adapters import Adapter
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.language.tokens import tokenize
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.training.demo.start import tokenizer
from lavi_bridge.training.loop.alignment import align
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.loop.word_places import matches, places, same_words
from lavi_bridge.training.recipe import read_recipe
from lavi_bridge.training.shapebench import VOCABULARIES

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny vision model's own encoder: as wide as its context."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("teacher")
    words = tokenizer(VOCABULARIES["small"], 24)
    sizes: Any = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 24,
    }
    torch.manual_seed(5)
    config = BertConfig(vocab_size=len(words), hidden_size=24, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_words_of_a_paraphrase_find_their_plain_words() -> None:
    said, plain = "a crimson four-sided shape left of a ball", "a red square left of a circle"
    same = [plain.split()[place] for place in same_words(said.split(), plain.split())]
    assert same == ["a", "red", "red", "square", "left", "of", "a", "circle"]
    assert same_words([], []) == []


def test_every_kind_of_token_finds_its_place(tiny: Path, teacher: Path) -> None:
    student, own = TextEncoder.load(tiny / "text_encoder").tokenizer, TextEncoder.load(teacher).tokenizer

    def found(said: str, plain: str) -> list[int]:
        weights = matches(said, plain, places(student, said, 16), places(own, plain, 16), "padding")
        assert (weights.sum(1) == 1).all() and (weights > 0).sum() == 16
        return weights.argmax(1).tolist()

    assert found("a red ball", "a red circle") == [0, 1, 2, 3, 4, *range(5, 16)]  # [CLS], three words, [SEP], padding
    assert found("", "") == list(range(16))


def test_places_are_those_of_the_tokens_that_are_read(tmp_path: Path) -> None:
    """SDXL's second tokenizer pads with "!", and transformers makes padding of each one in a text. Read as text, as
    open_clip and ComfyUI read it, two of them are one token."""
    from transformers import CLIPTokenizer

    words = ["!", "!</w>", "!!</w>", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n! !</w>\n")
    ends = {"bos_token": words[5], "eos_token": words[6], "unk_token": words[6], "pad_token": "!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **ends}))
    clip = CLIPTokenizer.from_pretrained(tmp_path)
    assert clip("a!! b")["input_ids"] == [5, 3, 0, 0, 4, 6]
    read = tokenize(clip, ["a!! b"], PromptRecipe(max_length=8))
    assert read.ids.tolist() == [[5, 3, 2, 4, 6, 0, 0, 0]]
    found = places(clip, "a!! b", 8)
    assert [place.kind for place in found] == ["before", *["word"] * 3, "after", *["padding"] * 3]
    assert [(place.word, place.start, place.end) for place in found[1:4]] == [(0, 0, 1), (0, 1, 3), (1, 0, 1)]


def test_a_token_goes_with_those_that_cover_the_same_characters(tiny: Path) -> None:
    """ours: bytes' pairs of a word; theirs: whole words and letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def pieces(*words: str) -> Any:
        raw = Tokenizer(models.WordPiece({w: i for i, w in enumerate(("?", *words))}, unk_token="?"))  # type: ignore[call-arg]
        raw.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?", pad_token="?")

    halves, letters = pieces("re", "##d", "cir", "##cle", "ball"), pieces("red", "c", "##i", "##r", "##cle")
    ours, theirs = places(halves, "red  circle", 5), places(letters, "red  circle", 6)
    weights = matches("red  circle", "red  circle", ours, theirs, "padding") * 6
    assert weights.round().tolist() == [
        [6, 0, 0, 0, 0, 0],
        [6, 0, 0, 0, 0, 0],
        [0, 2, 2, 2, 0, 0],
        [0, 0, 0, 0, 6, 0],
        [0, 0, 0, 0, 0, 6],
    ]
    said = places(halves, "red ball", 3)
    paraphrase = matches("red ball", "red circle", said, places(letters, "red circle", 6), "padding") * 4
    assert paraphrase[2].round().tolist() == [0, 1, 1, 1, 1, 0]  # the whole of the word in its place
    cut = matches("red circle", "red circle", places(halves, "red circle", 4), places(letters, "red circle", 1), "ends")
    assert cut[:2].tolist() == [[1], [1]] and not cut[2:].any()


def test_aligning_lowers_the_error_and_is_repeatable(recipe: Path, teacher: Path, tmp_path: Path) -> None:
    def run(name: str, steps: int) -> float:
        overrides = [f"output={json.dumps(str(tmp_path / name))}", f"align.steps={steps}", "align.boost=3.0"]
        overrides += [f"align.teacher={json.dumps(str(teacher))}", "align.batch_size=16", "language.dropout=0.0"]
        trainer = Trainer(read_recipe(recipe, overrides))
        trainer.pair.train()
        return align(trainer.recipe, trainer.pair, trainer.source, torch.device("cpu"))

    short, long = run("a", 5), run("b", 150)
    assert long < 0.5 * short
    assert run("c", 5) == short


def test_tokens_of_an_adapters_own_learn_the_teachers_place_by_place_at_timesteps_drawn(
    recipe: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the prompt recipe puts around the words: none is looked for."""
    kind = ["adapter.kind=timestep_resampler", "adapter.depth=1", "prompt.hidden_states=learned_mean"]
    kind += ['prompt.template="say {prompt}"', "language.dropout=0.0", "align.boost=3.0", "align.batch_size=16"]

    def run(name: str, steps: int, tokens: int = 12) -> Trainer:
        overrides = [f"output={json.dumps(str(tmp_path / name))}", f"align.steps={steps}", f"adapter.tokens={tokens}"]
        overrides += [f"align.teacher={json.dumps(str(teacher))}"]
        trainer = Trainer(read_recipe(recipe, [*kind, *overrides]))
        trainer.pair.train()
        return trainer

    def loss(trainer: Trainer) -> float:
        return align(trainer.recipe, trainer.pair, trainer.source, torch.device("cpu"))

    heard, long = [], run("a", 150)
    trained = long.pair.adapter.layer_mean
    assert trained is not None
    first = loss(run("b", 5))
    with monkeypatch.context() as patch:
        forward = Adapter.forward
        patch.setattr(Adapter, "forward", lambda *args: (heard.append(args[2]), forward(*args))[1])
        last = loss(long)
    assert last < 0.7 * first and loss(run("c", 5)) == first
    assert all(t.shape == (16,) for t in heard) and len({float(t) for step in heard for t in step}) > 2000
    assert trained.logits.abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"has 24 positions, the adapter gives 25 tokens: set adapter\.tokens = 24"):
        loss(run("d", 5, tokens=25))


@pytest.mark.parametrize("change", ['template="say {prompt}"', 'padding_side="left"', "cut_template=true"])
def test_a_prompt_whose_tokens_lie_elsewhere_is_refused(recipe: Path, teacher: Path, change: str) -> None:
    overrides = ["align.steps=1", f"align.teacher={json.dumps(str(teacher))}", f"prompt.{change}"]
    with pytest.raises(ValueError, match=f"alignment needs prompt.{change.partition('=')[0]}"):
        Trainer(read_recipe(recipe, overrides)).run()


def test_a_tokenizer_without_offsets_is_refused(recipe: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(read_recipe(recipe, ["align.steps=1", f"align.teacher={json.dumps(str(teacher))}"]))
    monkeypatch.setattr(type(trainer.pair.encoder.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="which letters a token covers"):
        trainer.run()


def test_a_teacher_of_another_width_is_refused(recipe: Path, tiny: Path) -> None:
    overrides = ["align.steps=1", f"align.teacher={json.dumps(str(tiny / 'text_encoder'))}"]
    with pytest.raises(ValueError, match="gives width 32, the vision model takes 24"):
        Trainer(read_recipe(recipe, overrides)).run()
