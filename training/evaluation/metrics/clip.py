"""CLIP: embeddings of pictures and texts, and the CLIP score (arXiv 2104.08718) as a plain cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..metric_weights import Weights
from ..run_folder import Picture, batches
from .metric import Measurement, MetricInputs

LENGTH = 77  # tokens that CLIP hears, its two marks included


@dataclass(frozen=True)
class Clip:
    """A CLIP from a local folder. images, texts: to rows of unit length [B P] float32 on the CPU."""

    model: Any
    processor: Any
    tokenizer: Any
    name: str

    @classmethod
    def load(cls, weights: Weights, role: str, device: torch.device) -> Clip:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        folder = weights.get(role)
        local: dict[str, Any] = {"local_files_only": True}
        model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, **local)
        processor = AutoImageProcessor.from_pretrained(folder, **local)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        return cls(model.float().eval().to(device), processor, tokenizer, name_of(folder))

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        seen = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(seen).float(), dim=-1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokens(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        text_of = self.model.text_model(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
        ).pooler_output
        return F.normalize(self.model.text_projection(text_of).float(), dim=-1).cpu()

    @property
    def length(self) -> int:
        return min(LENGTH, self.model.config.text_config.max_position_embeddings)

    def is_cut(self, text: str) -> bool:
        return len(self._tokens(text)["input_ids"]) > self.length

    def _tokens(self, texts: Any, **options: Any) -> Any:
        return self.tokenizer(texts, **options)


def clip_score(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """The cosine of picture and prompt by OpenAI's ViT-B/32, neither scaled nor clipped: of that size are the paper's
    CLIP scores (0.31 to 0.32) and T2I-CompBench's non-spatial score."""
    clip = Clip.load(inputs.weights, "clip-b32", inputs.device)
    values = cosines(clip, pictures, [picture.prompt for picture in pictures], inputs.batch_size)
    return Measurement(values=values, settings=settings_of(clip, [picture.prompt for picture in pictures]))


def settings_of(clip: Clip, texts: Sequence[str]) -> dict[str, Any]:
    """Of cosines with ``texts``."""
    return {
        "model": clip.name,
        "scale": 1,
        "tokens": clip.length,
        "prompts_cut": sum(map(clip.is_cut, set(texts))),
        "resized_by": resized_by(clip),
    }


def cosines(clip: Clip, pictures: Sequence[Picture], texts: Sequence[str], batch_size: int) -> dict[int, float]:
    """Picture id -> its cosine with the text at its place."""
    text_of = dict(zip((picture.id for picture in pictures), texts, strict=True))
    values = {}
    for batch, images in batches(pictures, batch_size, "CLIP score"):
        alike = (clip.images(images) * clip.texts([text_of[picture.id] for picture in batch])).sum(-1)
        values |= {picture.id: value for picture, value in zip(batch, alike.tolist(), strict=True)}
    return values


def resized_by(holder: Any) -> str:
    """Which code resized the pictures; PIL's and torchvision's bicubic differ in the last bits."""
    return type(holder.processor).__name__


def name_of(folder: Path) -> str:
    """What a model folder's config calls itself, and the folder's name."""
    return folder.resolve().name
