"""``train --dry-run``: it says what the run would be, counts the memory of a step to the byte of its tensors, and lists
everything that stands in the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from typing import Any

import pytest
import torch
from lavi_bridge.lavi_core.files import write_safetensors
from lavi_bridge.lavi_core.language import TextEncoder, TokenBatch
from lavi_bridge.tests.training.paper import RECIPES
from lavi_bridge.training.commands import main
from lavi_bridge.training.data import SOURCES
from lavi_bridge.training.dry_run import data, disk, dry_run, memory_estimate, models, settings
from lavi_bridge.training.dry_run.report import Report
from lavi_bridge.training.loop import optimizers
from lavi_bridge.training.models.attention import attention_kernel
from lavi_bridge.training.models.pair import Pair
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import OptimizerSection, read_recipe
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("on_cpu")

CPU = torch.device("cpu")


def run(recipe, *changes):
    return main(["train", str(recipe), *(f"--set={change}" for change in changes), "--dry-run"])


def real_pair(recipe):
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    encoder = TextEncoder.load(recipe.language.model, dtype=dtype)
    return Pair(recipe, encoder, load_vision_model(recipe.vision.model, recipe.vision.target, dtype))


def test_a_recipe_that_runs_is_described_and_nothing_is_written(recipe, tiny, tmp_path, capsys):
    assert run(recipe) == 0
    said = capsys.readouterr().out
    pair = real_pair(read_recipe(recipe))
    for name in ("adapter", "language", "vision"):
        count = sum(p.numel() for _, p in pair.group(name))
        assert f"trained {name:<14} {count:,} parameters" in said
    assert f"{len(pair.sites['language'])} LoRA sites" in said and f"{len(pair.sites['vision'])} LoRA sites" in said
    assert "shapebench: 16 pictures of 32 pixels, each seen 1.5 times; 16 opened" in said
    assert "AutoencoderTiny: 2.4 M parameters, 32 pixels to 4 x 4 x 4" in said
    assert "2.05 kB: 16 of 128 B" in said and "estimate" in said and "problems" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("t5-large-sd14", ()),
        ("t5-large-sd14", ("adapter.kind=timestep_resampler", "prompt.hidden_states=learned_mean", "adapter.tokens=9")),
        ("t5-large-pixart", ("adapter.kind=refiner", "prompt.hidden_states=[1, 2]")),
        ("t5-large-sdxl", ("gradient_checkpointing=true", "accumulation=2")),
        ("t5-large-pixart", ("precision=bf16",)),
        ("llama-2-7b-sd14", ("precision=bf16", "gradient_checkpointing=true")),
    ],
)
def test_the_step_without_data_takes_what_a_real_one_takes(name, changes, paper, monkeypatch):
    """The same count over the real models and the real step, which are there."""
    monkeypatch.chdir(paper)
    sizes = ["batch_size=4", "data.resolution=64", "prompt.max_length=16", "sample.every=0"]
    recipe = read_recipe(RECIPES / f"{name}.toml", [*sizes, *changes])
    report = Report()
    encoder, vision = models.language(report, recipe), models.vision(report, recipe)
    batch = recipe.batch_size // recipe.accumulation
    found = memory_estimate.training_step(models.pair(recipe, encoder, vision), CPU, batch, (4, 8, 8), 16)

    pair = real_pair(recipe).train()
    trained = list(pair.trained().values())
    if recipe.accumulation > 1:
        for p in trained:
            p.grad = torch.zeros_like(p)
    with memory_estimate.Counter(CPU) as count:
        for tensor in (*pair.parameters(), *pair.buffers(), *(p.grad for p in trained if p.grad is not None)):
            count.hold(tensor)
        ids, mask = torch.zeros(batch, 16, dtype=torch.long), torch.ones(batch, 16, dtype=torch.bool)
        x, target, t = torch.zeros(batch, 4, 8, 8), torch.zeros(batch, 4, 8, 8), torch.zeros(batch, dtype=torch.long)
        with attention_kernel(pair.network, CPU, 8 * 8):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                prediction = pair(TokenBatch(ids, mask, None, ()), x, t)
            loss = pair.vision_model.objective.loss(prediction, target).mean()
            del prediction
            loss.backward()
    weights = sum(t.nbytes for t in {id(t): t for t in (*pair.parameters(), *pair.buffers())}.values())
    assert found.weights == weights
    assert found.gradients == sum(p.grad.nbytes for p in trained)
    assert found.peak == pytest.approx(count.peak, rel=0.01)


def test_what_is_counted_is_what_lives(recipe):
    with memory_estimate.Counter(CPU) as count:
        a = torch.zeros(1000)
        b = a[:10] + 1
        view = a.view(10, 100)
        assert count.live == 4000 + 40
        del a
        assert count.live == 4000 + 40
        del view
        assert count.live == 40
        del b
    assert count.live == 0 and count.peak == 4040


def test_checkpointing_is_seen(recipe):
    kept = []
    for switch in ("false", "true"):
        read = read_recipe(recipe, [f"gradient_checkpointing={switch}"])
        report = Report()
        pair = models.pair(read, models.language(report, read), models.vision(report, read))
        kept.append(memory_estimate.training_step(pair, CPU, 4, (4, 8, 8), 16).kept)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("kind", sorted(memory_estimate.MOMENTS))
def test_an_optimizer_keeps_as_much_as_is_said(kind):
    weight = torch.nn.Parameter(torch.ones(512, 256))
    try:
        optimizer = optimizers.build([{"params": [weight], "lr": 1e-3}], OptimizerSection(kind=kind))
    except ValueError as error:
        pytest.skip(str(error))
    weight.grad = torch.ones_like(weight)
    optimizers.use_averaged_weights(optimizer, False)
    optimizer.step()
    kept = sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
    assert kept == pytest.approx(memory_estimate.MOMENTS[kind] * weight.numel(), rel=0.02)


def test_every_optimizer_has_its_figure():
    assert memory_estimate.MOMENTS.keys() == optimizers.OPTIMIZERS.keys()


def test_drawing_takes_memory_too(recipe, capsys):
    assert run(recipe, "sample.every=2", 'sample.prompts=["a red circle"]') == 0
    assert "with 1 drawn at a time" in capsys.readouterr().out


def test_all_problems_are_listed(recipe, tmp_path, capsys):
    wrong = {
        "language.model": "no/such/model",
        "vision.model": "no/such/vision",
        "vision.vae": "no/such/vae",
        "data.kind": "tsv",
        "data.path": "no/such/table.tsv",
        "optimizer.kind": "sgd",
        "loss.weighting": "more",
    }
    assert run(recipe, *(f"{key}={value}" for key, value in wrong.items())) == 2
    said = capsys.readouterr()
    for words in (
        "no/such/model is not a Hugging Face model folder",
        "no vision model in no/such/vision",
        "there is no VAE at no/such/vae",
        "there is no table of captions at no/such/table.tsv",
        "unknown optimizer 'sgd'",
        "unknown loss weighting 'more'",
    ):
        assert words in said.out
    assert "  6. " in said.out and "  7. " not in said.out
    assert said.err.splitlines()[-1] == (
        f"lavi-bridge: {recipe} cannot be trained here as it is; what stands in the way is listed above"
    )


def problems(recipe, *changes, resume=False):
    return dry_run(read_recipe(recipe, changes), resume).problems


def test_weights_that_are_not_there(recipe, tiny, tmp_path):
    bare = shutil.copytree(tiny, tmp_path / "bare")
    (bare / "text_encoder" / "model.safetensors").unlink()
    (bare / "vision" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    found = problems(recipe, f"language.model={bare / 'text_encoder'}", f"vision.model={bare / 'vision'}")
    assert len(found) == 2
    assert "text_encoder has no model.safetensors" in found[0] and "unet holds no weights" in found[1]


def test_a_vae_of_another_vision_model(recipe, tmp_path):
    from diffusers import AutoencoderTiny
    from lavi_bridge.training.demo.autoencoder import taesd_state

    write_safetensors(tmp_path / "wide.safetensors", taesd_state(AutoencoderTiny(latent_channels=16)))
    (found,) = problems(recipe, f"vision.vae={tmp_path / 'wide.safetensors'}")
    assert "has 16 latent channels, unet takes 4" in found or "has 16 latent channels, vision takes 4" in found


def test_a_vae_of_another_factor(recipe, tmp_path):
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
    }
    AutoencoderKL(**blocks, norm_num_groups=4).save_pretrained(tmp_path / "vae")
    (found,) = problems(recipe, f"vision.vae={tmp_path / 'vae'}")
    assert "turns 32 pixels into 16 latents, the vision models here take 4" in found


def test_sizes_that_do_not_run(recipe, monkeypatch):
    (found,) = problems(recipe, "prompt.max_length=512")  # the language model has 24 positions
    assert "lower max_length" in found
    (found,) = problems(recipe, "adapter.kind=identity")
    assert "identity" in found

    def fails(*_):
        raise RuntimeError("mat1 and mat2 cannot be multiplied\nin some place")

    monkeypatch.setattr(memory_estimate, "training_step", fails)
    assert problems(recipe) == ["a training step does not run: mat1 and mat2 cannot be multiplied"]


def test_an_output_that_is_a_file(recipe, tmp_path):
    (tmp_path / "run").write_text("")
    assert problems(recipe) == [f"the output {tmp_path / 'run'} is a file; set another output"]


def test_weights_that_training_would_refuse(recipe, tiny, tmp_path):
    """By the same sentence, without reading them."""
    folder = tmp_path / "language"
    shutil.copytree(tiny / "text_encoder", folder)
    whole = load_file(folder / "model.safetensors")
    for change, message in (
        ({key: t for key, t in whole.items() if "word_embeddings" not in key}, "lack 1 tensors of BertModel"),
        (whole | {"encoder.layer.0.output.dense.weight_scale": torch.ones(2)}, "has scaled weights"),
    ):
        write_safetensors(folder / "model.safetensors", change, {"format": "pt"})
        found = problems(recipe, f"language.model={json.dumps(str(folder))}")
        with pytest.raises(ValueError, match=message) as refused:
            TextEncoder.load(folder)
        assert found == [str(refused.value)]


def test_an_output_that_is_in_use(recipe, tmp_path):
    output, read = tmp_path / "run", read_recipe(recipe)
    with pytest.raises(ValueError, match="there is nothing to resume"):
        settings.output(read, resume=True)
    (output / "state" / "step-0000002").mkdir(parents=True)
    (output / "state" / "step-0000002" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run already"):
        settings.output(read, resume=False)
    settings.output(read, resume=True)
    code = (
        "import sys, lavi_bridge.training.loop.lock as l\nwith l.held(sys.argv[1]): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another trainer is at work"):
            settings.output(read, resume=True)
        holder.communicate("\n")


def test_kept_hidden_states_are_counted(recipe, capsys):
    assert run(recipe, "language.train=frozen") == 0
    assert "disk for hidden states 49.2 kB: at most, up to 2.05 kB a caption" in capsys.readouterr().out  # 24 x 16 x 32


def test_all_layers_of_a_learned_mean_are_counted(recipe, capsys):
    changes = ["prompt.hidden_states=learned_mean", "language.train=frozen", "sample.every=2"]
    changes += ["adapter.kind=timestep_resampler", "adapter.tokens=5", 'sample.prompts=["a red circle"]']
    assert run(recipe, *changes) == 0
    said = capsys.readouterr().out
    assert "up to 4.1 kB a caption" in said and "sample pictures" in said  # of two layers
    assert "trained layers         2 parameters, learning rate 0.01" in said


def test_a_teacher_of_another_width(recipe, tiny):
    changes = [f"vision.model={tiny / 'vision'}", "align.steps=1", f"align.teacher={tiny / 'text_encoder'}"]
    (found,) = problems(recipe, *changes)
    assert "gives width 32, the vision model takes 24" in found


def test_a_disk_that_is_too_small(recipe, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**4))
    (found,) = problems(recipe)
    assert "the run writes" in found and "which has 10 kB free" in found


def test_a_device_that_is_too_small(recipe, monkeypatch):
    monkeypatch.setattr(memory_estimate, "of_device", lambda _: (10**6, 10**6))
    (found,) = problems(recipe)
    assert "the device has 1 MB" in found and "gradient_checkpointing" in found


def test_packages_that_are_missing(recipe, monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    found = problems(recipe, "optimizer.kind=schedule_free", 'trackers=["wandb"]')
    assert [text.split()[5].rstrip(",") for text in found] == ["schedulefree", "wandb"]


def test_pictures_and_captions_are_looked_at(recipe, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 36)).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text("a red circle " * (1 + 9 * (i == 3)))
    (data / "0.png").write_bytes(b"none")
    changes = ('data.kind="folder"', f"data.path={json.dumps(str(data))}")
    report = dry_run(read_recipe(recipe, changes))
    (problem,) = report.problems
    assert "1 of the first 4 pictures cannot be read" in problem and "0.png" in problem and "above 5%" in problem
    assert "1 of 4 captions are cut to 16 tokens, such as 'a red circle a red" in report.notes[0]
    (data / "2.txt").write_text(" ")
    assert "1 of 4 captions are empty" in dry_run(read_recipe(recipe, changes)).notes[0]
    with pytest.raises(ValueError, match=r"data\.validation holds out 4 of 4 pictures"):
        looked_at(read_recipe(recipe, [*changes, "data.validation=4"]))
    for i in range(1, 4):
        (data / f"{i}.png").write_bytes(b"none")
    with pytest.raises(ValueError, match="none of the first 4 pictures can be read"):
        looked_at(read_recipe(recipe, changes))


def test_what_becomes_of_the_pictures_shapes_is_told(recipe, tmp_path):
    """As training does it, by the EXIF's side up too; a row is told before the next check ends."""
    folder = tmp_path / "data"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, size, exif in (
        ("a", (64, 64), None),
        ("b", (20, 40), None),
        ("c", (40, 160), None),
        ("d", (96, 64), turned),
    ):
        Image.new("RGB", size).save(folder / f"{name}.jpg", exif=exif or Image.Exif())
        (folder / f"{name}.txt").write_text("a red circle")
    (folder / "0.jpg").write_bytes(b"none")
    (folder / "0.txt").write_text("first and broken")
    changes = ('data.kind="folder"', f"data.path={json.dumps(str(folder))}")
    report, told = Report(), []
    report.tell = told.append
    read = read_recipe(recipe, changes)
    data.shapes(report, read, SOURCES["folder"](read.data))
    assert told == [str(report).splitlines()[0]] and told[0].endswith("32 x 32 (4), of 4 pictures")
    small, cut = report.notes
    assert small.startswith("1 of 4 pictures are enlarged") and small.endswith("b.jpg (20 x 40 to 32 x 32)")
    assert cut.startswith("3 of 4 pictures lose more than 25% of themselves at their edges, the most")
    assert "c.jpg (40 x 160 to 32 x 32); data.buckets = true keeps their shapes" in cut
    report, read = Report(), read_recipe(recipe, [*changes, "data.buckets=true", "data.bucket_step=8"])
    source = SOURCES["folder"](read.data)
    data.shapes(report, read, source)
    for index in range(1, 5):
        height, width, _ = source.image(index).shape
        assert source.shape(index)[1] == (height, width)
    assert "24 x 40 (3), 32 x 32 (1)" in str(report) and "40 x 24" not in str(report)  # the turned one is upright


def looked_at(recipe):
    data.pictures(Report(), recipe, SOURCES[recipe.data.kind](recipe.data))


def test_a_batch_that_does_not_divide_and_a_launcher_whose_first_process_speaks(recipe, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run(recipe) == 2
    assert "batch_size 4 does not divide into 3 processes" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert run(recipe) == 0 and not capsys.readouterr().out


def test_a_cpu_without_bf16_is_told(recipe):
    without = not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for precision, noted in (("bf16", without), ("fp32", False)):
        notes = dry_run(read_recipe(recipe, [f"precision={precision}"])).notes
        assert any("no instructions for bf16" in note for note in notes) == noted
