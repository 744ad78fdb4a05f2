"""One optimiser step: latents are corrupted, the vision model predicts, the loss goes back, the weights move."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.batch import Batch, MicroBatch
from ..data.text_inputs import to_device
from ..models.pair import Pair
from ..recipe import Recipe
from . import optimizers, parallel
from .bad_steps import BadSteps
from .ema import EMA
from .learning_rate import learning_rate_scale
from .loss_weighting import drawn, loss_weights

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainStep:
    """model: the module whose forward pass trains, ``pair`` itself or what ``parallel.replicate`` made of it."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        pair: Pair,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        bad_steps: BadSteps,
    ):
        self.recipe, self.accelerator, self.pair, self.model = recipe, accelerator, pair, model
        self.optimizer, self.ema, self.bad_steps = optimizer, ema, bad_steps
        self.trained = pair.trained()

    def __call__(self, step: int, batch: Batch) -> dict[str, Any]:
        """Step number ``step`` on the global batch; what the log tells of it: loss, gradient norm before clipping, of
        all and of each group, and learning rates, or why it was skipped.
        """
        recipe, accelerator, device = self.recipe, self.accelerator, self.accelerator.device
        optimizers.use_averaged_weights(self.optimizer, False)
        scale = learning_rate_scale(recipe, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * scale
        total = torch.zeros((), device=device)
        world, rank = accelerator.num_processes, accelerator.process_index
        for index, micro_batch in enumerate(batch.micro_batches):
            # LoRA and adapter dropout draw from the global generator.
            torch.manual_seed((recipe.seed * 1_000_003 + step) * 4096 + index * world + rank)
            last = index + 1 == len(batch.micro_batches)
            with nullcontext() if last else parallel.no_gradient_sync(self.model):
                loss = self.loss(micro_batch) / len(batch.micro_batches)
                parallel.backward(accelerator, self.model, loss, last)  # checkpointed layers run once more here
            total += loss.detach()
        by_group = parallel.group_norms(self.model, self.optimizer)
        norm = parallel.clip(accelerator, self.model, self.trained.values(), recipe.optimizer.clip_norm)
        measured = [accelerator.reduce(total, "mean"), norm, *by_group]
        mean, norm, *norms = torch.stack([value.to(device) for value in measured]).tolist()  # type: ignore[union-attr]
        problem = self.bad_steps.check(step, mean, norm, batch.names, accelerator.is_main_process)
        if problem is None:
            parallel.step(self.model, self.optimizer)
            self.ema.step()
        self.optimizer.zero_grad()
        if problem is not None:
            return {"skipped": problem}
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        return {"loss": mean, "norm": norm, "group_norm": dict(zip(rates, norms, strict=True)), "learning_rate": rates}

    def loss(self, micro_batch: MicroBatch) -> Tensor:
        """The weighted mean over a micro-batch, with its graph."""
        recipe, device = self.recipe, self.accelerator.device
        vision, objective = self.pair.vision_model, self.pair.vision_model.objective
        text = to_device(micro_batch.text, device)
        latents, noise = (t.to(device, non_blocking=True) for t in (micro_batch.latents, micro_batch.noise))
        timesteps = vision.timesteps(drawn(micro_batch.uniform.to(device), recipe.loss), latents)
        x, target = objective.corrupt(vision.latents.seen(latents), noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            prediction = self.model(text, x, timesteps)
        return (objective.loss(prediction, target) * loss_weights(objective, timesteps, recipe.loss)).mean()
