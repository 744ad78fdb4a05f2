"""A grid of pictures with captions, as one PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np

MARGIN, LINE, LINES = 8, 15, 6
PAPER, INK = (250, 250, 248), (30, 30, 34)


def png(images: np.ndarray, captions: Sequence[str], columns: int | None = None) -> bytes:
    """Pictures uint8 [B H W 3], each above its caption, as one PNG."""
    import textwrap

    from PIL import Image, ImageDraw, ImageFont

    count, height, width, _ = images.shape
    font = ImageFont.load_default(size=11)
    across = columns or min(count, max(1, math.ceil(math.sqrt(count * 1.6))))
    letters = max(8, int(width / 5.6))
    texts = [textwrap.wrap(c, letters, max_lines=LINES, placeholder=" \u2026") or ['""'] for c in captions]
    below = LINE * max(map(len, texts)) + 4
    rows = math.ceil(count / across)
    step_x, step_y = width + MARGIN, height + below + MARGIN
    sheet = Image.new("RGB", (across * step_x + MARGIN, rows * step_y + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        x, y = MARGIN + (i % across) * step_x, MARGIN + (i // across) * step_y
        sheet.paste(Image.fromarray(image), (x, y))
        for k, line in enumerate(lines):
            pen.text((x, y + height + 3 + LINE * k), line, font=font, fill=INK)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
