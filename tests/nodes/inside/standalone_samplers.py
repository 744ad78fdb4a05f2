"""The host's samplers around the standalone network and bridge, without the pack: what a sampler draws of them.

python standalone_samplers.py HOST BASE PACK OUT     (OUT: what ``check_connectors`` has written; OUT.drawn is written)
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

HOST, BASE, PACK, OUT = (os.path.abspath(path) for path in sys.argv[1:5])  # noqa: PTH100
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
os.chdir(HOST)
sys.path.insert(0, HOST)
core = sys.modules["lavi_bridge"] = ModuleType("lavi_bridge")
core.__path__ = [PACK]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_sampling  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from lavi_bridge.lavi_core import lora  # noqa: E402
from lavi_bridge.lavi_core.bridge import Bridge  # noqa: E402
from lavi_bridge.lavi_core.checkpoint import BridgeCheckpoint  # noqa: E402
from lavi_bridge.lavi_core.language import TextEncoder  # noqa: E402
from lavi_bridge.training.models.sampling import predict_guided, sides_of  # noqa: E402
from lavi_bridge.training.models.vision_model import load_vision_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

MODELS, GUIDANCE, SEED = Path(BASE) / "models", 3.0, 3


class Noise(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """How latents, noise and predictions go together, without a network."""


class Flow(comfy.model_sampling.CONST):
    @staticmethod
    def timestep(sigma):
        return sigma * 1000


class Denoiser:
    """What a sampler of the host calls: latents at a noise level -> the picture in them, by the standalone network."""

    def __init__(self, name: str, folder: str, row: str, prompts: list[str]):
        self.vision = load_vision_model(MODELS / "diffusers" / folder, row)
        checkpoint = BridgeCheckpoint.load(MODELS / "lavi_bridges" / f"{name}.safetensors")
        bridge = Bridge.connect(checkpoint, TextEncoder.load(MODELS / "LLM" / "tiny-bert"), lora=None)
        lora.merge(self.vision.network, checkpoint.vision_lora)
        self.sides = sides_of(*(bridge.heard([prompt]) for prompt in prompts), 1)
        self.is_flow = self.vision.objective.kind == "flow"
        self.sampling = Flow() if self.is_flow else Noise()
        patcher = SimpleNamespace(get_model_object={"model_sampling": self.sampling}.get)
        model = SimpleNamespace(model_sampling=self.sampling)
        self.inner_model = SimpleNamespace(inner_model=model, model_patcher=patcher)  # as samplers look for it

    def __call__(self, x, sigma, **_):
        given, t = self.sampling.calculate_input(sigma, x), self.sampling.timestep(sigma)
        said = predict_guided(self.vision, given, t[0], self.sides, GUIDANCE)
        return self.sampling.calculate_denoised(sigma, said, x)


@torch.inference_mode()
def main() -> None:
    written, drawn = load_file(OUT), {}
    prompts = json.loads((Path(BASE) / "prompts.json").read_text())[:2]
    for name, folder, row in (("timed-sd1", "tiny-sd1", "sd1"), ("timed-flow", "tiny-flow", "unet")):
        model = Denoiser(name, folder, row, prompts)
        for key in [key for key in written if key.startswith(f"{name}.") and key.endswith(".sigmas")]:
            sampler, sigmas = key.split(".")[1], written[key]
            noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
            x = model.sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)  # the noisiest there is
            function = comfy.samplers.sampler_object(sampler).sampler_function
            x = function(model, x, sigmas, extra_args={"seed": SEED}, callback=None, disable=True)
            drawn[f"{name}.{sampler}"] = model.vision.latents.raw(
                model.sampling.inverse_noise_scaling(sigmas[-1], x)
            ).contiguous()
    save_file(drawn, f"{OUT}.drawn")


main()
