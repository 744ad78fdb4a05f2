"""What it takes alignment to bring a caption's words together with the teacher's, CPU milliseconds a caption.

python tests/benchmarks/word_matching.py T5_TOKENIZER CLIP_TOKENIZER     (two folders; OMP_NUM_THREADS=1)
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import as_package  # noqa: F401
from lavi_bridge.training.loop.word_places import matches, places
from transformers import AutoTokenizer

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "old",
    "red",
    "house",
    "beside",
    "quiet",
    "river",
    "with",
    "tall",
    "green",
    "trees",
    "under",
    "cloudy",
    "sky",
    "painted",
    "by",
    "someone",
    "yesterday",
    "morning",
    "in",
    "light",
]
CAPTIONS = 300


def main(ours: str, theirs: str) -> None:
    first, second = (AutoTokenizer.from_pretrained(folder, local_files_only=True) for folder in (ours, theirs))
    chosen = random.Random(0)
    for words, length in ((20, 77), (55, 77), (150, 512), (300, 512)):
        captions = [" ".join(chosen.choices(WORDS, k=words)) for _ in range(CAPTIONS)]
        began = time.process_time()
        for caption in captions:
            matches(caption, caption, places(first, caption, length), places(second, caption, length), "padding")
        print(f"{words:3} words, {length} tokens: {1000 * (time.process_time() - began) / CAPTIONS:.1f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:3])
