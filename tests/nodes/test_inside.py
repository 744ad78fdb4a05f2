"""What the host's own library says of our models: numbers, patches, memory management; see ``inside/``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.lora import merge
from lavi_bridge.tests.nodes.connectors import VISION
from lavi_bridge.tests.nodes.tiny import PROMPTS
from lavi_bridge.training.models.vision_model import load_vision_model

SOURCES = sorted((Path(__file__).parent / "inside").glob("check_*.py"))
CHECKS = [name for path in SOURCES for name in re.findall(r"^@check\ndef (\w+)\(", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("name", CHECKS)
def test_inside(inside, name):
    if inside[name].startswith("NOT HERE"):
        pytest.skip(inside[name])
    assert not inside[name], inside[name]


@pytest.mark.parametrize("name", ["timed-sd1", "timed-flow"])
@torch.no_grad()
def test_networks_say_what_the_standalone_one_says_at_every_call_of_a_sampler(name, calls, base):
    """dpmpp_2m with karras, lcm, uni_pc and others go where the network sends them, and it is diffusers' here, without
    the host: at each of their calls, both sides, what it says of the same latents at the same timestep is equal."""
    folder, row, _ = VISION[name]
    vision = load_vision_model(base / "models" / "diffusers" / folder, row)
    checkpoint = BridgeCheckpoint.load(base / "models" / "lavi_bridges" / f"{name}.safetensors")
    bridge = Bridge.connect(checkpoint, TextEncoder.load(base / "models" / "LLM" / "tiny-bert"), lora=None)
    merge(vision.network, checkpoint.vision_lora)
    sides = [bridge.heard([prompt]) for prompt in PROMPTS[:2]]
    places = sorted({key.rpartition(".")[0] for key in calls if key.startswith(f"{name}.") and key.endswith(".x")})
    assert len({place.split(".")[1] for place in places}) == 5 and len(places) >= 15
    for place in places:
        x, t, said = (calls[f"{place}.{part}"] for part in ("x", "t", "said"))
        assert x.shape[0] == 2 and x.std() > 0.1
        ours = [vision.predict(x[i : i + 1], t[i : i + 1], side.at(t[0])) for side in sides for i in (0, 1)]
        gaps = [min(float((row - one).abs().max()) for one in ours) for row in said.split(1)]
        assert max(gaps) < 1e-4 * float(said.abs().max()), (place, gaps)


@pytest.mark.parametrize("name", ["timed-sd1", "timed-flow"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "lcm", "uni_pc", "heunpp2", "euler_ancestral"])
def test_what_a_sampler_draws_is_what_it_draws_of_the_standalone_network(name, sampler, calls, drawn):
    """The host's own sampler, with the noise of one seed, around diffusers' network and a bridge without the host."""
    ours, alone = calls[f"{name}.{sampler}.latents"], drawn[f"{name}.{sampler}"]
    assert ours.std() > 0.1 and (ours - alone).abs().max() < 1e-4 * alone.abs().max()


def test_every_check_ran(inside):
    assert sorted(inside) == sorted(CHECKS)
