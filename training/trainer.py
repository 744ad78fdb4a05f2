"""The training loop: captions + images -> latents -> corrupt -> vision(x_t, t, bridge(captions)) -> loss -> step."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lavi_core.language import TextEncoder
from . import models, state
from .align import align
from .data import SOURCES, LatentCache, Order
from .files import write_text
from .pair import GROUPS, Pair, eval_mode
from .pictures import Pictures
from .pipeline import pick_device
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
        from accelerate.utils import GradientAccumulationPlugin

        self.recipe = recipe
        self.output = Path(recipe.output)
        # Precision and accumulation are the recipe's, whatever the launcher has put into the environment.
        self.accelerator = Accelerator(
            cpu=pick_device().type == "cpu",
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        main, world = self.accelerator.is_main_process, self.accelerator.num_processes
        if recipe.batch_size % (world * recipe.accumulation):
            raise ValueError(
                f"batch_size {recipe.batch_size} does not divide into {world} processes times "
                f"accumulation = {recipe.accumulation}"
            )
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
        self.resumed = resume and self._resume()
        if main:
            write_text(self.output / "recipe.json", json.dumps(recipe.plain(), indent=1))
            record_environment(self.output / "environment.json", self.resumed)

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
        if recipe.align.steps and not self.resumed:
            align(recipe, self.pair, self.source, device)
        self.model, self.optimizer = accelerator.prepare(self.pair, self.optimizer)
        if main and not self.resumed:
            self.save_state()
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
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                journal.flush()
                self.save()
            if pictures is not None and (self.step % recipe.sample.every == 0 or self.step == recipe.steps):
                for name, value in pictures.draw(self.step).items():
                    board.add_scalar(f"bench/{name}", value, self.step)
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
            with sync, attention_kernel(device):  # checkpointed layers run once more in the backward pass
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                    prediction = self.model(tokens.ids, tokens.mask, tokens.keep, x, timesteps)
                loss = objective.loss(prediction, target).mean() / parts
                accelerator.backward(loss)
            total += loss.detach()
        norm = float(accelerator.clip_grad_norm_(list(self.trained.values()), recipe.optimizer.clip_norm))  # type: ignore[arg-type]
        mean = float(accelerator.reduce(total, "mean"))  # type: ignore[arg-type]
        for name, value in (("loss", mean), ("gradient norm", norm)):
            if not math.isfinite(value):
                good = f"the last good state is in {self.output}/state"
                raise ValueError(f"the {name} of step {self.step} is {value}; {good}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean, norm

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
        self.save_state()
        with self._saving():
            facts = {"recipe": self.recipe.plain(), "step": self.step, **environment()}
            with eval_mode(self.pair):
                self.pair.checkpoint(facts).save(self.output / "bridge.safetensors", dtype=torch.float16)
                models.save_fully_trained(self.pair, self.output)

    def save_state(self) -> None:
        with self._saving():
            folder, keep = self.output / "state", self.recipe.keep
            state.save(folder, self.step, self.trained, self.optimizer, keep, self.identity())

    def identity(self) -> dict[str, Any]:
        """What must be the same when this run is resumed: the recipe, but for what it writes and how long it runs, and
        the prints of both models; by dotted key."""
        plain = self.recipe.plain()
        for key in ("output", "steps", "save_every", "keep", "sample", "gradient_checkpointing"):
            del plain[key]
        facts = {}
        for key, value in plain.items():
            facts |= {f"{key}.{sub}": v for sub, v in value.items()} if isinstance(value, dict) else {key: value}
        prints = {"language": self.pair.language_config.fingerprint, "vision": self.pair.vision_print}
        return facts | {f"{name}.fingerprint": value for name, value in prints.items()}

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = state.states(self.output / "state")
            last = f"the last good state is {kept[-1]}" if kept else "no state was written before"
            raise ValueError(f"step {self.step} could not be saved to {self.output} ({error}); {last}") from error

    def _resume(self) -> bool:
        """Load the newest state; False for a run that was killed before its first one, which starts afresh."""
        kept = state.states(self.output / "state")
        if not kept:
            if not any((self.output / name).is_file() for name in ("recipe.json", "log.jsonl")):
                raise ValueError(f"there is nothing to resume in {self.output}; run without --resume")
            log.info("%s was stopped before its first state; starting afresh", self.recipe.name)
            return False
        self.step = state.load(kept[-1], self.trained, self.optimizer, self.identity())
        log.info("resuming %s at step %d", self.recipe.name, self.step)
        return True


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


def record_environment(path: Path, resumed: bool) -> None:
    """One entry for each time that the run was started, oldest first."""
    found = json.loads(path.read_text()) if resumed and path.is_file() else []
    before = found if isinstance(found, list) else [found]  # one bare entry, in runs of before
    write_text(path, json.dumps([*before, environment()], indent=1))


def _dtype(section, frozen: torch.dtype) -> torch.dtype:
    return torch.float32 if section.train == "full" else frozen


def attention_kernel(device: torch.device):
    """On a CPU plain matrix products train faster than torch's flash kernel, whose backward is slow there."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
