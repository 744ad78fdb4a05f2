"""Bridges beside the vision model's own encoder, a BERT as the demo's is, and what the standalone sampler makes of
them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lavi_bridge.lavi_core import lora
from lavi_bridge.lavi_core.bridge import Bridge
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint
from lavi_bridge.lavi_core.config import AdapterConfig, LanguageConfig, OwnEncoderConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.lavi_core.own_encoder import at_strength
from lavi_bridge.lavi_core.prompt import PromptRecipe
from lavi_bridge.tests.nodes.connectors import GUIDANCE, SIZE, STEPS, TIMED
from lavi_bridge.tests.nodes.tiny import PROMPTS, bridge, language_model
from lavi_bridge.training.models.own_encoder import OwnEncoder
from lavi_bridge.training.models.sampling import noise_for, sample
from lavi_bridge.training.models.vision_model import load_vision_model
from torch import Tensor

READS = PromptRecipe(max_length=12)
# Adapter, what of the prompt recipe is another, and where the own encoder's tokens stand.
BRIDGES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "ears": ({"kind": "mlp", "inner": 28}, {}, "before"),
    "ears-masked": ({"kind": "mlp", "inner": 28}, {"vision_mask": True}, "after"),
    "ears-timed": (TIMED, {}, "before"),
    "ears-timed-after": (TIMED, {}, "after"),
}
STRENGTHS = (0.6, 1.4)  # of the bridge, of the own encoder
OWN_TEXT = "two elephants in the forest"


@torch.no_grad()
def two_ears(base: Any, encoder: TextEncoder) -> dict[str, Tensor]:
    """Files of bridges and the own encoder's; contexts NAME.0 and NAME.1 of the first prompts, NAME.loud with another
    text for the own encoder at STRENGTHS, at timestep 500 of one in time, and latents sampled.NAME."""
    vision = load_vision_model(base.models / "diffusers" / "tiny-flow", "unet")
    folder = language_model(base.models / "LLM" / "tiny-own", "bert", width=vision.context_width)
    own = OwnEncoder.load(folder)
    ear = OwnEncoderConfig(encoders=(own.first.config,), prompt=READS)
    expected, width, made = {}, vision.context_width, None
    for name, (adapter, recipe, place) in BRIDGES.items():
        file = base.bridges / f"{name}.safetensors"
        made = bridge(file, encoder, vision.network, adapter=adapter, **recipe)
        made.config = replace(made.config, own_encoder=replace(ear, place=place))
        made.save(file)
        connected = Bridge.connect(made, encoder, lora=None)
        said = [own.heard([prompt], READS) for prompt in PROMPTS[:2]]
        sides = [connected.heard([prompt], beside) for prompt, beside in zip(PROMPTS[:2], said, strict=True)]
        loud = at_strength(own.heard([OWN_TEXT], READS), own.heard([""], READS), STRENGTHS[1])
        heard = [*sides, connected.heard([PROMPTS[0]], loud, STRENGTHS[0])]
        for part, one in zip(("0", "1", "loud"), heard, strict=True):
            found = one.at(torch.tensor(500.0)) if adapter is TIMED else one  # type: ignore[union-attr]
            expected[f"{name}.{part}"] = found.context if found.mask is None else found.context[:, found.mask[0]]  # type: ignore[union-attr]
        applied = lora.merge(vision.network, made.vision_lora)
        noise = noise_for(7, (2, vision.latent_channels, *SIZE))
        expected[f"sampled.{name}"] = sample(vision, *sides, noise, STEPS, GUIDANCE)
        applied.remove()
    assert made is not None
    alone = AdapterConfig(kind="identity", in_width=width, inner_width=width, out_width=width)
    config = replace(made.config, language=own.first.config, prompt=READS, adapter=alone, own_encoder=None)
    config = replace(config, language_lora=None, vision_lora=None)
    BridgeCheckpoint(config, {}).save(base.bridges / "ears-own.safetensors")
    sd1 = load_vision_model(base.models / "diffusers" / "tiny-sd1", "sd1").network
    made, name = bridge(base.bridges / "ears-sd1.safetensors", encoder, sd1, "tiny-sd1", "sd1"), "tiny-sd1/text_encoder"
    sizes: dict[str, Any] = {"hidden_size": 768, "num_layers": 12, "vocab_size": 49408}
    clip = LanguageConfig(model_id=name, family="clip", fingerprint=None, **sizes)
    reads = PromptRecipe(max_length=77, language_mask=False)
    made.config = replace(made.config, own_encoder=OwnEncoderConfig(encoders=(clip,), prompt=reads))
    made.save(base.bridges / "ears-sd1.safetensors")
    return expected
