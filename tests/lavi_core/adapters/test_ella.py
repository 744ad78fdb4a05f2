"""ELLA's connector (arXiv 2403.05135) is the timestep_resampler: the same numbers from its own tensors, renamed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.conditioning import HiddenStates
from lavi_bridge.lavi_core.config import AdapterConfig
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden" / "connectors" / "ella"
NAMES = (  # theirs -> ours
    (r"connector\.latents", "latents"),
    (r"connector\.proj_in\.(.+)", r"proj_in.\1"),
    (r"connector\.time_aware_linear\.(.+)", r"time_shift.\1"),
    (r"connector\.perceiver_blocks\.(\d+)\.attn\.(.+)", r"blocks.\1.attn.\2"),
    (r"connector\.perceiver_blocks\.(\d+)\.mlp\.c_(.+)", r"blocks.\1.mlp.\2"),
    (r"connector\.perceiver_blocks\.(\d+)\.ln_1\.(.+)", r"blocks.\1.norm_latents.\2"),
    (r"connector\.perceiver_blocks\.(\d+)\.ln_2\.(.+)", r"blocks.\1.norm_states.\2"),
    (r"connector\.perceiver_blocks\.(\d+)\.ln_ff\.(.+)", r"blocks.\1.norm_mlp.\2"),
    (r"(time_embedding\..+)", r"\1"),
)


def ours(name: str) -> str:
    (found,) = (re.sub(theirs, to, name) for theirs, to in NAMES if re.fullmatch(theirs, name))
    return found


def test_the_published_connector_has_as_many_parameters() -> None:
    config = adapters.configure("timestep_resampler", in_width=2048, out_width=768, heads=8, outer_norms=False)
    with torch.device("meta"):
        assert sum(p.numel() for p in adapters.build(config).parameters()) == 66_820_608


def test_the_same_numbers_at_three_timesteps() -> None:
    case, expected = json.loads((GOLDEN / "case.json").read_text()), load_file(GOLDEN / "expected.safetensors")
    assert case["time_embed_dim"] == case["width"]  # as in the published connector
    config = AdapterConfig(
        kind="timestep_resampler",
        in_width=case["input_dim"],
        inner_width=case["width"],
        out_width=case["width"],
        tokens=case["num_latents"],
        depth=case["layers"],
        heads=case["heads"],
        outer_norms=False,
        timestep_channels=case["time_channel"],
    )
    adapter = adapters.build(config).eval()
    adapter.load_state_dict({ours(name): tensor for name, tensor in load_file(GOLDEN / "adapter.safetensors").items()})
    states = expected["hidden_states"]
    hidden = HiddenStates(states, torch.ones(states.shape[:2], dtype=torch.bool))
    assert len(expected["timesteps"].unique()) == 3
    with torch.no_grad():
        heard = adapter(hidden, expected["timesteps"])
        other = adapter(hidden, expected["timesteps"].flip(0))
    assert heard.mask is None and heard.context.shape == expected["context"].shape
    torch.testing.assert_close(heard.context, expected["context"], rtol=0, atol=1e-5)
    assert (other.context - expected["context"]).abs().max() > 1e-2
