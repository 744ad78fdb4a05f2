"""ShapeBench: a procedural set of captioned pictures and a program that judges a picture against its prompt.

`sample_scene`, `render` and `caption` make the demo's training set (``training/data``). The honest end-to-end score is
`prompts` -> a model -> `score`, to be read beside `ceiling` and `chance`.
"""

from .bench import ASPECTS, ceiling, chance, prompts, score
from .caption import caption, words
from .judge import Verdict, judge
from .render import render
from .scene import CATEGORIES, SPLITS, Object, PromptSpec, Scene, sample_scene
from .vocabulary import GROUND, PALETTE, VOCABULARIES, Concept, Vocabulary

__all__ = [
    "ASPECTS",
    "CATEGORIES",
    "GROUND",
    "PALETTE",
    "SPLITS",
    "VOCABULARIES",
    "Concept",
    "Object",
    "PromptSpec",
    "Scene",
    "Verdict",
    "Vocabulary",
    "caption",
    "ceiling",
    "chance",
    "judge",
    "prompts",
    "render",
    "sample_scene",
    "score",
    "words",
]
