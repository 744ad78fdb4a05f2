"""The authors' published weights, turned into a bridge file."""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path

from ....lavi_core.importers import read_released, released_prompt
from ....lavi_core.language import TextEncoder
from ...recipe import override_prompt
from ..diffusers_folder import read_vision

log = logging.getLogger(__name__)


def import_released(args: argparse.Namespace) -> str:
    """Write the bridge file and return its path. Raises ValueError before anything is written."""
    folder = Path(args.released)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    encoder = TextEncoder.skeleton(args.language_model)
    network, vision = read_vision(args.vision_model)
    for side in (encoder.config, vision):
        if side.fingerprint is None:
            log.info("no safetensors weights of %s were read: its fingerprint is not recorded", side.model_id)
    prompt = override_prompt(released_prompt(encoder, vision), args.prompt)
    made = {"imported": "the authors' released files", "folder": folder.resolve().name}
    checkpoint = read_released(folder, encoder, network, vision, prompt, made)
    checkpoint.config.provenance["sha256"] = _digests(folder)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(output)
    return str(output)


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of the released files, by their path in the folder."""
    names = ("lora_text.pt", "lora_vis.pt")
    files = [folder / name for name in names] + sorted((folder / "adapter").glob("diffusion_pytorch_model.*"))
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
