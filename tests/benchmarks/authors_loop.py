"""The loop that the authors train with, to time ours beside it.

Written anew after ``train/t5_unet.py`` and ``train/t5_transformer.py`` of github.com/ShihaoZhaoZSH/LaVi-Bridge
(5a725f3): float32; in each step the pictures are read, scaled, cropped, flipped and encoded by the VAE, the captions
tokenised and run through the whole language model with a graph and its own dropout; LoRA beside every adapted map, its
dropout after ``up``; unfused AdamW, gradients clipped at 1, the loss read back for the progress bar. Left out, as they
cost nothing in a step or are not the loop's: checkpoints, and the LM head that the authors run for Llama.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import torch
from lavi_bridge.lavi_core import adapters
from lavi_bridge.lavi_core.conditioning import Conditioning, HiddenStates
from lavi_bridge.lavi_core.config import AdapterConfig
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.training.models import named
from lavi_bridge.training.models.vae import load_vae
from lavi_bridge.training.models.vision_model import load_vision_model
from lavi_bridge.training.recipe import Recipe
from stages import Stages
from torch import Tensor, nn
from torch.nn import functional


class LoRA(nn.Module):
    """frozen(x) + dropout(up(down(x))) * scale, for a linear map or a convolution."""

    def __init__(self, frozen: nn.Linear | nn.Conv2d, rank: int, scale: float, dropout: float):
        super().__init__()
        self.frozen, self.scale, self.dropout = frozen, scale, nn.Dropout(dropout)
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(frozen, nn.Conv2d):
            size, stride, padding = frozen.kernel_size, frozen.stride, frozen.padding
            self.down = nn.Conv2d(frozen.in_channels, rank, size, stride, padding, bias=False)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, frozen.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(frozen.in_features, rank, bias=False)
            self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.dropout(self.up(self.down(x))) * self.scale


def inject(model: nn.Module, sites: list[str], section) -> list[nn.Parameter]:
    """Freeze a model and put LoRA beside the maps at ``sites``; its parameters."""
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for path in sites:
        parent, _, name = path.rpartition(".")
        lora = LoRA(model.get_submodule(path), section.rank, section.alpha / section.rank, section.dropout)  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), name, lora)
        trained += [*lora.down.parameters(), *lora.up.parameters()]
    return trained


class SampleGrids(torch.utils.data.Dataset):
    """``path<TAB>caption`` lines to (picture [3 H W] in [-1, 1], caption)."""

    def __init__(self, table: Path, size: int):
        self.size = size
        self.data = [line.strip().split("\t") for line in table.read_text().splitlines()]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        import numpy as np
        from PIL import Image, ImageOps

        path, caption = self.data[index]
        # The sums of torchvision's Resize (bilinear) and CenterCrop, which the authors call.
        picture = Image.open(path).convert("RGB")
        scale = self.size / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        picture = picture.crop((left, top, left + self.size, top + self.size))
        if random.random() < 0.5:
            picture = ImageOps.mirror(picture)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - 0.5) / 0.5, caption


def train(recipe: Recipe, gate: Callable[[], None], stages: Stages) -> None:
    """Run until ``gate``, which is called before each step, raises."""
    from accelerate import Accelerator
    from tqdm.auto import tqdm

    accelerator = Accelerator()
    encoder = TextEncoder.load(named.language(recipe.language.model), dtype=torch.float32)
    vision = load_vision_model(named.vision(recipe.vision.model), recipe.vision.target)
    vae = load_vae(named.vae(recipe.vision.vae))
    width, out = encoder.config.hidden_size, vision.context_width
    shape = {"in_width": width, "inner_width": adapters.inner_width(width, out), "out_width": out}
    adapter = adapters.build(AdapterConfig(kind="mlp", **shape))
    text_encoder, vis, objective = encoder.model, vision.network, vision.objective
    groups = [
        {"params": inject(vis, vision.row.sites(vis), recipe.vision), "lr": recipe.vision.learning_rate},
        {"params": inject(text_encoder, encoder.lora_sites(), recipe.language), "lr": recipe.language.learning_rate},
        {"params": list(adapter.parameters()), "lr": recipe.adapter.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    pictures = SampleGrids(Path(recipe.data.path), recipe.data.resolution)
    loader = torch.utils.data.DataLoader(pictures, batch_size=recipe.batch_size, shuffle=True, num_workers=1)
    vis, text_encoder, adapter, vae, optimizer, loader, scheduler = accelerator.prepare(
        vis, text_encoder, adapter, vae, optimizer, loader, scheduler
    )
    for owner, name, stage in (
        (text_encoder, "forward", "language"),
        (adapter, "forward", "adapter"),
        (vis, "forward", "vision"),
        (accelerator, "backward", "backward"),
        (accelerator, "clip_grad_norm_", "optimizer"),
        (optimizer, "step", "optimizer"),
        (optimizer, "zero_grad", "optimizer"),
    ):
        stages.wrap(owner, name, stage)

    bar = tqdm(desc="Steps", disable=not accelerator.is_local_main_process)
    while True:
        vis.train()
        text_encoder.train()
        adapter.train()
        batches = iter(loader)
        for _ in range(len(loader)):
            gate()
            with stages.inside("data"):
                images, captions = next(batches)
                encoded = vae.encode(images)
                latents = encoded.latent_dist.sample() if hasattr(encoded, "latent_dist") else encoded.latents
                latents = latents * vision.scale
            noise = torch.randn_like(latents)
            timesteps = objective.timesteps(torch.rand(len(latents), device=latents.device))
            noisy, target = objective.corrupt(latents, noise, timesteps)
            with stages.inside("language"):
                tokens = encoder.tokenizer(
                    list(captions),
                    padding="max_length",
                    max_length=recipe.prompt.max_length,
                    return_tensors="pt",
                    truncation=True,
                ).to(accelerator.device)
            mask = {"attention_mask": tokens.attention_mask} if recipe.prompt.language_mask else {}
            states = text_encoder(input_ids=tokens.input_ids, **mask)[0]
            real = tokens.attention_mask.bool()
            context = adapter(HiddenStates(states, real)).context
            heard = Conditioning(context, real if recipe.prompt.vision_mask else None)
            prediction = vision.predict(noisy, timesteps, heard)
            prediction = prediction[:, : latents.shape[1]]
            loss = functional.mse_loss(prediction.float(), target.float(), reduction="mean")
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                every = itertools.chain(vis.parameters(), text_encoder.parameters(), adapter.parameters())
                accelerator.clip_grad_norm_(every, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            bar.update(1)
            bar.set_postfix(loss=loss.detach().item(), lr=scheduler.get_last_lr()[0])
