"""The configs that are shipped for accelerate's launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
from lavi_bridge.training.loop import parallel

pytestmark = pytest.mark.usefixtures("on_cpu")

LAUNCH = Path(parallel.__file__).parents[1] / "launch"


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_a_config_says_how_it_is_used(name: str) -> None:
    text = (LAUNCH / f"{name}.yaml").read_text()
    assert f"accelerate launch --config_file training/launch/{name}.yaml -m lavi_bridge.training RECIPE.toml" in text
