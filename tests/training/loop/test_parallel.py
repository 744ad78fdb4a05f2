"""Two processes train as one, whole (DDP) or sharded (FSDP2): the gradients of every parameter, losses, states.

The processes are forked on this machine and talk over gloo.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from lavi_bridge.lavi_core.files import read_safetensors
from lavi_bridge.tests.training.forks import Server
from lavi_bridge.training.loop import parallel
from lavi_bridge.training.loop.checkpoint import states
from safetensors import safe_open

pytestmark = pytest.mark.usefixtures("on_cpu")

LAUNCH = Path(parallel.__file__).parents[1] / "launch"


def launched(name: str) -> dict[str, str]:
    """What accelerate's launcher puts into the environment for one of the configs."""
    arguments = launch_command_parser().parse_args(["--config_file", str(LAUNCH / f"{name}.yaml"), "-m", "module"])
    arguments, config, _ = _validate_launch_command(arguments)
    assert arguments.num_processes == 8 and arguments.mixed_precision == "no"
    if arguments.use_deepspeed:
        assert config is not None
        arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config or ())
        found = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        found = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in found.items() if key.startswith(("ACCELERATE", "FSDP"))}


FSDP, ZERO = launched("fsdp2"), launched("deepspeed_zero2")
# Dropout draws on each process by itself: two processes cannot drop what one does.
QUIET = ["language.dropout=0.0", "vision.dropout=0.0", "adapter.kind=linear", "precision=fp32", "trackers=[]"]

Run = Callable[..., list[int]]


