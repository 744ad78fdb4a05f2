"""The metrics: what each needs and how it measures a run."""

from ....lavi_core.registry import Registry
from .aesthetic import aesthetic_v1, aesthetic_v2
from .blip_vqa import blip_vqa
from .clip import clip_score
from .complex import three_in_one
from .fid import fid
from .metric import Measurement, Metric, MetricInputs
from .shapebench import shapes
from .spatial import spatial

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "fid": Metric(measure=fid, source="arXiv 1706.08500"),
        "aesthetic-v1": Metric(measure=aesthetic_v1, source="LAION-AI/aesthetic-predictor"),
        "aesthetic-v2": Metric(measure=aesthetic_v2, source="christophschuhmann/improved-aesthetic-predictor"),
        "clip-score": Metric(measure=clip_score, source="arXiv 2104.08718"),
        "blip-vqa": Metric(
            measure=blip_vqa, source="arXiv 2307.06350", categories=("color", "shape", "texture", "complex")
        ),
        "spatial": Metric(measure=spatial, source="arXiv 2307.06350", categories=("spatial",)),
        "3-in-1": Metric(measure=three_in_one, source="arXiv 2307.06350", categories=("complex",)),
        "shapes": Metric(measure=shapes, source="training/shapebench/judge.py"),
    },
)

__all__ = ["METRICS", "Measurement", "Metric", "MetricInputs"]
