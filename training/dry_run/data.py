"""The data of a dry run: a few pictures are opened, many captions are counted in tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from ...lavi_core.language import TextEncoder
from ..data import MAX_UNREADABLE, IndexedSource, Source, UnreadableImage
from ..data.resize_and_crop import Size
from ..loop.validation import none_held_out
from ..models.pair import Pair
from ..models.progress import bar
from ..recipe import Recipe
from .report import Report

OPENED = 64  # pictures
READ = 4096  # captions and headers, of a source that has each by its index; of a tar the first OPENED
SHAPES = 4  # that are named
CUT = 0.25


def pictures(report: Report, recipe: Recipe, source: Source) -> int | None:
    """How many there are, if that is known; the first few are opened."""
    reasons, opened = [], 0
    if isinstance(source, IndexedSource):
        count = len(source)
        loads = [partial(source.image, i) for i in range(min(OPENED, count))]
    else:
        count, loads = None, [example.load for _, example in zip(range(OPENED), _examples(source), strict=False)]
    for load in loads:
        opened += 1
        try:
            load()
        except UnreadableImage as error:
            reasons.append(str(error))
    if reasons and len(reasons) == opened:
        raise ValueError(
            f"none of the first {opened} pictures can be read, such as {reasons[0]}; mend the data's paths"
        )
    found = f"{len(reasons)} of the first {opened} pictures cannot be read, such as {reasons[0]}" if reasons else ""
    if len(reasons) > MAX_UNREADABLE * opened:
        report.problems.append(f"{found}; training stops above {MAX_UNREADABLE:.0%} of them: mend or remove them")
    elif reasons:
        report.notes.append(found)
    if count is not None and recipe.data.validation >= count:
        raise ValueError(f"data.validation holds out {recipe.data.validation} of {count} pictures, none is left")
    known = f"{count:,} pictures" if count is not None else f"{len(source.shards())} tars of pictures"
    if recipe.validation.every and not recipe.data.validation:
        report.problems.append(str(none_held_out(recipe)))
    trained = 0 if count is None else count - recipe.data.validation
    seen = f", each seen {_count(recipe.steps * recipe.batch_size / trained)} times" if trained else ""
    report.add("data", f"{recipe.data.kind}: {known} of {recipe.data.resolution} pixels{seen}; {opened} opened")
    return count


def shapes(report: Report, recipe: Recipe, source: Source) -> None:
    """What becomes of the pictures' own shapes, by the headers of at most ``READ`` of them."""
    if not isinstance(source, IndexedSource):
        return
    found, unreadable, looked = [], [], range(0, len(source), -(-len(source) // READ))
    for index in bar(looked, desc="shapes", leave=False):
        try:
            shape = source.shape(index)
        except UnreadableImage as error:
            unreadable += [str(error)] if index >= OPENED else []  # the first are told of by ``pictures``
            continue
        if shape is None:
            return
        found.append((source.name(index), *shape))
    if unreadable:
        told = f"{len(unreadable)} of {len(looked)} pictures have no header that can be read, such as {unreadable[0]}"
        many = len(unreadable) > MAX_UNREADABLE * len(looked)
        rest = f"; training stops above {MAX_UNREADABLE:.0%} of them: mend or remove them"
        (report.problems if many else report.notes).append(told + (rest if many else ""))
    if not found:
        return
    counts = Counter(target for _, _, target in found)
    most = ", ".join(f"{w} x {h} ({count:,})" for (h, w), count in counts.most_common(SHAPES))
    others = f", and {len(counts) - SHAPES} more" if len(counts) > SHAPES else ""
    report.add("  shapes", f"{most}{others}, of {len(found):,} pictures")
    small = [(name, own, to) for name, own, to in found if own.height < to.height or own.width < to.width]
    if small:
        report.notes.append(f"{len(small)} of {len(found)} pictures are enlarged, such as {_becomes(*small[0])}")
    cut = [(name, own, to) for name, own, to in found if _kept(own, to) < 1 - CUT]
    if cut:
        worst = min(cut, key=lambda row: _kept(*row[1:]))
        way = "" if recipe.data.buckets else "; data.buckets = true keeps their shapes"
        report.notes.append(
            f"{len(cut)} of {len(found)} pictures lose more than {CUT:.0%} of themselves at their edges, the most "
            f"{_becomes(*worst)}{way}"
        )


def _kept(own: Size, to: Size) -> float:
    """The share of a picture that is left when it is scaled to cover a shape and cropped to it."""
    scale = max(to.height / own.height, to.width / own.width)
    return to.height * to.width / (scale**2 * own.height * own.width)


def _becomes(name: str, own: Size, to: Size) -> str:
    return f"{name} ({own.width} x {own.height} to {to.width} x {to.height})"


def captions(report: Report, recipe: Recipe, source: Source, encoder: TextEncoder) -> int:
    """The tokens of the longest caption, with what the recipe puts around it, up to max_length."""
    captions = _captions(source)
    if empty := sum(not caption.strip() for caption in captions):
        report.notes.append(f"{empty} of {len(captions)} captions are empty: they are trained on as the empty prompt")
    reports = []
    for start in bar(range(0, len(captions), 256), desc="captions", leave=False):
        reports += encoder.tokenize(captions[start : start + 256], recipe.prompt).reports
    longest = max(found.used + found.cut for found in reports)
    cut = [caption for caption, found in zip(captions, reports, strict=True) if found.cut]
    limit = recipe.prompt.max_length
    report.add("captions", f"{len(captions):,} read, the longest {longest} tokens of prompt.max_length {limit}")
    if cut:
        report.notes.append(
            f"{len(cut)} of {len(captions)} captions are cut to {limit} tokens, such as {cut[0][:80]!r}"
        )
    return limit if recipe.prompt.padding == "max_length" else min(longest, limit)


def queries(report: Report, pair: Pair, source: Source) -> None:
    """Of an adapter that asks: with how much of the longest caption, and what is cut."""
    if (tokenizer := pair.queries) is None:
        return
    captions = _captions(source)
    count = max(len(tokenizer.read(caption)) + tokenizer.count_cut(caption) for caption in captions)
    report.add("  queries", f"the longest caption has {count} {tokenizer.unit}")
    cut = [caption for caption in captions if tokenizer.count_cut(caption)]
    if cut:
        report.notes.append(
            f"{len(cut)} of {len(captions)} captions are cut to the {tokenizer.longest} {tokenizer.unit} "
            f"that the bridge asks with, such as {cut[0][:80]!r}"
        )


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def heard(recipe: Recipe, source: Source | None, count: int | None) -> int | None:
    """How many different captions the language model may be asked for; None = not known. count: of pictures."""
    if source is None or count is None or not isinstance(source, IndexedSource):
        return count
    if source.captions(0) is None:
        return recipe.steps * recipe.batch_size
    return sum(len(source.captions(index) or ()) for index in range(count))


def _captions(source: Source) -> list[str]:
    if isinstance(source, IndexedSource):
        step = max(1, len(source) // READ)
        return [text for i in range(0, len(source), step) for text in source.captions(i) or [source.caption(i, 0)]]
    found = (example.caption for _, example in zip(range(OPENED), _examples(source), strict=False))
    return [caption for caption in found if caption is not None]


def _examples(source: Source) -> Iterable[Any]:
    return (example for shard in source.shards() for example in shard.read())
