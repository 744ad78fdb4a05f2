"""The authors' released code and this pack in the host say the same: cases in ``tests/golden``, float32."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_management
import torch
from host_side import MODELS, PACK, bridge_, check, language_, vision_, vision_model_
from safetensors.torch import load_file

GOLDEN = Path(PACK) / "tests" / "golden"
LIMIT = 1e-4


def off(ours, expected):
    """The distance, relative to the expected tensor's size."""
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    return ((ours.float() - expected).norm() / expected.norm()).item()


class Case:
    """What the authors' code gave, the prompts, our vision model, and the imported bridge."""

    def __init__(self, folder):
        facts = json.loads((folder / "case.json").read_text())
        self.expected, self.prompts = load_file(folder / "expected.safetensors"), facts["prompts"]
        self.masked = "vision" in facts["attention_mask_given_to"]
        self.noise = NOISE[facts["vision"]]
        self.model = vision_model_.load(MODELS / "diffusers" / f"golden_{folder.name}")
        language = language_.LanguageModel.load(MODELS / "golden" / folder.name, torch.float32)
        self.bridge = bridge_.ConnectedBridge.load(f"golden_{folder.name}.safetensors", language, 1.0, False)

    def contexts(self, masked):
        """The golden contexts [1 T C], masked tokens dropped or not."""
        masks = self.expected["attention_mask"].bool()
        contexts = self.expected["context"].split(1)
        return [c[:, m] if masked else c for c, m in zip(contexts, masks, strict=True)]

    def predicted(self, contexts):
        rows = zip(
            self.expected["latents"].split(1), self.expected["timesteps"].float().split(1), contexts, strict=True
        )
        return torch.cat([self.noise(self.model.model.diffusion_model, *row) for row in rows])


def unet_noise(network, latents, timesteps, context):
    return network(latents, timesteps, context=context)


def pixart_noise(network, latents, timesteps, context):
    """All eight channels: ``forward`` gives the four that are sampled with."""
    whole = network.forward_orig(latents, timesteps, context[:, None])
    assert torch.equal(network(latents, timesteps, context), whole[:, :4])
    return whole


NOISE = {"unet": unet_noise, "pixart": pixart_noise}
CASES = sorted(path.parent for path in GOLDEN.glob("*/case.json"))


@check
def the_conditioning_is_the_golden_context():
    for case in map(Case, CASES):
        for prompt, context in zip(case.prompts, case.contexts(case.masked), strict=True):
            assert off(case.bridge.encode(prompt)[0][0][0], context) < LIMIT, (case.bridge.name, prompt)


@check
def the_patched_vision_model_predicts_the_golden_noise():
    """From the golden context, and from our own conditioning; without the LoRA, or with padding, it does not."""
    assert {path.name for path in CASES} >= {"t5_unet", "t5_transformer"}
    for case in map(Case, CASES):
        golden, name = case.expected["noise_pred"], case.bridge.name
        patched = vision_.apply(case.model, case.bridge, 1.0)
        ours = [case.bridge.encode(prompt)[0][0][0] for prompt in case.prompts]
        assert off(case.predicted(case.contexts(case.masked)), golden) > 100 * LIMIT, name
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
        for contexts in (case.contexts(case.masked), ours):
            assert off(case.predicted(contexts), golden) < LIMIT, name
        assert off(case.predicted(case.contexts(not case.masked)), golden) > 100 * LIMIT, name
        comfy.model_management.unload_all_models()
