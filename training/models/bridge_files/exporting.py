"""Parts of a bridge in the files that other programs read: peft, LoRA loaders, the authors' scripts, other projects."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ....lavi_core import lora
from ....lavi_core.bridge import check_language
from ....lavi_core.checkpoint import BridgeCheckpoint
from ....lavi_core.exporters import read_by, to_foreign, to_peft, to_released, write_gguf
from ....lavi_core.files import write_bytes, write_safetensors, write_text
from ....lavi_core.importers import FOREIGN, released_prompt
from ....lavi_core.language import TextEncoder
from ....lavi_core.registry import Registry
from ....lavi_core.vision import VISION_TARGETS
from ....lavi_core.vision.keys import lora_tensors
from .. import named
from ..diffusers_folder import read_vision

log = logging.getLogger(__name__)

Files = Mapping[str, Callable[[Path], object]]  # path in the folder -> what writes it; "" = the export is one file


def export(args: argparse.Namespace) -> str:
    """Write the export whole or not at all and return its path. Raises ValueError before anything is written."""
    target = Path(args.output)
    files = FORMATS[args.format](BridgeCheckpoint.load(args.bridge), args)
    _check_target(target, files, args.overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    if "" in files:
        files[""](target)
    else:
        _write_folder(target, files)
    return str(target)


def peft_files(checkpoint: BridgeCheckpoint, args: argparse.Namespace) -> Files:
    """The language LoRA as ``PeftModel.from_pretrained`` loads it onto the plain transformers model."""
    if not checkpoint.language_lora:
        raise ValueError(f"{args.bridge} has no language LoRA, so there is nothing for peft")
    config, state = to_peft(checkpoint.language_lora)
    config["base_model_name_or_path"] = checkpoint.config.language.model_id
    if args.language_model is not None:
        folder = named.language(args.language_model)
        encoder = TextEncoder.skeleton(folder)
        check_language(checkpoint.config.language, encoder.config)
        lora.check(encoder.model, checkpoint.language_lora)
        config["base_model_name_or_path"] = str(folder)
        kind = type(encoder.model)
        config["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return {
        "adapter_config.json": lambda path: write_text(path, json.dumps(config, indent=2)),
        "adapter_model.safetensors": lambda path: write_safetensors(path, state, {"format": "pt"}),
    }


def lora_files(checkpoint: BridgeCheckpoint, args: argparse.Namespace) -> Files:
    """The vision LoRA in one file of ComfyUI's key names, and nothing else: its loader warns of any other tensor."""
    if not checkpoint.vision_lora:
        raise ValueError(f"{args.bridge} has no vision LoRA, so there is nothing for a LoRA loader")
    if Path(args.output).suffix != ".safetensors":
        raise ValueError(f"a LoRA file's name ends in .safetensors, or ComfyUI does not list it; got {args.output}")
    vision = checkpoint.config.vision
    tensors = lora_tensors(checkpoint.vision_lora, VISION_TARGETS[vision.target].keys)
    made_for = {"format": "pt", "lavi_bridge_vision": json.dumps(asdict(vision))}
    return {"": lambda path: write_safetensors(path, tensors, made_for)}


def released_files(checkpoint: BridgeCheckpoint, args: argparse.Namespace) -> Files:
    """The folder that the authors' own scripts load."""
    for name in ("language_model", "vision_model"):
        if getattr(args, name) is None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"the authors' lists are in the order of the model's modules, so {option} is needed")
    if checkpoint.config.own_encoder is not None:
        raise ValueError(
            f"{args.bridge} is heard beside the vision model's own encoder, which the authors' scripts do not know: "
            "export a bridge that was trained without [own_encoder]"
        )
    encoder = TextEncoder.skeleton(named.language(args.language_model))
    check_language(checkpoint.config.language, encoder.config)
    network, vision = read_vision(named.vision(args.vision_model))
    wanted = checkpoint.config.vision
    if wanted.fingerprint and vision.fingerprint and wanted.fingerprint != vision.fingerprint:
        raise ValueError(
            f"{args.bridge} was made for {wanted.model_id}, {args.vision_model} has other weights: give the former"
        )
    released = to_released(checkpoint, encoder, network)
    theirs, ours = asdict(released_prompt(encoder, vision)), asdict(checkpoint.config.prompt)
    for key in (key for key in ours if ours[key] != theirs[key]):
        log.warning(
            "the authors' scripts turn prompts into tokens with %s = %r, this bridge was trained with %r, which their "
            "layout does not record",
            key,
            theirs[key],
            ours[key],
        )
    return {
        "adapter/config.json": lambda path: write_text(path, json.dumps(released.adapter_config, indent=2)),
        "adapter/diffusion_pytorch_model.safetensors": lambda path: write_safetensors(
            path, released.adapter, {"format": "pt"}
        ),
        "lora_text.pt": lambda path: _write_list(path, released.language),
        "lora_vis.pt": lambda path: _write_list(path, released.vision),
    }


def foreign_files(checkpoint: BridgeCheckpoint, args: argparse.Namespace) -> Files:
    """The adapter alone, by the names of a row of ``FOREIGN``."""
    row = FOREIGN[args.format]
    suffix = ".safetensors" if row.gguf is None else ".gguf"
    if Path(args.output).suffix != suffix:
        raise ValueError(f"{args.format} is a format of {suffix} files; got {args.output}")
    tensors, made = to_foreign(checkpoint, args.format), checkpoint.config.provenance
    made = made.get("started_from", made)
    presets = read_by(checkpoint, args.format)
    fitting = [one for one in presets.values() if one.fits(checkpoint.config.adapter) and not one.if_named]
    preset = presets.get(str(made.get("preset")), next(iter(fitting), None))
    if preset is not None:
        theirs, ours = asdict(preset.prompt), asdict(checkpoint.config.prompt)
        for key in (key for key in ours if ours[key] != theirs[key] and key not in ("max_length", "padding_side")):
            log.warning(
                "that project turns prompts into tokens with %s = %r, this bridge has %r, which the file does not say",
                key,
                theirs[key],
                ours[key],
            )
    if row.gguf is None:
        return {"": lambda path: write_safetensors(path, tensors, {"format": "pt"})}
    header, named_so = row.gguf(checkpoint.config.adapter), {f"{row.prefixes[0]}{k}": t for k, t in tensors.items()}
    return {"": lambda path: write_gguf(path, named_so, header)}


FORMATS: Registry[Callable[[BridgeCheckpoint, argparse.Namespace], Files]] = Registry(
    "export format",
    {"peft": peft_files, "lora": lora_files, "released": released_files} | dict.fromkeys(FOREIGN, foreign_files),
)


def _write_list(path: Path, tensors: list[torch.Tensor]) -> None:
    """A pickle, which nothing else here writes: the authors' scripts read no other."""
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_bytes(path, buffer.getvalue())


def _check_target(target: Path, files: Files, overwrite: bool) -> None:
    """Refuse to replace what is there, unless asked to, and always where it is no earlier export of this format."""
    if not target.exists():
        return
    if not overwrite:
        raise ValueError(f"{target} is there already; take another output, or add --overwrite")
    if target.is_dir() != ("" not in files):
        kind, other = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise ValueError(f"{target} is a {kind}, this export is a {other}; take another output")
    if target.is_dir():
        found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir())
        odd = [name for name in found if name not in files]
        if odd:
            raise ValueError(f"{target} holds {odd[0]}, which no such export writes; take another output")


def _write_folder(target: Path, files: Files) -> None:
    part, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        for name, write in files.items():
            write(part / name)
        if target.exists():
            target.rename(old)
        try:
            part.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
