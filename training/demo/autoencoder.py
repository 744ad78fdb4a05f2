"""Train the demo's VAE: diffusers' AutoencoderTiny (the TAESD architecture), which stock ComfyUI loads.

``python -m lavi_bridge.training.demo.autoencoder RECIPE.toml`` writes ``vae.safetensors`` (fp16, ComfyUI's TAESD key
names) and ``latent_scale`` in its header: the factor that gives latents unit variance.
"""

from __future__ import annotations

import logging
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...lavi_core.config import from_dict
from ...lavi_core.files import write_safetensors
from ..models import progress
from ..shapebench.render import render
from ..shapebench.scene import CATEGORIES, sample_scene
from ..shapebench.vocabulary import VOCABULARIES

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """crop: side in pixels of the square training crops. latent_noise: std of the noise on latents during training,
    which makes the decoder forgive a diffusion model's small errors. latent_penalty: weight of mean(latent^2).
    """

    output: str
    vocabulary: str
    seed: int
    steps: int
    batch_size: int
    crop: int
    learning_rate: float
    latent_noise: float
    latent_penalty: float


def crops(recipe: AutoencoderRecipe, rng: np.random.Generator) -> Tensor:
    """A batch of training crops in [-1, 1], [B 3 crop crop]. Offsets are multiples of 8 px, as latent cells are."""
    vocabulary = VOCABULARIES[recipe.vocabulary]
    batch = []
    for _ in range(recipe.batch_size):
        category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
        image = render(sample_scene(rng, category, vocabulary, "train"))
        y, x = (8 * int(rng.integers((side - recipe.crop) // 8 + 1)) for side in image.shape[:2])
        batch.append(image[y : y + recipe.crop, x : x + recipe.crop])
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1


def initialise(model) -> None:
    """He initialisation with every residual block an identity at first: the network has no norms, and with torch's
    default start it needs many times the steps.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for module in model.modules():
        if type(module).__name__ == "AutoencoderTinyBlock":
            torch.nn.init.zeros_(module.conv[-1].weight)


def train(recipe: AutoencoderRecipe):
    """Train and return (model, latent_scale)."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = AutoencoderTiny()
    initialise(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.steps, pct_start=0.05, cycle_momentum=False
    )
    bar = progress.bar(range(recipe.steps), desc="VAE")
    for _ in bar:
        images = crops(recipe, rng)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encoder(images)
            noisy = latents + recipe.latent_noise * torch.randn_like(latents)
            output = model.decoder(noisy).float()
        error = output - images
        loss = error.abs().mean() + error.square().mean() + recipe.latent_penalty * latents.float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(l1=f"{error.abs().mean():.4f}", std=f"{latents.float().std():.2f}", refresh=False)
    with torch.no_grad():
        model.eval()
        latents = torch.cat([model.encoder(crops(recipe, rng)) for _ in range(20)])
    return model, 1.0 / float(latents.std())


def taesd_state(model) -> dict[str, Tensor]:
    """ComfyUI's names for the weights (comfy/taesd/taesd.py): its decoder has the clamp as layer 0."""
    state = {f"taesd_encoder.{key.removeprefix('layers.')}": w for key, w in model.encoder.state_dict().items()}
    for key, weight in model.decoder.state_dict().items():
        index, rest = key.removeprefix("layers.").split(".", 1)
        state[f"taesd_decoder.{int(index) + 1}.{rest}"] = weight
    return state


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (path,) = sys.argv[1:] if argv is None else argv
    recipe = from_dict(AutoencoderRecipe, tomllib.loads(Path(path).read_text()))
    model, latent_scale = train(recipe)
    target = Path(recipe.output) / "vae.safetensors"
    state = {key: weight.half().contiguous() for key, weight in taesd_state(model).items()}
    write_safetensors(target, state, {"latent_scale": repr(latent_scale)})
    log.info("wrote %s, latent scale %.4f", target, latent_scale)


if __name__ == "__main__":
    main()
