"""A probe as a table, as JSON, and as what to write into the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...lavi_core.prompt import WhichStates
from ..evaluation.table import markdown
from .captions import Split
from .measure import LATE, SOON, TEST, UNSEEN, Key, Probed, Share
from .states import LAST
from .targets import CAPTION, NEIGHBOURS, STATES, WORD, Targets

KINDS = {STATES: "the own encoder's states", CAPTION: "each word and its neighbours"}


class Column(NamedTuple):
    """A figure that is shown. key: which of a probe's shares."""

    title: str
    key: Key


def columns(split: Split, targets: Targets) -> list[Column]:
    """The first is what hidden states are ranked by."""
    part = STATES if STATES in targets.parts else CAPTION
    found = [Column("soon", (TEST, part, SOON)), Column("in the end", (TEST, part, LATE))]
    if split.unseen and part == STATES:
        found.append(Column("new words, soon", (UNSEEN, STATES, SOON)))
    elif split.unseen and split.named:
        found.append(Column("new words, soon", (UNSEEN, WORD, SOON)))
    if part == CAPTION:
        found.append(Column("neighbours, in the end", (TEST, NEIGHBOURS, LATE)))
    return found


class Choice(NamedTuple):
    model: Probed
    which: WhichStates
    share: Share


def best(probed: Sequence[Probed], column: Column) -> list[Choice]:
    """The best hidden states of each model, the best model first."""
    found = []
    for model in probed:
        which = max(model.shares, key=lambda which: model.shares[which][column.key].value)
        found.append(Choice(model, which, model.shares[which][column.key]))
    return sorted(found, key=lambda choice: -choice.share.value)


def as_good(model: Probed, choice: Choice, column: Column) -> list[WhichStates]:
    """The states whose share is not less than the chosen one's by more than chance: the 95 % interval of the
    difference, over captions drawn again, holds zero."""
    top = choice.share.drawn()
    differences = {which: top - shares[column.key].drawn() for which, shares in model.shares.items()}
    return [which for which, drawn in differences.items() if which != choice.which and np.quantile(drawn, 0.025) <= 0]


def table(probed: Sequence[Probed], shown: Sequence[Column]) -> str:
    """Markdown, a line for each model's each hidden state; the best of a model's column is set in bold."""
    lines = []
    for model in probed:
        tops = [max(shares[column.key].value for shares in model.shares.values()) for column in shown]
        for which, shares in model.shares.items():
            cells = [_cell(shares[column.key], top) for column, top in zip(shown, tops, strict=True)]
            lines.append([model.name, written(which), *cells])
    return markdown(["language model", "hidden_states", *(column.title for column in shown)], lines)


def _cell(share: Share, top: float) -> str:
    low, high = share.interval
    text = f"{share.value:.3f}"
    return f"{f'**{text}**' if share.value == top else text} ({low:.3f} to {high:.3f})"


def written(which: WhichStates) -> str:
    """As a recipe says it."""
    return f'"{which}"' if isinstance(which, str) else str(which)


def advice(probed: Sequence[Probed], shown: Sequence[Column]) -> str:
    """What to write into the recipe, in words."""
    column, ranked = shown[0], best(probed, shown[0])
    first = ranked[0]
    lines = [
        f"Worth a bridge first: {first.model.name}. In the recipe:",
        "",
        "    [language]",
        f'    model = "{first.model.name}"',
        "    [prompt]",
        f"    hidden_states = {written(first.which)}",
        "",
    ]
    for choice in ranked:
        low, high = choice.share.interval
        line = f"- {choice.model.name}: {written(choice.which)}, {choice.share.value:.3f} ({low:.3f} to {high:.3f})"
        if others := as_good(choice.model, choice, column):
            line += f"; not told apart from it: {', '.join(map(written, others))}"
        shares = choice.model.shares
        if choice.which != LAST and LAST in shares:
            line += f'; "last" has {shares[LAST][column.key].value:.3f}'
        lines.append(line + ".")
    words = next((column for column in shown if column.key[0] == UNSEEN), None)
    if words is not None:
        top = best(probed, words)[0]
        lines.append(
            f"- Words that no caption has are understood most from {written(top.which)} of {top.model.name} "
            f"({top.share.value:.3f})."
        )
    if first.which == 0:
        lines.append(
            "- 0 are the embeddings of single words: each is heard, what stands beside it is not. If that matters, take "
            "the best of the column before the last words of this page's table, or of the others the next."
        )
    return "\n".join(lines)


def page(probed: Sequence[Probed], split: Split, targets: Targets, command: str) -> str:
    shown = columns(split, targets)
    part = shown[0].key[1]
    about = (
        f"{len(split.fit)} captions to solve on, {len(split.test)} others, {len(split.unseen)} with words that the first "
        f"have not ({split.name}). Share of the variance of {KINDS[part]} that a linear map hears in the states, with "
        f"its 95 % interval over captions: soon (ridge penalty {SOON:g}, as after a short training), in the end "
        f"({LATE:g}). 1 = all, 0 = no more than the mean; below 0, what was learnt misleads."
    )
    took = ", ".join(f"{model.name} {model.seconds:.0f} s" for model in probed)
    parts = ["# Which language model, which hidden states", f"Written by `{command}`; {took}.", about]
    return "\n\n".join([*parts, table(probed, shown), advice(probed, shown), "![Shares by layer](probe.png)"]) + "\n"


def facts(probed: Sequence[Probed], split: Split) -> dict[str, Any]:
    """All that was measured, for programs."""

    def of(shares: Mapping[Key, Share]) -> list[dict[str, Any]]:
        return [
            {"captions": key[0], "part": key[1], "penalty": key[2], "share": share.value, "interval": share.interval}
            for key, share in shares.items()
        ]

    return {
        "captions": {"name": split.name, "fit": len(split.fit), "test": len(split.test), "unseen": len(split.unseen)},
        "models": [
            {
                "name": model.name,
                "layers": model.layers,
                "width": model.width,
                "seconds": round(model.seconds, 1),
                "hidden_states": [{"hidden_states": which, "shares": of(s)} for which, s in model.shares.items()],
            }
            for model in probed
        ],
    }
