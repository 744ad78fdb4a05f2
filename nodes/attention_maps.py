"""Bridge Attention Maps: a heatmap for each word of the prompt, bright where the picture attends to it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from .attention_recorder import AttentionMaps
from .cache_signature import upstream_signatures
from .schema import AttentionWire, schema

PANEL, STRIP, GAP = 256, 34, 12  # pixels: the shorter side of a panel at least, the height of its label, between panels
COLUMNS = (4, 5, 3)  # the first of them that leaves fewest places empty
# matplotlib's "inferno" (CC0) at eighths, dark to bright
INFERNO = (
    (0.001, 0.000, 0.014),
    (0.123, 0.047, 0.283),
    (0.342, 0.062, 0.429),
    (0.556, 0.129, 0.412),
    (0.736, 0.216, 0.330),
    (0.889, 0.350, 0.198),
    (0.978, 0.558, 0.035),
    (0.968, 0.803, 0.172),
    (0.988, 0.998, 0.645),
)
SCALES = ("each word", "all words")
MEASURES = ("attention", "share")


def select(words: list[tuple[str, list[int]]], wanted: str) -> list[tuple[str, list[int]]]:
    """Of the words of a prompt those that are ``wanted``, by words or phrases with commas between; "" = all.

    Raises ValueError for one that the vision model did not hear.
    """
    phrases = [phrase.split() for phrase in wanted.split(",") if phrase.strip()]
    if not phrases:
        return words
    heard, found = [word.lower() for word, _ in words], []
    for phrase in phrases:
        lower, length = [word.lower() for word in phrase], len(phrase)
        at = next((i for i in range(len(heard)) if heard[i : i + length] == lower), None)
        if at is None:
            prompt = " ".join(word for word, _ in words)
            raise ValueError(f"{' '.join(phrase)!r} is not in the prompt as the vision model heard it: {prompt}")
        found.append((" ".join(phrase), [i for _, tokens in words[at : at + length] for i in tokens]))
    return found


def word_maps(
    attention: AttentionMaps, wanted: str, measure: str, nodes: list[str] | None = None
) -> tuple[list[str], Tensor]:
    """Labels, and [B W H W'] float32: the attention that each word gets at each place or, for the measure "share", its
    share of the attention to all words there, which special tokens and padding do not drown. nodes: see
    ``AttentionMaps.maps``. Raises ValueError."""
    maps, every = attention.maps(nodes), attention.tokens.words()
    if not every:
        raise ValueError("the watched prompt has no words; watch another conditioning")
    words = select(every, wanted)
    found = torch.stack([maps[:, tokens].sum(1) for _, tokens in words], dim=1)
    if measure == "share":
        found = found / maps[:, [i for _, tokens in every for i in tokens]].sum(1, keepdim=True)
    return [word for word, _ in words], found


def normalised(maps: Tensor, scale: str) -> Tensor:
    """Each map, or all of a picture together, from 0 to 1. [B W H W']"""
    over = (-2, -1) if scale == "each word" else (-3, -2, -1)
    low, high = maps.amin(over, keepdim=True), maps.amax(over, keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-8)


def coloured(heat: Tensor) -> Tensor:
    """[H W] from 0 to 1 -> [H W 3]"""
    palette = torch.tensor(INFERNO)
    at = heat.clamp(0, 1) * (len(palette) - 1)
    low = at.floor().long().clamp(max=len(palette) - 2)
    return torch.lerp(palette[low], palette[low + 1], (at - low)[..., None])


def over(picture: Tensor, heat: Tensor) -> Tensor:
    """The heat over the darkened picture, and a line around what is above half of it. [H W 3], [H W] -> [H W 3]"""
    grey = (picture @ torch.tensor([0.299, 0.587, 0.114]))[..., None]
    shown = torch.lerp(0.45 * torch.lerp(grey, picture, 0.5), coloured(heat), 0.2 + 0.45 * heat[..., None])
    hot = (heat > 0.5).float()[None]
    line = F.max_pool2d(hot, 3, stride=1, padding=1)[0] - hot[0]
    return torch.where(line[..., None] > 0, torch.ones(3), shown)


def sheet(picture: Tensor, labels: list[str], heats: Tensor) -> Tensor:
    """The picture, and it again under the heat of each word. [H W 3], [W H W] -> [H' W' 3]"""
    height, width = (round(side * max(1.0, PANEL / min(picture.shape[:2]))) for side in picture.shape[:2])
    picture = _resized(picture.movedim(-1, 0), height, width).movedim(0, -1)
    panels = [picture, *(over(picture, heat) for heat in _resized(heats, height, width))]
    columns = min(COLUMNS, key=lambda count: -len(panels) % count) if len(panels) > max(COLUMNS) else len(panels)
    rows = math.ceil(len(panels) / columns)
    canvas = torch.ones(rows * (height + STRIP) + (rows + 1) * GAP, columns * width + (columns + 1) * GAP, 3)
    places = [
        (GAP + row * (height + STRIP + GAP), GAP + column * (width + GAP))
        for row in range(rows)
        for column in range(columns)
    ][: len(panels)]
    for (top, left), panel in zip(places, panels, strict=True):
        canvas[top + STRIP : top + STRIP + height, left : left + width] = panel
    return _labelled(
        canvas, [(left, top, text) for (top, left), text in zip(places, ["picture", *labels], strict=True)], width
    )


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(maps[None].float(), (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _labelled(canvas: Tensor, labels: list[tuple[int, int, str]], width: int) -> Tensor:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray((canvas * 255).round().to(torch.uint8).numpy())
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=22)
    for left, top, text in labels:
        while text and draw.textlength(text, font=font) > width:
            text = text[:-2] + "…" if len(text) > 2 else ""
        draw.text((left, top + 2), text, fill=(20, 20, 20), font=font)
    return torch.from_numpy(np.asarray(image).copy()).float() / 255


class BridgeAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LaViBridgeAttentionMaps",
            display_name="Bridge Attention Maps (LaVi-Bridge)",
            description="Draws which word of the prompt drives which region: the picture once more for each word, "
            "bright where the model listened to it.",
            search_aliases=["cross attention", "attention map", "daam", "heatmap", "see prompt", "explain"],
            inputs=[
                io.Image.Input("images", tooltip="The decoded pictures of the watched sampler."),
                AttentionWire.Input("attention", tooltip="From Watch Attention."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases of the prompt to draw, with commas between. Empty: every word.",
                ),
                io.Combo.Input(
                    "measure",
                    options=list(MEASURES),
                    default="attention",
                    tooltip="attention: as the model computes it, of which special tokens and padding take their part. "
                    "share: of the attention to all words, how much goes to this one, place by place.",
                ),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    default="each word",
                    tooltip="each word: every map reaches from dark to bright. all words: one scale for all, so that "
                    "words that drive little stay dark.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="One sheet for each picture."),
                io.Mask.Output(
                    display_name="maps",
                    tooltip="The maps themselves, from 0 to 1, at the pictures' size: all words of the first picture, "
                    "then of the next.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, attention: Any, words: str, measure: str, scale: str) -> io.NodeOutput:
        return io.NodeOutput(*draw(images, attention, words, measure, scale, upstream_signatures("images")))


def draw(
    images: Tensor,
    attention: AttentionMaps,
    words: str,
    measure: str,
    scale: str,
    nodes: list[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sheets [B H' W' 3] and maps [B*W H W'] of pictures [B H W' 3] that these ``nodes`` made. Raises ValueError."""
    labels, maps = word_maps(attention, words, measure, nodes)
    if len(maps) != len(images):
        raise ValueError(
            f"the watched sampler made {len(maps)} pictures, {len(images)} were given: connect the decoded pictures of "
            "that sampler"
        )
    heats = normalised(maps, scale)
    pictures = images[..., :3].float().cpu()
    sheets = [sheet(picture, labels, heat) for picture, heat in zip(pictures, heats, strict=True)]
    return torch.stack(sheets), _resized(heats.flatten(0, 1), *images.shape[1:3])
