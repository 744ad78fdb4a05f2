"""The training loop: captions + images -> latents -> corrupt -> vision(x_t, t, bridge(captions)) -> loss -> step."""

from __future__ import annotations

import json
import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ..lavi_core.language import TextEncoder
from . import models, state
from .align import align
from .data import SOURCES, LatentCache, Order
from .files import write_text
from .pair import GROUPS, Pair, eval_mode
from .pictures import Pictures
from .provenance import environment
from .recipe import Recipe
from .vision_model import load_vae, load_vision_model

log = logging.getLogger(__name__)


class Trainer:
    """One run of one recipe. Everything drawn at random is a function of (seed, step), so a killed run that is resumed
    repeats the run that was never killed, to the bit on a CPU.
    """

    def __init__(self, recipe: Recipe, resume: bool = False):
        from accelerate import Accelerator

        self.recipe = recipe
        self.output = Path(recipe.output)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        main = self.accelerator.is_main_process
        if main and not resume and state.states(self.output / "state"):
            raise ValueError(f"{self.output} holds a run already; go on with --resume, or set another output")
        frozen_dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        encoder = TextEncoder.load(models.language(recipe.language.model), dtype=_dtype(recipe.language, frozen_dtype))
        vision = load_vision_model(
            models.vision(recipe.vision.model), recipe.vision.target, _dtype(recipe.vision, frozen_dtype)
        )
        self.vae = load_vae(models.vae(recipe.vision.vae))
        torch.manual_seed(recipe.seed)
        self.pair = Pair(recipe, encoder, vision)
        self.trained = self.pair.trained()
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for _, p in self.pair.group(name)], "lr": rate, "rate": rate, "name": name}
                for name, rate in zip(GROUPS, self.rates(), strict=True)
                if any(True for _ in self.pair.group(name))
            ],
            betas=recipe.optimizer.betas,
            eps=recipe.optimizer.eps,
            weight_decay=recipe.optimizer.weight_decay,
        )
        self.source = SOURCES[recipe.data.kind](recipe.data)
        self.step = 0
        if resume:
            self._resume()
        if main:
            write_text(self.output / "recipe.json", json.dumps(recipe.plain(), indent=1))
            write_text(self.output / "environment.json", json.dumps(environment(), indent=1))

    def rates(self) -> tuple[float, float, float]:
        recipe = self.recipe
        return recipe.adapter.learning_rate, recipe.language.learning_rate, recipe.vision.learning_rate

    def run(self) -> Path:
        """Train to the recipe's last step and return the bridge file."""
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        recipe, accelerator = self.recipe, self.accelerator
        device, main = accelerator.device, accelerator.is_main_process
        with accelerator.main_process_first():
            self.latents = LatentCache(
                self.source,
                self.vae.to(device),
                recipe.data.cache or self.output / "latents",
                self.output / "unreadable.txt",
                recipe.precision,
            )
        order = Order(len(self.latents), recipe.batch_size, recipe.seed)
        self.pair.to(device).train()
        if recipe.align.steps and not self.step:
            align(recipe, self.pair, self.source, device)
        self.model, self.optimizer = accelerator.prepare(self.pair, self.optimizer)
        pictures = Pictures(recipe, self.pair, self.vae, self.output) if main and recipe.sample.every else None
        board = SummaryWriter(str(self.output / "tensorboard"), purge_step=self.step) if main else None
        journal = Journal(self.output / "log.jsonl", self.step) if main else None
        bar = tqdm(total=recipe.steps, initial=self.step, desc=recipe.name, disable=not main, mininterval=2)
        while self.step < recipe.steps:
            began = time.perf_counter()
            loss, norm = self.train_step(order)
            self.step += 1
            if journal is None or board is None:
                continue
            speed = recipe.batch_size / (time.perf_counter() - began)
            journal.write({"step": self.step, "loss": loss, "norm": norm, "images_per_second": round(speed, 2)})
            board.add_scalar("loss", loss, self.step)
            board.add_scalar("images_per_second", speed, self.step)
            for group in self.optimizer.param_groups:
                board.add_scalar(f"learning_rate/{group['name']}", group["lr"], self.step)
            bar.set_postfix(loss=f"{loss:.4f}", imgs=f"{speed:.1f}/s", refresh=False)
            bar.update()
            if pictures is not None and (self.step % recipe.sample.every == 0 or self.step == recipe.steps):
                for name, value in pictures.draw(self.step).items():
                    board.add_scalar(f"bench/{name}", value, self.step)
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                journal.flush()
                self.save()
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return self.output / "bridge.safetensors"

    def train_step(self, order: Order) -> tuple[float, float]:
        """One optimiser step over the global batch; (loss, gradient norm before clipping)."""
        recipe, accelerator, device = self.recipe, self.accelerator, self.accelerator.device
        latents, captions, noise, uniform = self.batch(order)
        world, rank, parts = accelerator.num_processes, accelerator.process_index, recipe.accumulation
        size = recipe.batch_size // (world * parts)
        scale = learning_rate_scale(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * scale
        total = torch.zeros((), device=device)
        for part in range(parts):
            begin = (part * world + rank) * size
            rows = slice(begin, begin + size)
            # LoRA and adapter dropout draw from the global generator.
            torch.manual_seed((recipe.seed * 1_000_003 + self.step) * 4096 + part * world + rank)
            tokens = self.pair.encoder.tokenize(captions[rows], recipe.prompt).to(device)
            objective = self.pair.vision_model.objective
            timesteps = objective.timesteps(uniform[rows].to(device))
            x, target = objective.corrupt(
                latents[rows].to(device) * self.pair.vision_model.scale, noise[rows].to(device), timesteps
            )
            sync = accelerator.no_sync(self.model) if part + 1 < parts else nullcontext()
            with sync:
                with (
                    torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"),
                    attention_kernel(device),
                ):
                    prediction = self.model(tokens.ids, tokens.mask, tokens.keep, x, timesteps)
                loss = objective.loss(prediction, target).mean() / parts
                accelerator.backward(loss)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(list(self.trained.values()), recipe.optimizer.clip_norm)
        mean = float(accelerator.reduce(total, "mean"))  # type: ignore[arg-type]
        if not math.isfinite(mean):
            raise ValueError(f"the loss of step {self.step} is {mean}; the last good state is in {self.output}/state")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean, float(norm)  # type: ignore[arg-type]

    def batch(self, order: Order) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """The global batch of this step, the same on every rank: latents [B C h w], captions, noise, uniform [B]."""
        indices, epochs = order.batch(self.step)
        latents, captions = self.latents.batch(indices, epochs)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        noise = torch.randn(latents.shape, generator=generator)
        # Stratified over the batch: every batch sees every noise level, which takes variance out of the loss.
        count = len(indices)
        uniform = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        dropped = torch.rand(count, generator=generator) < self.recipe.caption_dropout
        captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
        return latents, captions, noise, uniform

    def save(self) -> None:
        """The resumable state, then the bridge file."""
        try:
            state.save(self.output / "state", self.step, self.trained, self.optimizer, self.recipe.keep)
            facts = {"recipe": self.recipe.plain(), "step": self.step, **environment()}
            with eval_mode(self.pair):
                self.pair.checkpoint(facts).save(self.output / "bridge.safetensors", dtype=torch.float16)
                models.save_fully_trained(self.pair, self.output)
        except OSError as error:
            kept = state.states(self.output / "state")
            last = f"the last good state is {kept[-1]}" if kept else "no state was written before"
            raise ValueError(f"step {self.step} could not be saved to {self.output} ({error}); {last}") from error

    def _resume(self) -> None:
        kept = state.states(self.output / "state")
        if not kept:
            raise ValueError(f"there is nothing to resume in {self.output}; run without --resume")
        self.step = state.load(kept[-1], self.trained, self.optimizer)["step"]
        log.info("resuming %s at step %d", self.recipe.name, self.step)


class Journal:
    """log.jsonl: one line a step; a resumed run cuts what came after its state."""

    def __init__(self, path: Path, step: int):
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        write_text(path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))
        self.file = path.open("a")

    def write(self, entry: dict) -> None:
        self.file.write(json.dumps(entry) + "\n")

    def flush(self) -> None:
        self.file.flush()


def learning_rate_scale(recipe: Recipe, step: int) -> float:
    """Linear warm-up from 1/warmup, then constant or a half cosine to zero at the last step."""
    warmup = recipe.optimizer.warmup
    if step < warmup:
        return (step + 1) / warmup
    if recipe.optimizer.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup)))


def _dtype(section, frozen: torch.dtype) -> torch.dtype:
    return torch.float32 if section.train == "full" else frozen


def attention_kernel(device: torch.device):
    """On a CPU plain matrix products train faster than torch's flash kernel, whose backward is slow there."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