@pytest.fixture
def run(server: Server, recipe: Path, tmp_path: Path) -> Run:
    """Trains the tiny recipe on ``world`` processes into tmp_path/name; their exit statuses."""

    def start(name: str, world: int, *changes: str, **line: Any) -> list[int]:
        changes = (*QUIET, *changes, f"output={json.dumps(str(tmp_path / name))}")
        return server.run(recipe, changes, world, gradients=str(tmp_path / f"{name}-gradients"), **line)

    return start


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def group_norms(folder: Path) -> list[float]:
    lines = [json.loads(line)["group_norm"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(line.keys() == {"adapter", "language", "vision"} for line in lines)
    return [norm for line in lines for norm in line.values()]


def assert_same_gradients(one: Path, other: Path, processes: int = 1) -> None:
    """Of every parameter, on every process, to rounding."""
    expected = read_safetensors(one / "rank0.safetensors")
    assert len(expected) > 60 and sum(bool(value.any()) for value in expected.values()) > len(expected) / 2
    # A shift of all of a channel before a group norm of one channel has no gradient but rounding.
    rounding = 1e-7 * torch.stack([value.norm() for value in expected.values()]).norm()
    for rank in range(processes):
        found = read_safetensors(other / f"rank{rank}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            error = (found[key] - value).norm()
            assert error < 1e-4 * value.norm() + rounding, f"{key} of rank {rank}: {error:.1e} of {value.norm():.1e}"


def share(gradients: Path) -> float:
    """Of the frozen weights, on rank 0."""
    with safe_open(gradients / "rank0.safetensors", "pt") as file:
        return float(file.metadata()["share"])


@pytest.mark.parametrize(
    "changes", [("steps=2",), ("steps=2", "accumulation=2", "gradient_checkpointing=true")], ids=["plain", "parts"]
)
def test_two_processes_whole_or_sharded_have_the_gradients_of_one(
    changes: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    assert run("one", 1, *changes) == [0]
    assert run("ddp", 2, *changes, environment=launched("ddp")) == [0, 0]
    assert run("fsdp", 2, *changes, environment=FSDP) == [0, 0]
    for name in ("ddp", "fsdp"):
        assert_same_gradients(tmp_path / "one-gradients", tmp_path / f"{name}-gradients", 2)
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert len(losses(tmp_path / name)) == 2
        assert group_norms(tmp_path / name) == pytest.approx(group_norms(tmp_path / "one"), rel=1e-4)
    assert [share(tmp_path / f"{name}-gradients") for name in ("one", "ddp")] == [1, 1]
    assert share(tmp_path / "fsdp-gradients") < 0.52


def test_two_processes_train_an_adapter_in_time_and_weights_of_layers_that_are_frozen(run: Run, tmp_path: Path) -> None:
    changes = ["adapter.kind=timestep_resampler", "adapter.tokens=4", "adapter.depth=1", "steps=3"]
    changes += ["prompt.hidden_states=learned_mean", "adapter.freeze_layer_weights=2", "validation.every=3"]
    changes += ["data.validation=4", "sample.every=3", 'sample.prompts=["a red circle"]', "sample.steps=2"]
    assert run("one", 1, *changes) == [0]
    assert run("ddp", 2, *changes, environment=launched("ddp")) == [0, 0]
    assert run("fsdp", 2, *changes, environment=FSDP) == [0, 0]
    found = {}
    for name in ("one", "ddp", "fsdp"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        found[name] = [line["loss"] for line in lines if "loss" in line]
        found[name] += [line["validation"]["loss"] for line in lines if "validation" in line]
        kept = tmp_path / name / "state" / "step-0000003" / "weights.safetensors"
        found[name] += read_safetensors(kept)["layers.logits"].tolist()
    assert len(found["one"]) == 3 + 1 + 2
    for name in ("ddp", "fsdp"):
        assert found[name] == pytest.approx(found["one"], rel=1e-3)


def test_two_processes_share_the_states_of_a_frozen_language_model(run: Run, tmp_path: Path) -> None:
    """Each computes its part ahead of the first step, and reads the other's."""
    kept = {}
    for name, world in (("one", 1), ("two", 2)):
        changes = ["language.train=frozen", "validation.every=3", "data.validation=4", "caption_dropout=0.5"]
        assert run(name, world, *changes, environment=launched("ddp") if world == 2 else {}) == [0] * world
        files = sorted((tmp_path / name / "latents").glob("states-*/0*.safetensors"))
        assert len(files) == world
        keys = [bytes(row) for file in files for row in read_safetensors(file)["keys"].numpy()]
        kept[name] = set(keys)
    assert kept["one"] == kept["two"] and len(kept["one"]) > 12
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    one, two = ([line["loss"] for line in map(json.loads, some) if "loss" in line] for some in lines)
    assert one == pytest.approx(two, rel=1e-4) and len(one) == 6


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_state_goes_on_with_another_number_of_processes(first: int, then: int, run: Run, tmp_path: Path) -> None:
    environment = {count: FSDP if count == 2 else {} for count in (first, then)}
    assert run("whole", first, "ema=0.9", environment=environment[first]) == [0] * first
    assert run("run", first, "ema=0.9", "steps=4", environment=environment[first]) == [0] * first
    assert [path.name for path in states(tmp_path / "run" / "state")] == ["step-0000002", "step-0000004"]
    assert run("run", then, "ema=0.9", resume=True, environment=environment[then]) == [0] * then
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    last = [tmp_path / name / "state" / "step-0000006" for name in ("whole", "run")]
    for file in ("weights", "extra"):
        expected, found = (read_safetensors(path / f"{file}.safetensors") for path in last)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(found[key].float(), value.float(), rtol=1e-3, atol=1e-4), key


def test_a_sharded_pair_draws_validates_and_reads_an_inner_layer(run: Run, tmp_path: Path) -> None:
    changes = ["prompt.hidden_states=1", "sample.every=3", 'sample.prompts=["a red circle"]', "sample.steps=2"]
    changes += ["validation.every=3", "data.validation=4", "precision=bf16"]
    pictures = []
    for name, world, environment in (("one", 1, {}), ("fsdp", 2, FSDP)):
        assert run(name, world, *changes, environment=environment) == [0] * world
        pictures.append(sorted(path.name for path in (tmp_path / name / "samples").iterdir()))
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        pictures.append([line["validation"]["loss"] for line in lines if "validation" in line])
    assert pictures[0] == pictures[2] == ["step-0000003.png", "step-0000006.png"]
    assert pictures[1] == pytest.approx(pictures[3], rel=0.05) and len(pictures[1]) == 2  # bf16


def test_deepspeed_trains_and_resumes_as_one_process(run: Run, tmp_path: Path) -> None:
    """The moments are spread over two processes, gathered for the state, and spread again from it."""
    pytest.importorskip("deepspeed")
    zero = {**ZERO, "DS_ACCELERATOR": "cpu"}
    changes = ("accumulation=2", "ema=0.9")
    assert run("one", 1, *changes) == [0]
    assert run("zero", 2, *changes, environment=zero) == [0, 0]
    assert run("part", 2, *changes, "steps=4", environment=zero) == [0, 0]
    copytree(tmp_path / "part", tmp_path / "part-one")
    assert run("part", 2, *changes, environment=zero, resume=True) == [0, 0]
    assert run("part-one", 1, *changes, resume=True) == [0]
    for name in ("zero", "part", "part-one"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert group_norms(tmp_path / name) == pytest.approx(group_norms(tmp_path / "one"), rel=1e-3)
        first, second = (tmp_path / run / "state" / "step-0000006" / "optimizer.safetensors" for run in ("one", name))
        expected, found = read_safetensors(first), read_safetensors(second)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[key], value, rtol=1e-2, atol=1e-5) for key, value in expected.items())


@pytest.mark.parametrize(
    ("launch", "key", "value", "setting"),
    [
        (FSDP, "FSDP_VERSION", "1", "fsdp_version: 2"),
        (FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false"),
        (FSDP, "FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: false"),
        (ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "zero_stage: 2"),
        (ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "offload_optimizer_device: none"),
    ],
)
def test_what_is_not_done_here_is_refused(
    launch: dict[str, str], key: str, value: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, found in {**launch, key: value}.items():
        monkeypatch.setenv(name, found)
    with pytest.raises(ValueError, match=f"the launcher has set {key} to {value}; set {setting} in its config"):
        parallel.make_accelerator()
