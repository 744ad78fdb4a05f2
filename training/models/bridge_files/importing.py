"""Published weights, the authors' and other projects', turned into a bridge file."""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Any

from ....lavi_core.checkpoint import BridgeCheckpoint
from ....lavi_core.importers import FOREIGN, read_foreign, read_foreign_config, read_released, released_prompt
from ....lavi_core.language import TextEncoder
from ...recipe import override_prompt
from .. import named
from ..diffusers_folder import read_vision

log = logging.getLogger(__name__)


def import_source(args: argparse.Namespace) -> str:
    """Write the bridge file and return its path. Raises ValueError before anything is written."""
    source = Path(args.source)
    encoder = TextEncoder.skeleton(named.language(args.language_model))
    checkpoint = _foreign(source, encoder, args) if source.is_file() else _released(source, encoder, args)
    config = checkpoint.config
    for side in (config.language, config.vision) if args.vision_model else (config.language,):
        if side.fingerprint is None:
            log.info("no safetensors weights of %s were read: its fingerprint is not recorded", side.model_id)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(output)
    return str(output)


def _foreign(file: Path, encoder: TextEncoder, args: argparse.Namespace) -> BridgeCheckpoint:
    known: dict[str, Any] = {"preset": args.preset, "encoder": encoder, "heads": args.heads}
    config = read_foreign_config(file, **known)
    vision = None
    if args.vision_model is not None:
        pooled = config.adapter.pooled_width or config.vision.other_pooled
        vision = read_vision(named.vision(args.vision_model), pooled)[1]
    given = [pair.partition("=")[0].strip() for pair in args.prompt]
    prompt = vars(override_prompt(config.prompt, args.prompt))
    changed = {key: prompt[key] for key in given}
    checkpoint = read_foreign(file, **known, vision=vision, prompt=changed, query_tokenizer=args.query_tokenizer)
    made = checkpoint.config.provenance
    made["sha256"] = {file.name: _digest(file)}
    preset = FOREIGN[made["format"]].presets[made["preset"]]
    log.info("%s, text path %r: %s", made["imported"], made["preset"], preset.source)
    if preset.family not in ("", encoder.family.name):
        log.warning(
            "%s was published for %s (%s), %s is of another family (%s): only its width was checked",
            file,
            preset.model_id,
            preset.family,
            encoder.config.model_id,
            encoder.family.name,
        )
    return checkpoint


def _released(folder: Path, encoder: TextEncoder, args: argparse.Namespace) -> BridgeCheckpoint:
    if not folder.is_dir():
        raise ValueError(f"there is no folder and no file {folder}")
    for option in ("preset", "heads", "query_tokenizer"):
        if getattr(args, option) is not None:
            name = f"--{option.replace('_', '-')}"
            raise ValueError(f"{name} is of other projects' files, {folder} is a folder of the authors': leave it out")
    if args.vision_model is None:
        raise ValueError("the authors' LoRA lists are in the order of the vision model's modules: give --vision-model")
    network, vision = read_vision(args.vision_model)
    prompt = override_prompt(released_prompt(encoder, vision), args.prompt)
    made = {"imported": "the authors' released files", "folder": folder.resolve().name}
    checkpoint = read_released(folder, encoder, network, vision, prompt, made)
    names = ("lora_text.pt", "lora_vis.pt")
    files = [folder / name for name in names] + sorted((folder / "adapter").glob("diffusion_pytorch_model.*"))
    checkpoint.config.provenance["sha256"] = {f.relative_to(folder).as_posix(): _digest(f) for f in files}
    return checkpoint


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
