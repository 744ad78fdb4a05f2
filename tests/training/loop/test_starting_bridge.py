"""``[adapter] from``: a run goes on from an imported adapter, with its text path, and can be exported back."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.exporters import to_foreign
from lavi_bridge.lavi_core.importers import read_foreign
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.lavi_core.importers.t5free import write_conditioner
from lavi_bridge.tests.lavi_core.language.qwen3 import write_qwen3
from lavi_bridge.tests.lavi_core.language.qwen35 import write_qwen35
from lavi_bridge.training.commands import main
from lavi_bridge.training.dry_run import dry_run
from lavi_bridge.training.loop.trainer import Trainer
from lavi_bridge.training.recipe import read_recipe
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("on_cpu")


def ella(folder: Path, tiny: Path, width: int = 24, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """A file as ELLA's is, for the tiny models, and the bridge that it is imported as."""
    torch.manual_seed(3)
    config = AdapterConfig(
        kind="timestep_resampler", in_width=32, inner_width=width, out_width=width, tokens=5, depth=2, heads=8,
        outer_norms=False, timestep_channels=8,
    )  # fmt: skip
    file, bridge = folder / "ella.safetensors", folder / "from.safetensors"
    adapter = adapters.build(config)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    adapter.to(dtype)
    like = read_foreign(Path(__file__).parents[2] / "golden" / "connectors" / "ella" / "adapter.safetensors")
    language, vision = replace(like.config.language, hidden_size=32), replace(like.config.vision, context_width=width)
    made = replace(like.config, language=language, adapter=config, vision=vision)
    save_file(to_foreign(BridgeCheckpoint(made, adapter.state_dict()), "ella"), file)
    encoder = TextEncoder.skeleton(tiny / "text_encoder")
    read_foreign(file, encoder=encoder, prompt={"max_length": 16}).save(bridge)
    return file, bridge


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_run_goes_on_from_it_and_is_exported_back(
    dtype: torch.dtype, recipe: Path, tiny: Path, tmp_path: Path
) -> None:
    file, bridge = ella(tmp_path, tiny, dtype=dtype)
    start = BridgeCheckpoint.load(bridge)
    still = ["language.train=frozen", "vision.train=frozen", "adapter.learning_rate=0.0", "steps=2"]
    read = read_recipe(recipe, [f"adapter.from={json.dumps(str(bridge))}", *still])
    assert read.prompt == start.config.prompt and read.adapter.kind == "timestep_resampler" and read.adapter.tokens == 5
    made = Trainer(read).run()
    found = BridgeCheckpoint.load(made)
    assert found.config.adapter == start.config.adapter and found.config.prompt == start.config.prompt
    assert found.adapter.keys() == start.adapter.keys()
    assert [name for name in start.adapter if not torch.equal(found.adapter[name], start.adapter[name])] == []
    assert found.config.provenance["started_from"] == start.config.provenance
    back = tmp_path / "back.safetensors"
    assert main(["export", str(made), "--format", "ella", "-o", str(back)]) == 0
    own, written = load_file(file), load_file(back)
    assert own.keys() == written.keys() and all(torch.equal(own[name], written[name]) for name in own)
    assert {tensor.dtype for tensor in written.values()} == {dtype}


