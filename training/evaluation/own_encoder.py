"""``lavi-bridge evaluate own``: the vision model's own text encoder as a bridge, the baseline of every table."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...lavi_core.checkpoint import BridgeCheckpoint
from ...lavi_core.config import AdapterConfig, BridgeConfig
from ...lavi_core.importers import released_prompt
from ...lavi_core.language import TextEncoder
from ..models.diffusers_folder import read_vision
from ..recipe import override_prompt


def own(args: argparse.Namespace) -> str:
    """Write the bridge file and return its path."""
    return str(write_own(Path(args.vision_model), Path(args.output), args.prompt))


def write_own(vision: Path, output: Path, changes: tuple[str, ...] = ()) -> Path:
    """A bridge from ``vision``/text_encoder to the network beside it, with nothing between and no LoRA: the "SD" column
    of the paper's ablations. Prompts are read as the authors read them for this kind of vision model, and ``changes``
    (KEY=VALUE). Raises ValueError for a pipeline without such an encoder, or one that the network needs more than.
    """
    if not vision.is_dir():
        raise ValueError(f"there is no folder {vision}; give that of a whole pipeline")
    folder = vision / "text_encoder"
    if not folder.is_dir():
        raise ValueError(f"{vision} has no text_encoder/, so there is no encoder of its own; give a whole pipeline")
    encoder = TextEncoder.skeleton(folder)
    _, target = read_vision(vision)
    width = encoder.config.hidden_size
    if width != target.context_width:
        raise ValueError(
            f"{folder} gives width {width}, the vision model hears {target.context_width}: it has more text encoders "
            "than this one, which no bridge can be"
        )
    adapter = AdapterConfig(kind="identity", in_width=width, inner_width=width, out_width=width)
    prompt = override_prompt(released_prompt(encoder, target), changes)
    config = BridgeConfig(
        language=encoder.config,
        prompt=prompt,
        adapter=adapter,
        vision=target,
        provenance={"own": "the vision model's own text encoder, nothing trained"},
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    BridgeCheckpoint(config, {}).save(output)
    return output
