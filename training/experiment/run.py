"""Train and judge what a plan asks for. What is on disk already is not done again; what was cut off goes on."""

from __future__ import annotations

import json
import logging
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ...lavi_core.config import from_dict
from ...lavi_core.files import write_bytes
from ..demo.start import StartRecipe, build
from ..evaluation.generate import png
from ..evaluation.shapebench import judged
from ..loop import lock
from ..loop.checkpoint import states
from ..loop.environment import environment
from ..loop.trainer import Trainer
from ..models import named
from ..models.pipeline import Pipeline
from ..recipe import Recipe, read_recipe
from ..shapebench.bench import summary
from .frechet import frechet, of_true_pictures
from .plan import PROMPTS, SEED, WORK, Control, Plan, Row, VisionStage, run_folder
from .result import NAME, STRIP, Result

log = logging.getLogger(__name__)


def run(plan: Plan, folder: Path, work: Path, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> None:
    """Everything of ``plan``, which lies in ``folder``, that ``work`` lacks: one seed of all rows, then the next.

    What another process with the same ``work`` is at is left to it. rows, seeds: do these alone. Raises ValueError for
    a row or a seed that the plan has not.
    """
    for what, asked, known in (
        ("rows", rows, [row.name for row in plan.row]),
        ("seeds", seeds, list(plan.seeds)),
    ):
        if unknown := [one for one in asked if one not in known]:
            raise ValueError(f"the plan has no {what} {', '.join(map(str, unknown))}; it has {known}")
    wanted = [row for row in plan.row if not rows or row.name in rows]
    tasks = jobs(plan, wanted, seeds or plan.seeds, folder, work)
    went_on = True
    while went_on and (left := [job for job in tasks if not job.done()]):
        went_on = False
        for job in left:
            try:
                with lock.held(work / "at-work" / job.name):
                    if not job.done() and all(needed.done() for needed in job.needs):
                        log.info("%s", job.name)
                        job.do()
                        went_on = True
            except lock.Locked:
                continue
    if left := [job.name for job in tasks if not job.done()]:
        log.warning("left to other processes, which are at work on them or on what they need: %s", ", ".join(left))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A part of a plan that one process does. needs: what must be done before."""

    name: str
    do: Callable[[], None]
    done: Callable[[], bool]
    needs: tuple[Job, ...] = ()


def jobs(plan: Plan, rows: Sequence[Row], seeds: Sequence[int], folder: Path, work: Path) -> list[Job]:
    """What these rows with these seeds come to, what they need first."""
    made: list[Job] = []
    for stage in plan.vision:
        do, done = partial(train_vision, stage, folder, work), partial(_is_trained, work / stage.name)
        made.append(Job(name=stage.name, do=do, done=done))
    for seed in seeds:
        for control in plan.control:
            target = work / f"{control.name}-{seed}"
            made.append(Job(name=target.name, do=partial(make_control, control, seed, work), done=target.is_dir))
    found: list[Job] = []
    for seed in seeds:
        for row in rows:
            if seed in plan.seeds_of(row):
                values = [value.replace(SEED, str(seed)) + "/" for value in (*row.set, row.bridge)]
                needs = tuple(job for job in made if any(f"{WORK}/{job.name}/" in value for value in values))
                target = run_folder(work, row, seed)
                do, done = partial(one, plan, row, seed, folder, work), (target / NAME).is_file
                found.append(Job(name=target.name, do=do, done=done, needs=needs))
    return [job for job in made if any(job in one.needs for one in found if not one.done())] + found


def one(plan: Plan, row: Row, seed: int, folder: Path, work: Path) -> None:
    """Train one row with one seed, judge it and write its result."""
    recipe, target = plan.recipe_of(row, seed, folder, work), run_folder(work, row, seed)
    bridge, trained = _train(recipe) if not row.bridge else (named.bridge(row.bridge.replace(WORK, str(work))), {})
    pipeline = Pipeline.load(
        bridge,
        named.language(recipe.language.model),
        named.vision(recipe.vision.model),
        named.vae(recipe.vision.vae),
        recipe.precision,
        own=named.teacher(recipe.own_encoder.model) if recipe.own_encoder.model else None,
    )
    settings = plan.settings()
    found = list(judged(pipeline, settings))
    strip = pipeline.draw(PROMPTS, steps=plan.steps, guidance=plan.guidance)
    write_bytes(target / STRIP, png(np.concatenate(list(strip), axis=1)))
    truth = of_true_pictures(pipeline.vae, settings, work)
    seconds, computed, loss = _journal(target)
    Result(
        row=row.name,
        seed=seed,
        settings=asdict(settings),
        correct={one.row.name: tuple(int(v.correct) for v in one.verdicts) for one in found},
        aspects={one.row.name: summary(one.verdicts) for one in found},
        distance=frechet(pipeline.vae, np.concatenate([one.images for one in found]), truth),
        trained=trained,
        steps=0 if row.bridge else recipe.steps,
        batch_size=recipe.batch_size,
        seconds=seconds,
        loss=loss,
        environment=environment(),
        cpu_seconds=computed,
    ).save(target)
    _forget_state(target)


def _train(recipe: Recipe) -> tuple[Path, dict[str, int]]:
    """The bridge file, and how many parameters of each group were trained."""
    trainer = Trainer(recipe, resume=bool(states(Path(recipe.output) / "state")))
    sizes = {name: sum(p.numel() for _, p in trainer.pair.group(name)) for name in ("adapter", "language", "vision")}
    return trainer.run(), sizes


def _forget_state(folder: Path) -> None:
    """What a run needs to go on, four times the bridge: kept until all is done that may be cut off after training."""
    shutil.rmtree(folder / "state", ignore_errors=True)


def train_vision(stage: VisionStage, folder: Path, work: Path) -> None:
    """The vision model of ``stage`` in ``work``/NAME, from its random start."""
    start = from_dict(StartRecipe, tomllib.loads((folder / stage.start).read_text(encoding="utf-8")))
    begun = work / f"{stage.name}-start"
    if not (begun / "vision").is_dir():
        build(replace(start, output=str(begun)))
    model = f'vision.model="{begun / "vision"}"'
    own = (f'output="{work / stage.name}"', model, f'data.cache="{work / "latents"}"')
    log.info("vision model %s", stage.name)
    _train(read_recipe(folder / stage.recipe, own))
    _forget_state(work / stage.name)


def _is_trained(folder: Path) -> bool:
    return (folder / "bridge.safetensors").is_file() and not states(folder / "state")


def make_control(control: Control, seed: int, work: Path) -> None:
    """A Hugging Face folder ``work``/NAME-SEED with random weights, as transformers begins a training with."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    target = work / f"{control.name}-{seed}"
    source, part = named.language(control.like), work / f".{target.name}.part"
    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.from_pretrained(source)).save_pretrained(part)
    AutoTokenizer.from_pretrained(source).save_pretrained(part)
    part.replace(target)


def _journal(folder: Path) -> tuple[float, float, float | None]:
    """Seconds of training, without sampling, on the clock and of the process; the mean loss of the last tenth of the
    steps."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return 0.0, 0.0, None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "images_per_second" in line]
    batch = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["batch_size"]
    seconds = sum(batch / line["images_per_second"] for line in steps)
    seconds += sum(line.get("start_seconds", 0.0) for line in lines)
    computed = sum(line.get("cpu_seconds", 0.0) + line.get("start_cpu", 0.0) for line in lines)
    losses = [line["loss"] for line in steps if "loss" in line]  # a step that was skipped has none
    last = losses[-max(1, len(losses) // 10) :]
    return round(seconds, 1), round(computed, 1), round(float(np.mean(last)), 5) if last else None
