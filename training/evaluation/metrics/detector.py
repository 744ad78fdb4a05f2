"""Object detectors of transformers, from a local folder: the box of a named object in a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ....lavi_core.registry import Registry
from ..metric_weights import Unavailable, Weights
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
    kind: Kind

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> Detector:
        """Raises ValueError for a model of a kind that is not in ``KINDS``, Unavailable where it wants a package that
        is not installed."""
        import transformers

        folder = weights.get("detector")
        local: dict[str, Any] = {"local_files_only": True}
        kind = KINDS[transformers.AutoConfig.from_pretrained(folder, **local).model_type]
        try:
            model = getattr(transformers, kind.model).from_pretrained(folder, use_safetensors=True, **local)
            processor = getattr(transformers, kind.processor).from_pretrained(folder, **local)
        except ImportError as error:
            reason = str(error).strip().partition(". ")[0]
            raise Unavailable(
                f"the detector {folder} cannot be loaded ({reason}): install that package (timm for the published "
                "facebook/detr-resnet-50), or name a detector without it"
            ) from None
        return cls(model.float().eval().to(device), processor, name_of(folder), kind)

    def find(self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]) -> list[list[Box | None]]:
        """The surest box of each of nouns[i] in images[i], or None. Two nouns that are looked for under one name get
        the same box, as in T2I-CompBench."""
        with torch.no_grad():
            return self.kind.look(self, images, [[_asked(noun) for noun in one] for one in nouns])

    def knows(self, noun: str) -> bool:
        return self.kind.knows(self, _asked(noun))

    @property
    def resized_by(self) -> str:
        return resized_by(self)


def _asked(noun: str) -> str:
    return "person" if noun.lower() in PEOPLE else noun.lower()


def _by_label(
    detector: Detector, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]
) -> list[list[Box | None]]:
    """A closed set of labels: a noun is looked for under its own name, or its singular."""
    inputs = detector.processor(images=list(images), return_tensors="pt").to(detector.model.device)
    outputs = detector.model(**inputs)
    results = detector.processor.post_process_object_detection(outputs, LEAST, _sizes(images))
    return [
        [_surest(result, lambda i, noun=noun: _is_label(detector, i, noun)) for noun in one]
        for result, one in zip(results, nouns, strict=True)
    ]


def _by_text(
    detector: Detector, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]
) -> list[list[Box | None]]:
    """Labels in words: each noun is asked for as "a photo of a <noun>", once: of two equal texts one gets no box."""
    found = []
    for image, one in zip(images, nouns, strict=True):
        asked = list(dict.fromkeys(one))
        texts = [[f"a photo of a {noun}" for noun in asked]]
        inputs = detector.processor(text=texts, images=[image], return_tensors="pt").to(detector.model.device)
        outputs = detector.model(**inputs)
        process = detector.processor.post_process_grounded_object_detection
        result = process(outputs, threshold=LEAST, target_sizes=_sizes([image]))[0]
        surest = {noun: _surest(result, lambda i, k=k: i == k) for k, noun in enumerate(asked)}
        found.append([surest[noun] for noun in one])
    return found


def _is_label(detector: Detector, i: int, noun: str) -> bool:
    labels: Mapping[int, str] = detector.model.config.id2label
    return labels[i].lower() in (noun, _singular(noun))


def _has_label(detector: Detector, noun: str) -> bool:
    return any(_is_label(detector, i, noun) for i in detector.model.config.id2label)


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
    """model, processor: transformers' classes. knows: whether the detector can find what is called so."""

    model: str
    processor: str
    look: Callable[[Detector, Sequence[np.ndarray], Sequence[Sequence[str]]], list[list[Box | None]]]
    knows: Callable[[Detector, str], bool]


CLOSED = Kind("AutoModelForObjectDetection", "AutoImageProcessor", _by_label, _has_label)
OPEN = Kind("AutoModelForZeroShotObjectDetection", "AutoProcessor", _by_text, lambda detector, noun: True)
KINDS: Registry[Kind] = Registry(
    "kind of detector",
    {
        **dict.fromkeys(("detr", "conditional_detr", "deformable_detr", "table-transformer", "yolos"), CLOSED),
        **dict.fromkeys(("rt_detr", "rt_detr_v2"), CLOSED),
        **dict.fromkeys(("owlvit", "owlv2"), OPEN),
    },
)
