"""A probe as a table, as JSON, and as what to write into the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...lavi_core.prompt import WhichStates
from ..evaluation.table import markdown
from .captions import Split
from .measure import LATE, SOON, TEST, TOLD, UNSEEN, Key, Probed, Share
from .states import LAST
from .targets import CAPTION, STATES, WORD, Targets

KINDS = {STATES: "the own encoder's states", CAPTION: "each word and its neighbours"}


class Column(NamedTuple):
    """A figure that is shown: the mean of a probe's shares of these keys."""

    title: str
    keys: tuple[Key, ...]

    def value(self, shares: Mapping[Key, Share]) -> float:
        return float(np.mean([shares[key].value for key in self.keys]))

    def drawn(self, shares: Mapping[Key, Share]) -> np.ndarray:
        """[samples], see ``Share.drawn``."""
        return np.mean([shares[key].drawn(seed) for seed, key in enumerate(self.keys)], axis=0)

    def interval(self, shares: Mapping[Key, Share]) -> tuple[float, float]:
        low, high = np.quantile(self.drawn(shares), (0.025, 0.975))
        return float(low), float(high)


def columns(split: Split, targets: Targets) -> list[Column]:
    """The first is what hidden states are ranked by; the last was not seen to rank as pictures do."""
    part = STATES if STATES in targets.parts else CAPTION
    seen, late = Column("seen words", ((TEST, part, SOON),)), Column("in the end", ((TEST, part, LATE),))
    if not split.unseen or (part == CAPTION and not split.named):
        return [seen, late]
    of_word = STATES if part == STATES else WORD
    new = Column("new words", ((UNSEEN, of_word, SOON),))
    told = [Column("new words told", ((TOLD, of_word, SOON),))] if of_word in targets.meanings else []
    return [Column("both", (*seen.keys, *new.keys)), seen, new, *told, late]


class Choice(NamedTuple):
    """The hidden states ``which`` of a model. others: of the same model, not told apart from them: the 95 % interval of
    the difference, over captions drawn again, holds zero."""

    model: Probed
    which: WhichStates
    value: float
    interval: tuple[float, float]
    others: Sequence[WhichStates]


def best(probed: Sequence[Probed], column: Column) -> list[Choice]:
    """Of each model, the best model first."""
    found = []
    for model in probed:
        drawn: dict[WhichStates, np.ndarray] = {which: column.drawn(shares) for which, shares in model.shares.items()}
        which = max(model.shares, key=lambda which: column.value(model.shares[which]))
        top = drawn.pop(which)
        others: list[WhichStates] = []
        for one, values in drawn.items():
            if np.quantile(top - values, 0.025) <= 0:
                others.append(one)
        shares = model.shares[which]
        found.append(Choice(model, which, column.value(shares), column.interval(shares), others))
    return sorted(found, key=lambda choice: -choice.value)


def table(probed: Sequence[Probed], shown: Sequence[Column]) -> str:
    """Markdown, a line for each model's each hidden state; the best of a model's column is set in bold."""
    lines = []
    for model in probed:
        tops = [max(map(column.value, model.shares.values())) for column in shown]
        for which, shares in model.shares.items():
            cells = [_cell(shares, column, top) for column, top in zip(shown, tops, strict=True)]
            lines.append([model.name, written(which), *cells])
    return markdown(["language model", "hidden_states", *(column.title for column in shown)], lines)


def _cell(shares: Mapping[Key, Share], column: Column, top: float) -> str:
    value, (low, high) = column.value(shares), column.interval(shares)
    text = f"{value:.3f}"
    return f"{f'**{text}**' if value == top else text} ({low:.3f} to {high:.3f})"


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
        low, high = choice.interval
        line = f"- {choice.model.name}: {written(choice.which)}, {choice.value:.3f} ({low:.3f} to {high:.3f})"
        if choice.others:
            line += f"; not told apart from it: {', '.join(map(written, choice.others))}"
        shares = choice.model.shares
        if choice.which != LAST and LAST in shares:
            line += f'; "last" has {column.value(shares[LAST]):.3f}'
        for told in (one for one in shown if one.keys[0][0] == TOLD):
            each: dict[WhichStates, float] = {which: told.value(found) for which, found in shares.items()}
            most = max(each, key=each.__getitem__)
            line += f"; {told.title} {each[choice.which]:.3f}"
            if most != choice.which:
                line += f", most by {written(most)}, {each[most]:.3f}"
        lines.append(line + ".")
    if first.which == 0:
        lines.append("- 0 are the embeddings of single words: in them a word does not know what stands beside it.")
    return "\n".join(lines)


def page(probed: Sequence[Probed], split: Split, targets: Targets, command: str) -> str:
    shown = columns(split, targets)
    part = shown[0].keys[0][1]
    about = (
        f"{len(split.fit)} captions to solve on, {len(split.test)} others, {len(split.unseen)} with words that none "
        f"of the first has ({split.name}). Share of the variance of {KINDS[part]} that a linear map hears in the "
        f"states, with its 95 % interval over captions: of the others (seen words) and of the new words, both as soon "
        f"as after a short training (ridge penalty {SOON:g}); in the end ({LATE:g}). 1 = all, 0 = no more than the "
        "mean; below 0, what was learnt misleads."
    )
    if any(column.keys[0][0] == TOLD for column in shown):
        of = targets.meanings[STATES if part == STATES else WORD]
        about += (
            f" New words told: the share of the new words that the same map, after the short training, brings nearest "
            f"in direction to what they mean, of the {len(of.places)} words that there are (by chance "
            f"{1 / len(of.places):.3f}): it can be high where a short training brings little of the way."
        )
    took = ", ".join(f"{model.name} {model.seconds:.0f} s" for model in probed)
    parts = ["# Which language model, which hidden states", f"Written by `{command}`; {took}.", about]
    return "\n\n".join([*parts, table(probed, shown), advice(probed, shown), "![Shares by layer](probe.png)"]) + "\n"


def facts(probed: Sequence[Probed], split: Split) -> dict[str, Any]:
    """All that was measured, for programs."""

    def of(shares: Mapping[Key, Share]) -> list[dict[str, Any]]:
        return [
            {"captions": key[0], "part": key[1], "penalty": key[2], "share": share.value}
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
