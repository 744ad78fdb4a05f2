"""The results of a plan as a Markdown page with tables and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...lavi_core.files import write_bytes, write_text
from ..evaluation.shapebench import GROUPS, ROWS, bounds
from ..evaluation.table import markdown
from ..models.picture_grid import png
from .compare import Figure, difference, nearer, share, verdict
from .frechet import Floor
from .plan import DISTANCE, PROMPTS, Claim, Plan, Row, run_folder
from .result import NAME, STRIP, Result

ENOUGH = 3  # seeds, below which a verdict says how few there are

Results = Mapping[str, Sequence[Result]]
Limits = Mapping[str, tuple[float, float]]


def page(plan: Plan, work: Path, output: Path, command: str) -> str:
    """Write the page to ``output`` and its pictures beside it; returns its text. command: what it says made it.

    Raises ValueError where ``work`` has no result yet, or results of other settings.
    """
    results = collect(plan, work)
    for axis in plan.axis:
        if rows := _rows_of(axis.name, plan, results):
            write_bytes(output.with_name(f"{axis.name}.png"), _grid(rows, work, plan))
    text = words(plan, results, Floor.load(work), command)
    write_text(output, text)
    return text


def words(plan: Plan, results: Results, floor: Floor, command: str) -> str:
    """The page without its pictures, which it names."""
    limits = bounds(plan.settings())
    parts = [f"# {plan.title}", *_head(plan, results, command)]
    parts += ["## What holds", *_claims(plan, results)]
    for axis in plan.axis:
        if rows := _rows_of(axis.name, plan, results):
            parts += [f"## {axis.title}", axis.text, *_tables(rows, results, limits, floor)]
            parts += [f"![{axis.title}: pictures]({axis.name}.png)"]
    parts += ["## How it was made", *_how(plan, results)]
    return "\n\n".join(parts) + "\n"


def collect(plan: Plan, work: Path) -> dict[str, list[Result]]:
    """Row name -> its results, by seed; a row without any is left out."""
    found: dict[str, list[Result]] = {}
    for row in plan.row:
        for seed in plan.seeds_of(row):
            folder = run_folder(work, row, seed)
            if (folder / NAME).is_file():
                found.setdefault(row.name, []).append(Result.load(folder))
    if not found:
        raise ValueError(f"{work} holds no result of this plan; run it first")
    for results in found.values():
        for result in results:
            if result.settings != vars(plan.settings()):
                raise ValueError(
                    f"{result.row}, seed {result.seed} was judged with {result.settings}, the plan has "
                    f"{vars(plan.settings())}; delete its {NAME} to have it judged again"
                )
    return found


def _head(plan: Plan, results: Results, command: str) -> Iterator[str]:
    runs = sum(len(found) for found in results.values())
    wanted = sum(len(plan.seeds_of(row)) for row in plan.row)
    yield plan.text
    yield f"Written by `{command}`; {runs} of {wanted} runs are in."
    if runs < wanted:
        counted = {row: (len(results.get(row.name, ())), len(plan.seeds_of(row))) for row in plan.row}
        short = [f"{row.label}: {some} of {all_}" for row, (some, all_) in counted.items() if 0 < some < all_]
        none = sum(not some for some, _ in counted.values())
        parts = [*short, f"{none} rows have not been run"] if none else short
        yield "**Not complete.** Seeds that are in: " + "; ".join(parts) + "; of all others, all."


def _claims(plan: Plan, results: Results) -> Iterator[str]:
    labels = {row.name: row.label for row in plan.row}
    lines: list[list[str]] = []
    said: dict[str, list[str]] = {word: [] for word in ("holds", "reversed", "not decided")}
    for claim in plan.claim:
        compared = f"{labels[claim.better]} - {labels[claim.worse]}; {', '.join(claim.on)}"
        try:
            found = _found(claim, results)
        except (KeyError, ValueError):
            lines.append([claim.text, claim.whose, compared, "-", "0", "not run"])
            continue
        count, word = len(found.seeds), verdict(found)
        whose = "paper: " if claim.whose == "paper" else ""
        said[word].append(f"{whose}{claim.text} ({found.mean:+.3f}{' in distance' if DISTANCE in claim.on else ''})")
        weak = "" if count >= ENOUGH else f", of {count} seed{'s' * (count > 1)}"
        each = ", ".join(f"{value:+.3f}" for value in found.seeds)
        change = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        lines.append([claim.text, claim.whose, compared, change, each, f"**{word}**{weak}"])
    for word, claims in said.items():
        if claims:
            yield f"**{word.capitalize()}**"
            yield "\n".join(f"- {claim}" for claim in claims)
    yield markdown(["claim", "whose", "compared", "difference", "seeds", "at this scale"], lines)
    yield (
        "Differences of the share of right pictures, prompt by prompt, with the 95 % bootstrap interval over prompts "
        "(not over trainings: that is what the seeds are for); on distance, how much nearer the pictures are to true "
        'ones, with the lowest and highest of the seeds. "holds" and "reversed": the interval and every single seed '
        "lie on one side of zero. There is no correction for the number of claims."
    )


def _found(claim: Claim, results: Results) -> Figure:
    """Raises KeyError or ValueError where the runs that it compares are not there."""
    better, worse = results[claim.better], results[claim.worse]
    return nearer(better, worse) if DISTANCE in claim.on else difference(better, worse, _categories(claim.on))


def _rows_of(axis: str, plan: Plan, results: Results) -> list[Row]:
    return [row for row in plan.row if axis in row.axes and row.name in results]


def _tables(rows: Sequence[Row], results: Results, limits: Limits, floor: Floor) -> Iterator[str]:
    head = ["", *(name for name, _ in GROUPS), DISTANCE, "seeds"]
    lines = []
    for row in rows:
        found = results[row.name]
        far = [result.distance for result in found]
        spread = f" ({min(far):.2f}-{max(far):.2f})" if len(far) > 1 else ""
        shares = [_cell(share(found, categories)) for _, categories in GROUPS]
        lines.append([row.label, *shares, f"{np.mean(far):.2f}{spread}", str(len(found))])
    for name, place, far in (
        ("ceiling (true pictures)", 0, f"{floor.true:.2f}"),
        ("chance (true pictures of other prompts)", 1, ""),
        ("nothing drawn (blank ground)", None, f"{floor.blank:.2f}"),
    ):
        means = [""] * len(GROUPS)
        if place is not None:
            means = [f"{np.mean([limits[c][place] for c in categories]):.3f}" for _, categories in GROUPS]
        lines.append([name, *means, far, ""])
    yield markdown(head, lines)
    yield (
        "Share of right pictures (colour, shape, texture, number and relation all as named) with its 95 % interval "
        "over prompts, all seeds together; each seed's is in the fold. Seen words are the seven ordinary categories. "
        "Distance: Fréchet, of the pictures of all prompts to true ones, mean and range of the seeds (lower is better; "
        "no FID, see the end)."
    )
    head = ["", *(row.name for row in ROWS)]
    lines = []
    for row in rows:
        cells = [f"{share(results[row.name], [category.name]).mean:.2f}" for category in ROWS]
        lines.append([row.label, *cells])
    lines.append(["ceiling", *(f"{limits[row.name][0]:.2f}" for row in ROWS)])
    lines.append(["chance", *(f"{limits[row.name][1]:.2f}" for row in ROWS)])
    seeds = []
    for row in rows:
        each = [", ".join(f"{v:.3f}" for v in share(results[row.name], c).seeds) for _, c in GROUPS]
        seeds.append([row.label, *each])
    yield _fold(
        "Category by category, seed by seed",
        markdown(head, lines),
        markdown(["", *(name for name, _ in GROUPS)], seeds),
    )


def _how(plan: Plan, results: Results) -> Iterator[str]:
    some = next((found[0] for found in results.values() if found[0].steps), None)
    if some is None:
        yield "No bridge of this plan has been trained yet."
        return
    yield (
        f"Every bridge: {some.steps} steps of {some.batch_size} pictures; the rows are changes of one recipe "
        f"({plan.recipe}). Judged: {plan.prompts} prompts of each category and seed, the same for all, {plan.steps} "
        f"Euler steps, guidance {plan.guidance:g}, the same noise. Seeds change the order of the pictures, their noise "
        f"and what is drawn at random in adapter and LoRA{', and in a random control all weights' * bool(plan.control)}"
        "; each vision model was trained once."
    )
    if plan.note:
        yield plan.note
    machines = sorted({_machine(found) for row in results.values() for found in row})
    several, lines = len(machines) > 1, []
    for row in plan.row:
        for result in results.get(row.name, ())[:1]:
            sizes = [f"{result.trained.get(name, 0) / 1e6:.2f} M" for name in ("adapter", "language", "vision")]
            losses = [one.loss for one in results[row.name] if one.loss is not None]
            loss = f"{np.mean(losses):.4f}" if losses else "-"
            times = [np.mean([getattr(one, key) for one in results[row.name]]) for key in ("seconds", "cpu_seconds")]
            seconds = [f"{value:.0f}" if value else "-" for value in times]
            ran_on = sorted({machines.index(_machine(one)) + 1 for one in results[row.name]})
            on = [", ".join(map(str, ran_on)) if result.steps else "-"] if several else []
            lines.append([row.label, *(sizes if result.steps else ["-"] * 3), loss, *seconds, *on])
    head = ["", "adapter", "language LoRA", "vision LoRA", "loss", "seconds", "CPU seconds", *(["machine"] * several)]
    yield markdown(head, lines)
    where = " and ".join(f"({i}) {name}" for i, name in enumerate(machines, 1)) if several else machines[0]
    versions = ", ".join(f"{k} {v}" for k, v in some.environment["versions"].items())
    yield (
        "Parameters that are trained; mean loss of the last tenth of the steps; seconds of training, with a head start "
        f"where there is one, on {where}, shared with other work, and what the process computed in "
        f"them (where it was counted). {versions}."
    )
    yield (
        "Distance: both sides' pictures through the demo's VAE, latents averaged over a 4 x 4 grid (64 numbers), "
        "scaled by their spread over true pictures; the true ones are of other prompts of the same categories. Its "
        "ceiling is that of true pictures of the judged prompts, which are too few for nought. Chance is the judge's "
        "score of true pictures that belong to other prompts of the category: there are two unseen pairs "
        "alone, so half of those are right."
    )


def _grid(rows: Sequence[Row], work: Path, plan: Plan) -> bytes:
    from PIL import Image

    pictures, captions = [], []
    for row in rows:
        for seed in plan.seeds_of(row)[:1]:
            with Image.open(run_folder(work, row, seed) / STRIP) as image:
                strip = np.asarray(image.convert("RGB"))
            pictures.append(strip.reshape(strip.shape[0], len(PROMPTS), -1, 3).transpose(1, 0, 2, 3))
            captions += [f"{row.label}: {prompt}" for prompt in PROMPTS]
    return png(np.concatenate(pictures), captions, columns=len(PROMPTS))


def _categories(names: Sequence[str]) -> list[str]:
    groups = dict(GROUPS)
    return [category for name in names for category in groups.get(name, (name,))]


def _cell(found: Figure) -> str:
    return f"{found.mean:.3f} ({found.low:.2f}-{found.high:.2f})"


def _fold(title: str, *texts: str) -> str:
    return "\n\n".join([f"<details><summary>{title}</summary>", *texts, "</details>"])


def _machine(result: Result) -> str:
    """Older runs recorded threads in other words."""
    return re.sub(r"^CPU, (\d+) threads?$", r"CPU, threads: \1", result.environment["device"])
