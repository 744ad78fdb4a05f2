"""One optimiser step: latents are corrupted, the vision model predicts, the loss goes back, the weights move."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.batch import Batch, MicroBatch
from ..data.text_inputs import to_device
from ..models.own_encoder import OwnEncoder
from ..models.pair import Pair
from ..recipe import Recipe
from . import optimizers, parallel
from .bad_steps import BadSteps
from .ema import EMA
from .learning_rate import learning_rate_scale
from .loss_weighting import drawn, loss_weights
from .readback import Readback

if TYPE_CHECKING:
    from accelerate import Accelerator


Told = tuple[int, dict[str, Any]]  # a step, and what the log says of it


class Open(NamedTuple):
    """A step whose numbers have not been read."""

    step: int
    names: Sequence[str]
    numbers: Readback
    rates: dict[str, float]


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
        self.own: OwnEncoder | None = None  # the teacher of ``align.prediction_steps``
        self.open: Open | None = None
        # A GPU that waits to be told whether a step is taken does nothing meanwhile: it decides by itself.
        self.reads_later = (
            accelerator.device.type == "cuda" and optimizers.can_skip(optimizer) and not parallel.is_deepspeed()
        )

    def __call__(self, step: int, batch: Batch) -> list[Told]:
        """Step number ``step`` on the global batch. -> what is known by now: of the step itself, or, where the numbers
        of a step are read while the next is computed, of the one before.
        """
        recipe, accelerator, device = self.recipe, self.accelerator, self.accelerator.device
        before = self._leave_teacher() if step == recipe.align.prediction_steps else []
        optimizers.use_averaged_weights(self.optimizer, False)
        scale = learning_rate_scale(recipe, step)
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
        told = before + self.settle()  # the GPU has this step's passes to do meanwhile
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * scale
        by_group = parallel.group_norms(self.model, self.optimizer)
        norm = parallel.clip(accelerator, self.model, self.trained.values(), recipe.optimizer.clip_norm)
        measured = [accelerator.reduce(total, "mean"), norm, *by_group]
        numbers = torch.stack([value.to(device) for value in measured])  # type: ignore[union-attr]
        self.open = Open(
            step, batch.names, Readback(numbers), {g["name"]: g["lr"] for g in self.optimizer.param_groups}
        )
        if self.reads_later:
            self.optimizer.found_inf = self.bad_steps.found(numbers)  # type: ignore[attr-defined]  (torch's own way)
            parallel.step(self.model, self.optimizer)
        else:
            told += self.settle()
        self.optimizer.zero_grad()
        return told

    def settle(self) -> list[Told]:
        """Read the numbers of the step that is still open, if there is one, and finish it: loss, gradient norm before
        clipping, of all and of each group, and learning rates, or why it was skipped.

        To be called before weights are saved or looked at. Raises ValueError where the run is over for a bad step.
        """
        if self.open is None:
            return []
        (step, names, numbers, rates), self.open = self.open, None
        loss, norm, *norms = numbers.read()
        problem = self.bad_steps.check(step, loss, norm, names, self.accelerator.is_main_process)
        if problem is not None:
            return [(step, {"skipped": problem})]
        if not self.reads_later:
            parallel.step(self.model, self.optimizer)
        self.ema.step()
        by_group = dict(zip(rates, norms, strict=True))
        return [(step, {"loss": loss, "norm": norm, "group_norm": by_group, "learning_rate": rates})]

    def _leave_teacher(self) -> list[Told]:
        told = self.settle()
        self.own = None
        self.bad_steps.start_over()
        return told

    def loss(self, micro_batch: MicroBatch) -> Tensor:
        """The weighted mean over a micro-batch, with its graph."""
        recipe, device = self.recipe, self.accelerator.device
        vision, objective = self.pair.vision_model, self.pair.vision_model.objective
        text = to_device(micro_batch.text, device)
        # A copy that is waited for would also wait for the step before.
        tensors = (micro_batch.latents, micro_batch.noise, micro_batch.uniform)
        latents, noise, uniform = (t.to(device, non_blocking=True) for t in tensors)
        timesteps = vision.timesteps(drawn(uniform, recipe.loss), latents)
        x, target = objective.corrupt(vision.latents.seen(latents), noise, timesteps)
        if micro_batch.plain:
            assert self.own is not None
            prediction, taught = self.model(text, x, timesteps, self.own.heard(micro_batch.plain, recipe.prompt))
            target = taught[:, : target.shape[1]].float()  # a network that also predicts variance has it dropped
        else:
            prediction = self.model(text, x, timesteps)
        return (objective.loss(prediction, target) * loss_weights(objective, timesteps, recipe.loss)).mean()
