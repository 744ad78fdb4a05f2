"""Object detectors of transformers, from a local folder: where in a picture is the thing called so?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ....lavi_core.registry import Registry
from ..weights import Weights
from .clip import name_of, resized_by

LEAST = 0.05  # of confidence
PEOPLE = {"girl", "boy", "man", "woman"}  # T2I-CompBench looks for these as "person"


class Box(NamedTuple):
    """Corners in pixels, and how sure the detector is."""

    left: float
    top: float
    right: float
    bottom: float
    confidence: float


@dataclass(frozen=True)
class Detector:
    model: Any
    processor: Any
    name: str
    look: Callable[[Detector, Sequence[np.ndarray], Sequence[Sequence[str]]], list[list[Box | None]]]

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> Detector:
        """Raises ValueError for a model of a kind that is not in ``KINDS``."""
        import transformers

        folder = weights.get("detector")
        local: dict[str, Any] = {"local_files_only": True}
        kind = transformers.AutoConfig.from_pretrained(folder, **local).model_type
        row = KINDS[kind]
        model = getattr(transformers, row.model).from_pretrained(folder, use_safetensors=True, **local)
        processor = getattr(transformers, row.processor).from_pretrained(folder, **local)
        return cls(model.float().eval().to(device), processor, name_of(folder), row.look)

    def find(self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]) -> list[list[Box | None]]:
        """The surest box of each of nouns[i] in images[i], or None."""
        asked = [["person" if noun.lower() in PEOPLE else noun.lower() for noun in one] for one in nouns]
        with torch.no_grad():
            return self.look(self, images, asked)

    @property
    def resized_by(self) -> str:
        return resized_by(self)


def _by_label(
    detector: Detector, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]
) -> list[list[Box | None]]:
    """A closed set of labels: a noun is looked for under its own name, or its singular."""
    inputs = detector.processor(images=list(images), return_tensors="pt").to(detector.model.device)
    outputs = detector.model(**inputs)
    results = detector.processor.post_process_object_detection(outputs, LEAST, _sizes(images))
    labels: Mapping[int, str] = detector.model.config.id2label
    return [
        [_surest(result, lambda i, noun=noun: labels[i].lower() in (noun, _singular(noun))) for noun in one]
        for result, one in zip(results, nouns, strict=True)
    ]


def _by_text(
    detector: Detector, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]
) -> list[list[Box | None]]:
    """Labels in words: each noun is asked for as "a photo of a <noun>"."""
    found = []
    for image, one in zip(images, nouns, strict=True):
        texts = [[f"a photo of a {noun}" for noun in one]]
        inputs = detector.processor(text=texts, images=[image], return_tensors="pt").to(detector.model.device)
        outputs = detector.model(**inputs)
        process = detector.processor.post_process_grounded_object_detection
        result = process(outputs, threshold=LEAST, target_sizes=_sizes([image]))[0]
        found.append([_surest(result, lambda i, k=k: i == k) for k in range(len(one))])
    return found


def _sizes(images: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    return [(image.shape[0], image.shape[1]) for image in images]


def _surest(result: Mapping[str, Any], fits: Callable[[int], bool]) -> Box | None:
    boxes = [
        Box(*corners, confidence=confidence)
        for corners, confidence, label in zip(
            result["boxes"].tolist(), result["scores"].tolist(), result["labels"].tolist(), strict=True
        )
        if fits(label)
    ]
    return max(boxes, key=lambda box: box.confidence, default=None)


def _singular(noun: str) -> str:
    return noun.removesuffix("es") if noun.endswith(("ches", "shes", "xes", "sses")) else noun.removesuffix("s")


@dataclass(frozen=True)
class Kind:
    """model, processor: transformers' classes."""

    model: str
    processor: str
    look: Callable[[Detector, Sequence[np.ndarray], Sequence[Sequence[str]]], list[list[Box | None]]]


CLOSED = Kind("AutoModelForObjectDetection", "AutoImageProcessor", _by_label)
OPEN = Kind("AutoModelForZeroShotObjectDetection", "AutoProcessor", _by_text)
KINDS: Registry[Kind] = Registry(
    "kind of detector",
    {
        **dict.fromkeys(("detr", "conditional_detr", "deformable_detr", "table-transformer", "yolos"), CLOSED),
        **dict.fromkeys(("rt_detr", "rt_detr_v2"), CLOSED),
        **dict.fromkeys(("owlvit", "owlv2"), OPEN),
    },
)
