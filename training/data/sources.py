"""Sources of captioned pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np

from ..recipe import DataSection

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class UnreadableImage(ValueError):
    """One picture cannot be read; the message names it and says why."""


class Source(Protocol):
    """Captioned pictures by index. ``fingerprint`` changes when any picture may have changed."""

    fingerprint: str
    resolution: int

    def __init__(self, section: DataSection): ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def image(self, index: int) -> np.ndarray:
        """uint8 [resolution resolution 3]; raises UnreadableImage."""
        ...

    def caption(self, index: int, epoch: int) -> str: ...

    def plain_caption(self, index: int, epoch: int) -> str:
        """The same in words that the vision model's own text encoder knows; the caption itself if that is unknown."""
        ...


class _Files:
    """Image files with one caption each, turned upright as their EXIF says, scaled by their short side (bilinear) and
    cropped to the centre.
    """

    def __init__(self, section: DataSection, pairs: list[tuple[Path, str]], where: Path):
        if not pairs:
            raise ValueError(f"no captioned images in {where}")
        self.pairs = pairs
        self.resolution = section.resolution
        digest = hashlib.sha256(str(section.resolution).encode())
        for path, _ in pairs:
            stat = path.stat() if path.is_file() else None
            digest.update(f"{path}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def caption(self, index: int, epoch: int) -> str:
        return self.pairs[index][1]

    plain_caption = caption

    def image(self, index: int) -> np.ndarray:
        from PIL import Image, ImageOps

        path, side = self.pairs[index][0], self.resolution
        try:
            with Image.open(path) as file:
                upright = ImageOps.exif_transpose(file).convert("RGB")
                return np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever a broken file leads them to
            raise UnreadableImage(f"{path}: {error or type(error).__name__}") from None


class TsvSource(_Files):
    """The authors' format: ``image path<TAB>caption`` a line, relative paths from the file's folder. A caption keeps
    its own tabs; an empty line is skipped, one without a tab is an error.
    """

    def __init__(self, section: DataSection):
        table = Path(section.path)
        if not table.is_file():
            raise ValueError(f"there is no table of captions at {table}")
        pairs = []
        with table.open(encoding="utf-8-sig") as lines:  # str.splitlines would also split at U+2028 and the like
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                path, tab, caption = line.rstrip("\n").partition("\t")
                if not tab:
                    raise ValueError(f"{table} line {number} has no tab between image path and caption: {line[:80]!r}")
                pairs.append((table.parent / path, caption.strip()))
        super().__init__(section, pairs, table)


class FolderSource(_Files):
    """Every image below a folder that has a .txt of the same name beside it. An image without one is an error."""

    def __init__(self, section: DataSection):
        folder = Path(section.path)
        if not folder.is_dir():
            raise ValueError(f"there is no folder of images at {folder}")
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        bare = [p for p in images if not p.with_suffix(".txt").is_file()]
        if bare:
            raise ValueError(f"{len(bare)} of {len(images)} images have no .txt beside them, the first is {bare[0]}")
        texts = [(p, p.with_suffix(".txt").read_text(encoding="utf-8-sig").strip()) for p in images]
        super().__init__(section, texts, folder)


class ShapeBenchSource:
    """``count`` pictures of ShapeBench. A picture depends on (seed, index) alone; it is captioned anew each epoch."""

    def __init__(self, section: DataSection):
        from ..shapebench import CATEGORIES, VOCABULARIES

        if section.count < 1:
            raise ValueError(f"data.count is the number of ShapeBench pictures to draw, got {section.count}")
        self.section, self.resolution = section, section.resolution
        self.vocabulary = VOCABULARIES[section.vocabulary]
        mix = section.mix or dict.fromkeys(CATEGORIES, 1.0)
        unknown = set(mix) - set(CATEGORIES)
        if unknown:
            raise ValueError(f"data.mix names {sorted(unknown)}; the categories are {', '.join(CATEGORIES)}")
        self.categories = list(mix)
        self.weights = np.array([mix[c] for c in self.categories]) / sum(mix.values())
        facts = [section.seed, self.vocabulary.name, section.resolution, sorted(mix.items()), "shapebench-1"]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return self.section.count

    def name(self, index: int) -> str:
        return f"ShapeBench {self.section.vocabulary} seed {self.section.seed} picture {index}"

    def scene(self, index: int):
        from ..shapebench import sample_scene

        rng = np.random.default_rng([self.section.seed, index])
        category = self.categories[int(rng.choice(len(self.categories), p=self.weights))]
        return sample_scene(rng, category, self.vocabulary, "train")

    def image(self, index: int) -> np.ndarray:
        from ..shapebench import render

        return render(self.scene(index), self.section.resolution)

    def caption(self, index: int, epoch: int) -> str:
        return self._caption(index, epoch, "train")

    def plain_caption(self, index: int, epoch: int) -> str:
        return self._caption(index, epoch, "test")

    def _caption(self, index: int, epoch: int, split: str) -> str:
        from ..shapebench import caption

        # The frame is drawn first, so that both kinds of caption share it.
        rng = np.random.default_rng([self.section.seed, index, 1, epoch])
        return caption(self.scene(index), rng, split, vocabulary=self.vocabulary)