def test_it_is_trained_with_lora_beside_it_resumed_and_started_from(
    recipe: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, bridge = ella(tmp_path, tiny)
    changes = [f"adapter.from={json.dumps(str(bridge))}", "adapter.learning_rate=1e-3"]
    Trainer(read_recipe(recipe, [*changes, "steps=2"])).run()
    trained = Trainer(read_recipe(recipe, [*changes, "steps=4"]), resume=True).run()
    made = BridgeCheckpoint.load(trained)
    start = BridgeCheckpoint.load(bridge)
    assert all(not torch.equal(made.adapter[name], start.adapter[name]) for name in start.adapter)
    assert all((made.adapter[name] - start.adapter[name]).abs().max() < 0.02 for name in start.adapter)
    assert made.language_lora and made.vision_lora

    further = [f"adapter.from={json.dumps(str(trained))}", f"output={json.dumps(str(tmp_path / 'further'))}"]
    with caplog.at_level("WARNING"):
        taken = Trainer(read_recipe(recipe, further)).pair.checkpoint({})
    assert "not taken over" not in caplog.text
    for theirs, ours in ((made.language_lora, taken.language_lora), (made.vision_lora, taken.vision_lora)):
        assert theirs.keys() == ours.keys() and max(delta.up.abs().max() for delta in ours.values()) > 0
        for path, delta in theirs.items():
            assert torch.equal(delta.up.float(), ours[path].up) and torch.equal(delta.down.float(), ours[path].down)
            assert delta.scale == ours[path].scale
    with caplog.at_level("WARNING"):
        Trainer(read_recipe(recipe, [*further, "language.rank=3", "vision.train=frozen"]))
    assert (
        "language LoRA is not taken over, and begins anew where it is trained: it has rank 2 and alpha 2, the run 3"
        in (caplog.text)
    )
    assert "vision LoRA is not taken over, and begins anew where it is trained: vision.train is 'frozen'" in caplog.text


def test_the_text_path_is_its_own(recipe: Path, tiny: Path, tmp_path: Path) -> None:
    _, bridge = ella(tmp_path, tiny)
    given = f"adapter.from={json.dumps(str(bridge))}"
    with pytest.raises(
        ValueError, match=r"prompt\.max_length is 20, .+from\.safetensors, which .+ has 16: leave it out"
    ):
        read_recipe(recipe, [given, "prompt.max_length=20"])
    with pytest.raises(ValueError, match=r"adapter\.kind is 'mlp', .+ has 'timestep_resampler'"):
        read_recipe(recipe, [given, "adapter.kind=mlp"])
    with pytest.raises(ValueError, match=r"the preset 'ella' was asked for, but .+ is a bridge"):
        read_recipe(recipe, [given, "adapter.preset=ella"])
    with pytest.raises(ValueError, match=r"adapter\.preset is 'ella', without adapter\.from"):
        read_recipe(recipe, ["adapter.preset=ella"])
    with pytest.raises(ValueError, match="there is no bridge file"):
        read_recipe(recipe, ["adapter.from=nowhere.safetensors"])
    text = recipe.read_text().replace("[prompt]\nmax_length = 16\n", "")
    recipe.write_text(text)
    assert asdict(read_recipe(recipe, [given]).prompt) == asdict(BridgeCheckpoint.load(bridge).config.prompt)


def test_other_models_are_refused(recipe: Path, tiny: Path, tmp_path: Path) -> None:
    file, _ = ella(tmp_path, tiny)
    whole = recipe.read_text()
    recipe.write_text(whole.replace("[prompt]\nmax_length = 16\n", ""))
    with pytest.raises(
        ValueError, match=r"adapter\.from = .+ made for google/flan-t5-xl \(family t5\), the loaded model"
    ):
        Trainer(read_recipe(recipe, [f"adapter.from={json.dumps(str(file))}"]))
    recipe.write_text(whole)
    _, wide = ella(tmp_path, tiny, width=40)
    with pytest.raises(ValueError, match=r"gives context width 40, the vision model .+ takes 24: start from another"):
        Trainer(read_recipe(recipe, [f"adapter.from={json.dumps(str(wide))}"]))


def test_a_run_goes_on_from_an_adapter_that_asks_with_a_second_tokenizer(
    recipe: Path, tiny: Path, tmp_path: Path
) -> None:
    """Of another project's file, which does not hold it; the run's bridge does."""
    golden = Path(__file__).parents[2] / "golden"
    tokenizer, file = golden / "t5_unet" / "tokenizer", tmp_path / "anima.safetensors"
    language = write_qwen3(tmp_path / "qwen3")
    sizes = {"in_width": 24, "inner_width": 32, "out_width": 24}
    adapter = adapters.build(AdapterConfig(kind="token_queries", **sizes, vocabulary=410, depth=1, heads=2))
    save_file({f"net.llm_adapter.{name}": tensor for name, tensor in adapter.state_dict().items()}, file)
    changes = [f"adapter.from={json.dumps(str(file))}", f"language.model={json.dumps(str(language))}"]
    changes += ["prompt.max_length=4096", "adapter.learning_rate=1e-3"]
    with pytest.raises(ValueError, match="asks with the ids of a second tokenizer, T5's, that the file does not hold"):
        Trainer(read_recipe(recipe, [*changes, "steps=2"]))
    named = f"adapter.query_tokenizer={json.dumps(str(tokenizer))}"
    made = Trainer(read_recipe(recipe, [*changes, named, "steps=2"])).run()
    found = BridgeCheckpoint.load(made)
    assert found.config.adapter == adapter.config
    assert found.query_tokenizer == (tokenizer / "tokenizer.json").read_text()
    back = tmp_path / "back.safetensors"
    assert found.language_lora and main(["export", str(made), "--format", "anima", "-o", str(back)]) == 2
    ours = [*changes[1:], f"adapter.from={json.dumps(str(made))}", f"output={json.dumps(str(tmp_path / 'on'))}"]
    with pytest.raises(ValueError, match=r"adapter\.query_tokenizer is .+, which the run starts from, has its own"):
        Trainer(read_recipe(recipe, [*ours, named]))


def test_a_run_goes_on_from_an_adapter_that_cuts_rows(recipe: Path, tmp_path: Path) -> None:
    """With states of the language model kept and computed anew; what it cuts by and its regression stay, and where
    nothing was trained it is exported to the bit."""
    file = write_conditioner(tmp_path / "t5free.safetensors", 24)
    language = write_qwen35(tmp_path / "qwen35", 24)
    changes = [f"adapter.from={json.dumps(str(file))}", f"language.model={json.dumps(str(language))}"]
    changes += ["prompt.max_length=5120", "steps=2"]
    still = ["language.train=frozen", "vision.train=frozen", "adapter.learning_rate=0.0"]
    report = dry_run(read_recipe(recipe, changes))
    assert not report.problems and re.search(r"the longest caption has \d+ rows cut from the prompt's", str(report))
    made = Trainer(read_recipe(recipe, [*changes, *still])).run()
    back = tmp_path / "back.safetensors"
    assert main(["export", str(made), "--format", "anima_t5free", "-o", str(back)]) == 0
    own, written = load_file(file), load_file(back)
    assert own.keys() == written.keys() and all(torch.equal(own[name], written[name]) for name in own)
    assert all(own[name].dtype == written[name].dtype for name in own)
    output = f"output={json.dumps(str(tmp_path / 'on'))}"
    found = BridgeCheckpoint.load(Trainer(read_recipe(recipe, [*changes, output, "adapter.learning_rate=1e-3"])).run())
    start = read_foreign(file)
    moved = {
        name for name in start.adapter if not torch.equal(found.adapter[name].float(), start.adapter[name].float())
    }
    assert found.language_lora and {name.partition(".")[0] for name in moved} == {"proj_in", "blocks", "proj_out"}
    tensors = load_file(file)
    save_file(tensors | {"conditioner.c0.W": 2 * tensors["conditioner.c0.W"]}, file)
    with pytest.raises(ValueError, match=r"adapter\.fingerprint is .+ there and"):  # what is not trained is in no state
        Trainer(read_recipe(recipe, [*changes, output, "adapter.learning_rate=1e-3", "steps=3"]), resume=True)
    with pytest.raises(ValueError, match=r"'row_refiner' cuts a prompt by a lexicon .+: set adapter\.from"):
        read_recipe(recipe, ["adapter.kind=row_refiner"])
    with pytest.raises(ValueError, match=r"'row_refiner' gives rows of its own cutting: set align\.steps = 0"):
        read_recipe(recipe, [*changes, "align.steps=3", "align.teacher=x"])
