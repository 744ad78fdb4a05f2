"""The page that language_models.py writes: what was found of each family of language models, as tables."""

from __future__ import annotations

import re
from typing import NamedTuple

from lavi_bridge.tests.lavi_core.language.examination import Outcome

# What a check is called on the page, and those of them that belong together.
NAMES = {
    "last": "last",
    "longer": "last",
    "padded right": "padding to max_length",
    "unmasked": "no mask",
    "batch": "in a batch",
    "in company": "padding to the longest",
    "padded left": "padding on the left",
    "last_before_norm": "last_before_norm",
    "normalized_mean": "normalized_mean",
    "all positions": "all positions",
    "whole model": "beside the whole model",
    "bf16": "bfloat16",
    "8-bit": "8-bit",
    "streamed": "streamed",
    "fingerprint": "fingerprint before loading",
    "LoRA": "LoRA",
}


class Row(NamedTuple):
    """Of one family. trunk: the class that reads the prompt; "" = it was not loaded, for the reason in outcomes."""

    model_type: str
    trunk: str
    outcomes: dict[str, Outcome]

    @property
    def kind(self) -> str:
        """The worst that was found."""
        kinds = {outcome.kind for outcome in self.outcomes.values()}
        if not self.trunk:
            return next(iter(kinds))
        return next((kind for kind in ("wrong", "raw", "refused") if kind in kinds), "right")


def page(rows: list[Row]) -> str:
    import torch
    import transformers

    reads = [row for row in rows if row.trunk and any(o.kind == "right" for o in row.outcomes.values())]
    unbuilt = [row for row in rows if row.kind == "unbuilt"]
    faulty = [row for row in rows if row.kind in ("wrong", "raw")]
    return (
        "\n".join(
            [
                *_HEAD.format(
                    command="python tests/benchmarks/language_models.py -o lavi_core/language/README.md",
                    torch=torch.__version__.partition("+")[0],
                    transformers=transformers.__version__,
                    tried=len(rows),
                    all_right=sum(row.kind == "right" for row in reads),
                    refusing=sum(row.kind == "refused" for row in reads),
                    refused=sum(row.kind == "refused" for row in rows if row not in reads),
                    faulty=len(faulty),
                    unbuilt=len(unbuilt),
                ).splitlines(),
                "",
                *_faults(rows),
                "| model_type | reads by | right | refused, or **wrong** |",
                "|---|---|---|---|",
                *(_line(row) for row in reads),
                "",
                "## Refused whole",
                "",
                "| model_type | why |",
                "|---|---|",
                *(_reason(row) for row in rows if row not in reads and row not in unbuilt),
                "",
                "## Not built tiny",
                "",
                "Their classes ask for packages that are not installed here, or their sizes are not those of one rule.",
                "",
                "| model_type | why |",
                "|---|---|",
                *(_reason(row) for row in unbuilt),
            ]
        )
        + "\n"
    )


_HEAD = """# Language models: right, refused, wrong

Every family of transformers {transformers} that reads text, tiny and random, beside transformers' own class (torch
{torch}, CPU). Written by

```bash
{command}
```

Of {tried} families, {all_right} are right in every way below, {refusing} in all but what is refused in a sentence,
{refused} are refused whole, **with a fault: {faulty}**, {unbuilt} could not be built here.

"All" is: the last states of a short and a long prompt, alone, in a batch, padded on the right to max_length with
and without the mask, to the longest, and on the left; every entry by its number and -2; last_before_norm;
normalized_mean; a prompt that takes all positions; bfloat16; 8-bit weights (within 10 %, or as rounded weights say);
streamed from disk; the fingerprint that is read from the files; a live LoRA beside a merged one. The trunk of a model
of text and pictures is compared with the whole model, given text."""


def _faults(rows: list[Row]) -> list[str]:
    """A table of what is wrong or raw, with the families; none where nothing is."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, outcome in row.outcomes.items():
            if outcome.kind in ("wrong", "raw"):
                families = found.setdefault(f"**{outcome.kind}** {NAMES.get(name, name)}", [])
                families.append(row.model_type)
    lines = [f"| {what} | {len(set(names))} | {', '.join(dict.fromkeys(names))} |" for what, names in found.items()]
    return ["| fault | families | which |", "|---|---|---|", *lines, ""] if lines else []


def _line(row: Row) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for name, outcome in row.outcomes.items():
        if outcome.kind in ("refused", "wrong", "raw"):
            groups.setdefault((outcome.kind, _short(outcome.why, row.model_type)), []).append(NAMES.get(name, name))
    notes = []
    for (kind, why), names in groups.items():
        entries = [name for name in names if name.startswith("entry")]
        shown = list(dict.fromkeys(["single entries" if name in entries else name for name in names]))
        said = f"{', '.join(shown)}: {why}"
        notes.append(said if kind == "refused" else f"**{kind}** {said}")
    right = "all but" if notes else "all"
    return f"| {row.model_type} | {row.trunk} | {right} | {'; '.join(notes)} |"


def _reason(row: Row) -> str:
    outcome = next(o for o in row.outcomes.values() if o.kind != "right")
    mark = "**raw** " if outcome.kind == "raw" else ""
    return f"| {row.model_type} | {mark}{_short(outcome.why, row.model_type)} |"


def _short(why: str, name: str) -> str:
    """A sentence for a cell: without the model's name, a folder and the way out."""
    words = re.sub(r"^hidden_states = \S+ cannot be had of \S+ \((.*)\); set .*$", r"\1", why)
    words = re.sub(r".*have shape \((.*), (\d+)\), not \(\1, (\d+)\).*", r"they are \2 wide, its config says \3", words)
    words = re.sub(r".*have shape (\(.*?\)), not (\(.*?\)).*", r"shape \1, not \2", words)
    words = re.sub(r"^transformers cannot load \S+: ", "", words)
    words = words.replace(f"{name} (generic) ", "").replace(f"the states of {name}", "states").removeprefix(f"{name} ")
    words = re.sub(rf"\S*/(?={re.escape(name)}\b)", "", words)
    words = words.partition("; ")[0].partition(". ")[0]
    words = words.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")
    return words if len(words) <= 160 else f"{words[:157].rstrip()}..."
