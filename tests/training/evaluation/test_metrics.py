"""Each metric on tiny random models of the real classes, against another way to the same number."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lavi_bridge.tests.training.evaluation.conftest import write_run
from lavi_bridge.tests.training.evaluation.models import fake_detector, write_weights
from lavi_bridge.training.evaluation.metric_weights import Unavailable, Weights
from lavi_bridge.training.evaluation.metrics import METRICS, MetricInputs
from lavi_bridge.training.evaluation.metrics.aesthetic import load_head
from lavi_bridge.training.evaluation.metrics.blip_vqa import question
from lavi_bridge.training.evaluation.metrics.clip import Clip
from lavi_bridge.training.evaluation.metrics.detector import Box, Detector
from lavi_bridge.training.evaluation.metrics.spatial import Scene, around, score
from lavi_bridge.training.evaluation.noun_phrases import Rules
from lavi_bridge.training.evaluation.prompts import Prompt
from lavi_bridge.training.evaluation.run_folder import Run


def means(folder: Path, **roles: Path) -> MetricInputs:
    path = write_weights(folder / "weights.toml", {role.replace("_", "-"): place for role, place in roles.items()})
    return MetricInputs(weights=Weights.read(path), device=torch.device("cpu"), batch_size=3)


def test_clip_score_is_the_cosine_of_clips_own_forward(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    found = METRICS["clip-score"].measure(run.pictures, means(tmp_path, clip_b32=models["clip"]))
    model = CLIPModel.from_pretrained(models["clip"]).eval()
    tokenizer, processor = (kind.from_pretrained(models["clip"]) for kind in (AutoTokenizer, AutoImageProcessor))
    for picture in run.pictures:  # one by one, so without padding
        inputs = tokenizer([picture.prompt], return_tensors="pt")
        pixels = processor(images=[picture.read()], return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"], pixel_values=pixels["pixel_values"]).logits_per_image
        assert found.values[picture.id] == pytest.approx(float(logits / model.logit_scale.detach().exp()), abs=1e-5)
    assert len(set(found.values.values())) == len(run.pictures)


def test_a_prompt_longer_than_clip_hears_is_counted(models: dict[str, Path], tmp_path: Path) -> None:
    long = write_run(tmp_path / "run", [Prompt("a red circle " * 8), Prompt("a red circle")])
    found = METRICS["clip-score"].measure(long.pictures, means(tmp_path, clip_b32=models["clip"]))
    assert found.settings["prompts_cut"] == 1 and found.settings["tokens"] == 12


def heads(folder: Path, width: int) -> dict[str, Path]:
    """v1 and v2 as LAION publishes them."""
    generator = torch.Generator().manual_seed(5)
    sizes = (width, 1024, 128, 64, 16, 1)
    v2 = {}
    for place, (a, b) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        v2[f"layers.{place}.weight"] = torch.randn(b, a, generator=generator) / a**0.5
        v2[f"layers.{place}.bias"] = torch.randn(b, generator=generator)
    v1 = {"weight": torch.randn(1, width, generator=generator), "bias": torch.randn(1, generator=generator)}
    paths = {"aesthetic_v1": folder / "v1.pth", "aesthetic_v2": folder / "v2.pth"}
    torch.save(v1, paths["aesthetic_v1"])
    torch.save(v2, paths["aesthetic_v2"])
    return paths


def test_aesthetic_heads_are_products_by_hand(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, CLIPModel

    paths = heads(tmp_path, 16)
    given = means(tmp_path, clip_l14=models["clip"], **paths)
    v1, v2 = (METRICS[name].measure(run.pictures, given).values for name in ("aesthetic-v1", "aesthetic-v2"))
    model, processor = (
        CLIPModel.from_pretrained(models["clip"]).eval(),
        AutoImageProcessor.from_pretrained(models["clip"]),
    )
    one, many = (
        {k: v.double().numpy() for k, v in torch.load(path, weights_only=True).items()} for path in paths.values()
    )
    for picture in run.pictures:
        pixels = processor(images=[picture.read()], return_tensors="pt")
        with torch.no_grad():
            outputs = model(input_ids=torch.tensor([[2, 4, 3]]), pixel_values=pixels["pixel_values"])
        embedding = outputs.image_embeds[0].double().numpy()  # of unit length already
        assert v1[picture.id] == pytest.approx((one["weight"] @ embedding + one["bias"]).item(), abs=1e-4)
        x = embedding
        for place in (0, 2, 4, 6, 7):
            x = many[f"layers.{place}.weight"] @ x + many[f"layers.{place}.bias"]
        assert v2[picture.id] == pytest.approx(x.item(), abs=1e-4)


def test_a_head_for_another_clip_is_refused(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    given = means(tmp_path, clip_l14=models["clip"], **heads(tmp_path, 24))
    with pytest.raises(ValueError, match="takes embeddings of width 24 and gives 1 numbers, CLIP gives width 16"):
        METRICS["aesthetic-v1"].measure(run.pictures, given)


class Code:
    def __reduce__(self):
        return print, ("this pickle ran",)


def test_a_head_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"weight": Code()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not readable as weights"):
        load_head(tmp_path / "bad.pth", 16)
    assert "ran" not in capsys.readouterr().out


def test_blip_vqa_is_the_product_of_what_generate_would_answer(
    run: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    """transformers' own generate, one question at a time, its first logits."""
    from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

    metric = METRICS["blip-vqa"]
    pictures = metric.of(run.pictures)
    assert {picture.category for picture in pictures} == {"color", "complex"}
    found = metric.measure(pictures, means(tmp_path, blip_vqa=models["blip"]))
    model = BlipForQuestionAnswering.from_pretrained(models["blip"]).eval()
    tokenizer, processor = (kind.from_pretrained(models["blip"]) for kind in (AutoTokenizer, AutoImageProcessor))
    phrases = {
        "a red circle and a big blue square": ["a red circle", "a big blue square"],
        "a wooden circle": ["a wooden circle"],
        "a big cat and a green square": ["a big cat", "a green square"],
    }
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    for picture in pictures:
        pixels = processor(images=[picture.read()], size={"height": 480, "width": 480}, return_tensors="pt")
        product = 1.0
        for phrase in phrases[picture.prompt]:
            ids = tokenizer([f"{phrase}?"], return_tensors="pt")["input_ids"]
            ids[:, 0] = len(tokenizer) + 1  # [ENC]
            answer = model.generate(
                input_ids=ids,
                pixel_values=pixels["pixel_values"],
                interpolate_pos_encoding=True,
                attention_mask=torch.ones(ids.shape, dtype=torch.long),  # pyright: ignore[reportArgumentType]
                max_new_tokens=1,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            e_yes, e_no = np.exp(answer.logits[0][0, [yes, no]].double().numpy())
            product *= e_yes / (e_yes + e_no)
        assert found.values[picture.id] == pytest.approx(product, abs=1e-5)
        assert list(found.details[picture.id]) == phrases[picture.prompt]
    assert np.ptp(list(found.values.values())) > 0.01
    assert found.suffix == "phrases by rules"  # the name says that spaCy's are others


def test_blip_vqa_asks_for_eight_phrases_and_gives_one_for_none(models: dict[str, Path], tmp_path: Path) -> None:
    phrases = [f"a {word} circle" for word in ("red", "blue", "big", "wooden", "soft", "tall", "old", "new", "wet")]
    drawn = write_run(tmp_path / "run", [Prompt(" and ".join(phrases), "color"), Prompt("Running", "color")], (1,))
    found = METRICS["blip-vqa"].measure(drawn.pictures, means(tmp_path, blip_vqa=models["blip"]))
    assert list(found.details[0]) == phrases[:8]
    assert found.values[0] == pytest.approx(np.prod(list(found.details[0].values())))
    assert found.values[1] == 1 and found.settings["prompts_without_phrase"] == 1


def test_a_question_is_cleaned_as_blip_cleans_it() -> None:
    assert question('A "T.V." (old) #1*: ~5; red, isn\'t it!') == "a tv old 1 5 red, isn't it?"


def boxes_by_hand(logits: torch.Tensor, boxes: torch.Tensor, label: int, height: int, width: int) -> Box | None:
    """DETR's output of one picture, as its paper reads it: softmax, the last class is none; centre, size -> corners."""
    chances = logits.softmax(-1)[:, :-1]
    best, labels = chances.max(-1)
    mine = [i for i in range(len(best)) if labels[i] == label and best[i] > 0.05]
    if not mine:
        return None
    i = max(mine, key=lambda i: float(best[i]))
    x, y, w, h = boxes[i].tolist()
    corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    return Box(*corners, confidence=float(best[i]))


def test_the_detector_finds_the_boxes_of_detrs_own_output(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, DetrForObjectDetection

    detector = Detector.load(means(tmp_path, detector=models["detr"]).weights, torch.device("cpu"))
    images = [picture.read()[:, :48] for picture in run.pictures]  # not square
    found = detector.find(images, [("circles", "man", "zebra")] * len(images))
    model = DetrForObjectDetection.from_pretrained(models["detr"]).eval()
    processor = AutoImageProcessor.from_pretrained(models["detr"])
    seen = 0
    for image, (circle, person, zebra) in zip(images, found, strict=True):
        with torch.no_grad():
            outputs = model(**processor(images=[image], return_tensors="pt"))
        for label, box in ((1, circle), (0, person)):
            by_hand = boxes_by_hand(outputs.logits[0], outputs.pred_boxes[0], label, 64, 48)
            assert (box is None) == (by_hand is None)
            if box is not None:
                assert box == pytest.approx(by_hand, abs=1e-3)
                seen += 1
        assert zebra is None
    assert seen > 0
    assert [detector.knows(noun) for noun in ("Squares", "woman", "zebra")] == [True, True, False]


def test_people_are_looked_for_as_persons() -> None:
    box = Box(0, 0, 1, 1, 0.9)
    found = fake_detector({"person": box}).find(
        [np.zeros((4, 4, 3), np.uint8)], [("man", "Woman", "girl", "boy", "cat")]
    )
    assert found == [[box, box, box, box, None]]


def test_a_detector_that_wants_a_missing_package_is_unavailable(models: dict[str, Path], tmp_path: Path) -> None:
    """As facebook/detr-resnet-50 is published: its backbone is timm's."""
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is installed")
    folder = Path(shutil.copytree(models["detr"], tmp_path / "detr"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_timm_backbone": True, "backbone": "resnet50", "backbone_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    weights = means(tmp_path, detector=folder).weights
    with pytest.raises(Unavailable, match=r"requires the timm library.*: install that package .* or name a detector"):
        Detector.load(weights, torch.device("cpu"))


def test_an_open_detector_is_asked_in_words(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoProcessor, OwlViTForObjectDetection

    detector = Detector.load(means(tmp_path, detector=models["owl"]).weights, torch.device("cpu"))
    image = run.pictures[0].read()
    [[cat, dog]] = detector.find([image], [("cat", "dog")])
    model = OwlViTForObjectDetection.from_pretrained(models["owl"]).eval()
    processor = AutoProcessor.from_pretrained(models["owl"])
    inputs = processor(text=[["a photo of a cat", "a photo of a dog"]], images=[image], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    chances = outputs.logits[0].sigmoid()  # [boxes texts]
    for k, box in enumerate((cat, dog)):
        mine = chances[:, k].where(chances.argmax(-1) == k, torch.tensor(-1.0))
        if mine.max() < 0.05:
            assert box is None
            continue
        x, y, w, h = (outputs.pred_boxes[0][mine.argmax()] * 64).tolist()
        assert box == pytest.approx((x - w / 2, y - h / 2, x + w / 2, y + h / 2, float(mine.max())), abs=1e-3)
    assert cat is not None or dog is not None
    assert detector.knows("zebra")


def test_an_open_detector_finds_a_pair_of_people(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    detector = Detector.load(means(tmp_path, detector=models["owl"]).weights, torch.device("cpu"))
    image = run.pictures[0].read()
    [[man, woman]] = detector.find([image], [("man", "woman")])
    [[person]] = detector.find([image], [("person",)])
    assert man == woman == person and person is not None
    [[boy, cat, girl]] = detector.find([image], [("boy", "cat", "girl")])
    assert [[boy, cat]] == detector.find([image], [("person", "cat")]) and girl == boy


LEFT, RIGHT = Box(0, 20, 20, 40, 0.8), Box(50, 22, 70, 42, 0.6)
ON_TOP = Box(10, 20, 30, 40, 0.6)  # a third of LEFT and it together
ABOVE, UNDER = Box(20, 0, 40, 20, 0.8), Box(22, 50, 42, 70, 0.6)
SURE_LEFT, SURE_RIGHT = LEFT._replace(confidence=0.9), RIGHT._replace(confidence=0.9)


@pytest.mark.parametrize(
    ("first", "second", "relation", "expected"),
    [
        (LEFT, RIGHT, "on the left of", 0.25 * 1.4 + 0.5),
        (LEFT, RIGHT, "on the right of", 0.0),  # 0.35 alone is below a half
        (RIGHT, LEFT, "on the right of", 0.85),
        (SURE_LEFT, SURE_RIGHT, "on the right of", 0.0),  # nor are 0.45 enough
        (LEFT, RIGHT, "on the top of", 0.0),  # across, not along
        (ABOVE, UNDER, "on the top of", 0.85),
        (ABOVE, UNDER, "above", 0.85),
        (ABOVE, UNDER, "on the bottom of", 0.0),
        (UNDER, ABOVE, "on the bottom of", 0.85),
        (UNDER, ABOVE, "below", 0.85),
        (UNDER, ABOVE, "above", 0.0),
        (LEFT, ON_TOP, "on the left of", 0.25 * 1.4 + 0.5 * 0.1 * 3),  # overlap 1/3
        (LEFT, RIGHT, "next to", 0.85),
        (LEFT, None, "next to", 0.0),
        (LEFT, RIGHT, None, 0.0),
    ],
)
def test_the_spatial_score_by_hand(first: Box, second: Box | None, relation: str | None, expected: float) -> None:
    assert score(first, second, relation, 128) == pytest.approx(expected)


def test_next_to_falls_with_the_distance_in_shares_of_the_side() -> None:
    far = Box(LEFT.left + 400, LEFT.top + 300, LEFT.right + 400, LEFT.bottom + 300, 1.0)
    assert score(LEFT, far, "near", 512) == pytest.approx(0.25 * 1.8 + 0.5 * 150 / 400)  # T2I-CompBench's 150 of 512
    assert score(LEFT, far, "near", 1024) == pytest.approx(0.25 * 1.8 + 0.5 * 300 / 400)


def test_the_spatial_score_carries_the_detectors_name(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    metric = METRICS["spatial"]
    found = metric.measure(metric.of(run.pictures), means(tmp_path, detector=models["detr"]))
    assert found.suffix == "detector tiny-detr" and len(found.values) == 2


def load_fake(monkeypatch: pytest.MonkeyPatch, boxes: Mapping[str, Box]) -> None:
    monkeypatch.setattr(Detector, "load", lambda weights, device: fake_detector(boxes))


def test_the_first_noun_is_the_one_that_stands_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fake(monkeypatch, {"cat": LEFT, "dog": RIGHT})
    prompts = ("a cat on the left of a dog", "a dog on the left of a cat", "a dog next to a desk")
    drawn = write_run(tmp_path / "run", [Prompt(text, "spatial") for text in prompts], (1,))
    found = METRICS["spatial"].measure(drawn.pictures, means(tmp_path))
    assert found.values == pytest.approx({0: 0.25 * 1.4 + 0.5, 1: 0.0, 2: 0.0})
    assert found.settings["nouns_unknown"] == "1 (desk)"


def test_of_many_unknown_nouns_ten_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fake(monkeypatch, {"dog": RIGHT})
    drawn = write_run(tmp_path / "run", [Prompt(f"a {letter} next to a dog") for letter in "lkjihgfedcba"], (1,))
    found = METRICS["spatial"].measure(drawn.pictures, means(tmp_path))
    assert found.settings["nouns_unknown"] == "11 (b, c, d, e, f, g, h, i, j, k)"  # "a" is an article


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("the red cat is on the left of the soft pillow", Scene("cat", "pillow", "on the left of")),
        ("a man in a hat is next to a dog and a tree", Scene("hat", "dog", "next to")),
        ("a hat is on top of a rack", Scene("hat", "rack", None)),  # T2I-CompBench finds the things, but not how
        ("a cat above a dog", None),
        ("a cat is next to a dog near a tree", None),  # four things
        ("near a dog", None),
    ],
)
def test_a_complex_prompt_is_read_around_its_place(text: str, scene: Scene | None) -> None:
    assert around(Rules(), text) == scene


def test_three_in_one_is_the_mean_of_its_parts(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_fake(monkeypatch, {"cat": LEFT, "dog": RIGHT})
    prompts = [
        Prompt("a big red cat is next to a dog", "complex"),
        Prompt("a red cat is next to a dog", "complex", {"complex": "spatial"}),
        Prompt("a green cat is next to a dog and a circle and a square", "complex", {"complex": "action"}),
        Prompt("a wooden circle and a cat", "complex", {"complex": "spatialaction"}),
    ]
    heard = ["a cat is next to a dog", "a cat is next to a dog", "a cat is next to a dog and a circle and a square",
             "a circle and a cat"]  # fmt: skip
    stood = [0.85, 0.85, 0.85, 0.0]
    names = [("spatial", "clip", "blip-vqa"), ("spatial", "blip-vqa"), ("clip", "blip-vqa"),
             ("spatial", "clip", "blip-vqa")]  # fmt: skip
    drawn = write_run(tmp_path / "run", prompts, (1,))
    given = means(tmp_path, blip_vqa=models["blip"], clip_b32=models["clip"])
    found = METRICS["3-in-1"].measure(drawn.pictures, given)
    clip, asked = Clip.load(given.weights, "clip-b32", given.device), METRICS["blip-vqa"].measure(drawn.pictures, given)
    for picture, text, spatial, chosen in zip(drawn.pictures, heard, stood, names, strict=True):
        cosine = float((clip.images([picture.read()]) * clip.texts([text])).sum())
        parts = {"blip-vqa": asked.values[picture.id], "spatial": spatial, "clip": cosine}
        assert found.details[picture.id] == pytest.approx(parts, abs=1e-5)
        assert found.values[picture.id] == pytest.approx(np.mean([parts[name] for name in chosen]), abs=1e-5)
    assert found.settings["lists"] == "spatial 1, action 1, spatialaction 1, none 1"
    assert found.settings["clip"]["prompts_cut"] == 1
    assert found.settings["spatial"]["prompts_without_scene"] == 1
    assert found.suffix == "detector fake, phrases by rules"


def test_what_is_missing_is_said_with_its_place(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "weights.toml"
    path.write_text('[clip-b32]\npath = "nowhere"\nsha256 = "0"\n')
    given = MetricInputs(weights=Weights.read(path), device=torch.device("cpu"))
    with pytest.raises(Unavailable, match=r"clip-b32 \(openai/clip-vit-base-patch32\) is missing: put .* at .*nowhere"):
        METRICS["clip-score"].measure(run.pictures, given)
    with pytest.raises(Unavailable, match=r"name the file as \[inception\] in .*weights.toml"):
        METRICS["fid"].measure(run.pictures, given)
