"""ShapeBench's judge: a program that needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ...shapebench import ASPECTS, VOCABULARIES, ceiling, chance, judge
from ..metric_weights import Inapplicable
from ..run_folder import Picture, batches
from ..shapebench_captions import BY_CATEGORY, spec_of
from .metric import Measurement, MetricInputs

BOUND_PROMPTS = 200  # of which ceiling and chance are taken


def shapes(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """1 where all that the prompt names holds. Of the pictures whose prompt is a caption of ShapeBench; settings hold
    the judge's score of true pictures (ceiling) and of good pictures of other prompts (chance), by category."""
    specs = {picture.id: spec for picture in pictures if (spec := spec_of(picture.prompt)) is not None}
    ours = [picture for picture in pictures if picture.id in specs]
    if not ours:
        raise Inapplicable("no prompt of the run is a caption of ShapeBench; make such with `evaluate prompts`")
    values, details = {}, {}
    for batch, images in batches(ours, inputs.batch_size, "judge"):
        for picture, image in zip(batch, images, strict=True):
            verdict = judge(image, specs[picture.id])
            values[picture.id] = float(verdict.correct)
            details[picture.id] = {name: getattr(verdict, name) for name in ASPECTS} | {
                "found": [asdict(thing) for thing in verdict.found]
            }
    named = {(color, shape) for spec in specs.values() for color, shape, _ in spec.objects}
    vocabulary = next(v for v in VOCABULARIES.values() if named <= set(v.pairs))
    rows = sorted({picture.category for picture in ours} & set(BY_CATEGORY))
    settings = {"vocabulary": vocabulary.name, "ceiling": {}, "chance": {}}
    for category, row in ((name, BY_CATEGORY[name]) for name in rows):
        for key, bound in (("ceiling", ceiling), ("chance", chance)):
            settings[key][category] = bound(row.category, BOUND_PROMPTS, 1, vocabulary, row.split)["correct"]
    return Measurement(values=values, settings=settings, details=details)
