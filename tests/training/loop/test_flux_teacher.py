"""Flux.1's own encoders, a T5 and a CLIP's pooled vector, as a teacher: they say what diffusers' pipeline says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.tests.training import dits, modern
from lavi_bridge.tests.training.paper import tokenizer, write_data
from lavi_bridge.training.dry_run import dry_run
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.models.own_encoder import OwnEncoder
from lavi_bridge.training.recipe import Recipe, read_recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

PROMPTS = ["a red circle", "", "a blue square left of a green circle " * 4]
LENGTH, POSITIONS = 24, 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers as hf

    folder = tmp_path_factory.mktemp("flux")
    pipeline = folder / "models" / "FLUX.1-dev"
    dits.write("flux", pipeline, own_latents=False)
    modern.VISION["qwen3-0.6b-flux-dev"][2]().save_pretrained(pipeline / "vae")
    torch.manual_seed(2)
    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    sizes |= {"hidden_size": dits.POOLED, "max_position_embeddings": POSITIONS, "eos_token_id": 1}
    hf.CLIPTextModel(hf.CLIPTextConfig(**sizes)).save_pretrained(pipeline / "text_encoder")
    t5 = hf.T5Config(vocab_size=32, d_model=dits.TEXT, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    hf.T5EncoderModel(t5).save_pretrained(pipeline / "text_encoder_2")
    for name, form in (("", "<s> $A </s>"), ("_2", "$A </s>")):
        words = tokenizer(form)
        words.model_max_length = POSITIONS if name == "" else LENGTH
        for folder_name in (f"tokenizer{name}", f"text_encoder{name}"):
            words.save_pretrained(pipeline / folder_name)
    modern.write_languages(folder / "models")
    write_data(folder / "data")
    return folder


@pytest.fixture
def work(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return modern.linked(models, tmp_path, monkeypatch)


def recipe(*changes: str) -> Recipe:
    small = ["batch_size=2", "accumulation=1", "precision=fp32", "data.resolution=64", "data.buckets=false", "steps=6"]
    small += ["save_every=6", "sample.every=0", "optimizer.warmup=0", f"prompt.max_length={LENGTH}"]
    small += ["align.teacher=models/FLUX.1-dev", "align.batch_size=4", "adapter.learning_rate=3e-3"]
    return read_recipe(modern.RECIPES / "qwen3-0.6b-flux-dev.toml", [*small, *changes])


def test_it_says_what_its_pipeline_says(work: Path) -> None:
    import diffusers
    import transformers as hf

    folder = work / "models" / "FLUX.1-dev"
    parts: dict[str, Any] = {
        "transformer": diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer"),
        "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": hf.CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": hf.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "text_encoder_2": hf.T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
        "tokenizer_2": hf.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer_2"),
    }
    pipe: Any = diffusers.FluxPipeline(scheduler=dits.Flow(), **parts)
    own = OwnEncoder.load(folder)
    assert (own.width, own.pooled_width, own.positions) == (dits.TEXT, dits.POOLED, None)
    with torch.no_grad():
        context, pooled, _ = pipe.encode_prompt(PROMPTS, prompt_2=None, max_sequence_length=LENGTH)
    said = own.heard(PROMPTS, recipe().prompt)
    assert said.mask is None and said.pooled is not None
    assert torch.allclose(said.context, context, atol=1e-5) and torch.allclose(said.pooled, pooled, atol=1e-5)
    skeleton = OwnEncoder.skeleton(folder)
    assert (skeleton.width, skeleton.pooled_width) == (own.width, own.pooled_width)


@pytest.mark.parametrize("change", ["align.start=ridge", "align.steps=60", "align.prediction_steps=6"])
def test_it_teaches_tokens_and_the_pooled_vector(work: Path, caplog: pytest.LogCaptureFixture, change: str) -> None:
    assert not dry_run(recipe(change)).problems
    own, before = OwnEncoder.load(work / "models" / "FLUX.1-dev"), Trainer(recipe("steps=1", "align.steps=0"))
    captions = [before.source.caption(i, 0) for i in range(4)]
    wanted = own(captions, LENGTH)

    def errors(trainer: Trainer) -> list[float]:
        pair = trainer.pair.eval()
        with torch.no_grad():
            said = pair.alone(pair.states(pair.encoder.tokenize(captions, trainer.recipe.prompt)), None)
        assert said.pooled is not None and wanted.pooled is not None
        return [
            float((got - right).square().mean() / right.var())
            for got, right in ((said.context, wanted.context), (said.pooled, wanted.pooled))
        ]

    trained = Trainer(recipe(change, *(["steps=0"] if "prediction" not in change else [])))
    first = errors(before)
    bridge = trained.run()
    learnt, drawn = BridgeCheckpoint.load(bridge), before.pair.adapter.state_dict()
    assert learnt.config.adapter.pooled_width == dits.POOLED
    moved = {name for name, tensor in learnt.adapter.items() if (tensor.float() - drawn[name]).abs().max() > 1e-3}
    assert any(name.startswith("pooled") for name in moved) and any(not n.startswith("pooled") for n in moved)
    assert "has no pooled vector" not in caplog.text
    if "prediction" not in change:
        assert all(after < 0.7 * begun for after, begun in zip(errors(trained), first, strict=True))


def test_it_is_no_second_ear(work: Path) -> None:
    with pytest.raises(ValueError, match=r"is a T5 with a CLIP, which are teachers .* leave \[own_encoder\] out"):
        Trainer(recipe("own_encoder.model=models/FLUX.1-dev"))


def test_the_t5_alone_leaves_the_pooled_head_as_it_was(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = json.dumps("models/FLUX.1-dev/text_encoder_2")
    Trainer(recipe(f"align.teacher={teacher}", "align.steps=2", "steps=0")).run()
    assert "has no pooled vector, so the bridge's stays as it is: name the pipeline's folder" in caplog.text


def test_weights_in_bfloat16_stay_so_in_a_recipe_of_it(work: Path, tmp_path: Path) -> None:
    import transformers as hf

    source, halved = work / "models" / "FLUX.1-dev", tmp_path / "halved"
    shutil.copytree(source, halved)
    encoders: dict[str, Any] = {"text_encoder": hf.CLIPTextModel, "text_encoder_2": hf.T5EncoderModel}
    for name, kind in encoders.items():
        kind.from_pretrained(source / name).bfloat16().save_pretrained(halved / name)
    whole, kept, widened = OwnEncoder.load(source, "bf16"), OwnEncoder.load(halved, "bf16"), OwnEncoder.load(halved)
    for own, dtype in ((whole, torch.float32), (kept, torch.bfloat16), (widened, torch.float32)):
        assert {p.dtype for p in own.parameters()} == {dtype}
        assert own.nbytes == sum(p.nbytes for p in own.parameters())
    assert OwnEncoder.skeleton(halved, "bf16").nbytes == kept.nbytes == widened.nbytes / 2
    right, near = whole(PROMPTS, LENGTH), kept(PROMPTS, LENGTH)
    for ours, theirs in ((near.context, right.context), (near.pooled, right.pooled)):
        assert ours is not None and theirs is not None and ours.dtype == torch.float32
        assert 0 < (ours - theirs).abs().max() < 0.05 * theirs.abs().max()
