"""AnimaT5Free's conditioner: Qwen3.5-2B to Anima's network, without T5. In its text encoder's file, or alone.

Names and text path as in its code at commit 872b753 (t5free_te.py, modeling_anima_t5free.py). What prompts are cut by
lies beside the tensors, as the bytes of JSON files. F128, another text path of that project, is keys and values inside
the network, and no part of this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from ..config import AdapterConfig
from ..language.row_cutter import UNREADABLE, Settings
from ..prompt import PromptRecipe
from .anima import vision
from .dialect import Dialect, Preset, Shapes
from .key_map import key_map

KEYS = key_map(
    ("ridge", "c0.W"),
    ("mean", "c0.m"),
    ("spread", "c0.s"),
    ("constants", "c0.mu_table"),
    ("penalty", "c0.lam"),
    ("examples", "c0.n_train"),
    ("segmenter.*", "segmenter.*"),
    ("proj_in.*", "refiner.inp.*"),
    ("blocks.#.norm1.*", "refiner.blocks.#.ln1.*"),
    ("blocks.#.norm2.*", "refiner.blocks.#.ln2.*"),
    ("blocks.#.to_q.weight", "refiner.blocks.#.q.weight"),
    ("blocks.#.to_k.weight", "refiner.blocks.#.k.weight"),
    ("blocks.#.to_v.weight", "refiner.blocks.#.v.weight"),
    ("blocks.#.to_out.weight", "refiner.blocks.#.o.weight"),
    ("blocks.#.mlp.*", "refiner.blocks.#.mlp.*"),
    ("proj_out.*", "refiner.out.*"),
)

PRESETS = {
    "anima-t5free": Preset(
        source="AnimaT5FreeTEModel and AnimaT5FreeModel of Disya123/ComfyUI-AnimaT5Free @872b753, its mode t5free: the "
        "prompt alone, uncut, the states 16 and 22 side by side, their means over rows that a lexicon and a small "
        "network cut; zeros for the empty prompt, and up to 512 rows",
        model_id="Qwen/Qwen3.5-2B-Base",
        family="",
        in_width=None,
        prompt=PromptRecipe(
            max_length=5120, padding="longest", language_mask=True, vision_mask=True, hidden_states=(16, 22)
        ),
        heads=8,
    )
}


def _told(preset: Preset, texts: Mapping[str, str]) -> Preset:
    """With the heads and layers of the file's own config. Raises ValueError for one that cannot be read."""
    try:
        said = Settings.read(json.loads(texts["config"]))
    except UNREADABLE as error:
        raise ValueError(f"the config of AnimaT5Free's conditioner is not readable ({error}); fetch it again") from None
    return replace(preset, heads=said.heads, prompt=replace(preset.prompt, hidden_states=said.layers))


def _adapter(shapes: Shapes, heads: int | None) -> AdapterConfig:
    heard, out = shapes["c0.W"]
    return AdapterConfig(
        kind="row_refiner",
        in_width=heard,
        inner_width=shapes["refiner.out.weight"][1],
        out_width=out,
        vocabulary=shapes["c0.mu_table"][0],
        depth=shapes.count("refiner.blocks."),
        heads=heads,
    )


ANIMA_T5FREE = Dialect(
    what="AnimaT5Free's conditioner",
    signs=("c0.W", "c0.mu_table", "segmenter.emb.weight", "refiner.inp.weight"),
    adapter=_adapter,
    keys=KEYS,
    prefixes=("conditioner.",),
    texts={"config": "t5free_config_bytes", "lexicon": "t5free_lexicon_bytes"},
    told=_told,
    presets=PRESETS,
    vision=vision,
)
