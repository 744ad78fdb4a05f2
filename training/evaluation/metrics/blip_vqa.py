"""BLIP-VQA of T2I-CompBench (arXiv 2307.06350, sec. 4.1): does the picture show each thing that the prompt names?"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metric_weights import Weights
from ..noun_phrases import splitter
from ..run_folder import Picture, batches
from .clip import name_of, resized_by
from .metric import Measurement, MetricInputs

SIZE = 480  # of the pictures that T2I-CompBench shows to BLIP; the positions are interpolated
MOST_PHRASES = 8
UNHEARD = re.compile(r'[.!"()*#:;~]')  # BLIP's pre_question strips these (T2I-CompBench, BLIPvqa_eval/data/utils.py)


@dataclass(frozen=True)
class Blip:
    """Salesforce's BLIP for visual questions, from a local folder."""

    model: Any
    processor: Any
    tokenizer: Any
    name: str

    @classmethod
    def load(cls, weights: Weights, device: torch.device) -> Blip:
        from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

        folder = weights.get("blip-vqa")
        local: dict[str, Any] = {"local_files_only": True}
        model: Any = BlipForQuestionAnswering.from_pretrained(folder, use_safetensors=True, **local)
        processor = AutoImageProcessor.from_pretrained(folder, **local)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        return cls(model.float().eval().to(device), processor, tokenizer, name_of(folder))

    @torch.no_grad()
    def see(self, images: Sequence[np.ndarray]) -> Tensor:
        """Pictures -> what the questions attend to [B N D]."""
        size = {"height": SIZE, "width": SIZE}
        pixels = self.processor(images=list(images), size=size, return_tensors="pt")["pixel_values"]
        return self.model.vision_model(pixels.to(self.model.device), interpolate_pos_encoding=True)[0]

    @torch.no_grad()
    def yes(self, seen: Tensor, question: str) -> float:
        """P(yes) / (P(yes) + P(no)) of the answer's first token, for a question about one picture, seen [1 N D].

        As in BLIP's own code the question's first token is [ENC], the one after [DEC] that begins an answer. Questions
        are asked one at a time: transformers' decoder attends to their padding, whatever its mask says (5.23).
        """
        device, start = self.model.device, self.model.config.text_config.bos_token_id
        ids = self.tokenizer([question], return_tensors="pt")["input_ids"].to(device)
        ids[:, 0] = start + 1
        asked = self.model.text_encoder(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state
        logits = self.model.text_decoder(
            input_ids=torch.full((1, 1), start, device=device),
            encoder_hidden_states=asked,
            encoder_attention_mask=torch.ones_like(ids),
        ).logits[0, -1]
        return float(logits[self._ids("yes", "no")].float().softmax(-1)[0])

    def _ids(self, *words: str) -> list[int]:
        found = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        if any(len(ids) != 1 for ids in found):
            raise ValueError(f"the tokenizer of {self.name} does not know yes and no as words: take BLIP's own")
        return [ids[0] for ids in found]


def question(phrase: str) -> str:
    return UNHEARD.sub("", f"{phrase}?".lower())


def blip_vqa(pictures: Sequence[Picture], inputs: MetricInputs) -> Measurement:
    """The product over the prompt's noun phrases (at most 8) of P(yes) to "<phrase>?"; 1 where it has none, as in
    T2I-CompBench."""
    blip, split = Blip.load(inputs.weights, inputs.device), splitter(inputs.weights)
    values, details = {}, {}
    for batch, images in batches(pictures, inputs.batch_size, "BLIP-VQA"):
        seen = blip.see(images)
        for i, picture in enumerate(batch):
            phrases = split.phrases(picture.prompt)[:MOST_PHRASES]
            found = {phrase: blip.yes(seen[i : i + 1], question(phrase)) for phrase in phrases}
            values[picture.id] = math.prod(found[phrase] for phrase in phrases)
            details[picture.id] = found
    settings = {
        "model": blip.name,
        "phrases": split.name,
        "prompts_without_phrase": len({picture.prompt for picture in pictures if not details[picture.id]}),
        "size": SIZE,
        "resized_by": resized_by(blip),
    }
    suffix = "" if split.name != "rules" else "phrases by rules"
    return Measurement(values=values, settings=settings, suffix=suffix, details=details)
