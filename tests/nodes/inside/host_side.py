"""The host's own library in this process, this pack loaded into it, and what the checks share."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path

import torch
from host_library import BASE, HOST, OUT, PACK, comfy, imported, node_classes  # noqa: F401
from safetensors.torch import load_file

bridge_ = importlib.import_module("hyphen-pack.nodes.bridge")
folders = importlib.import_module("hyphen-pack.nodes.folders")
language_ = importlib.import_module("hyphen-pack.nodes.language")
unet_ = importlib.import_module("hyphen-pack.nodes.vision_model.unet")
pixart_ = importlib.import_module("hyphen-pack.nodes.vision_model.pixart")
scheduler_ = importlib.import_module("hyphen-pack.nodes.vision_model.scheduler")
vision_model_ = importlib.import_module("hyphen-pack.nodes.vision_model")
vision_ = importlib.import_module("hyphen-pack.nodes.vision")

MODELS = Path(BASE) / "models"
PROMPTS = json.loads((Path(BASE) / "prompts.json").read_text())
EXPECTED = load_file(f"{BASE}/expected.safetensors")
KINDS = ("bert", "llama", "gemma", "gpt2", "t5")
CHECKS = {}


class NotHere(Exception):
    """What a check needs beside the host is missing: it is skipped, with this reason."""


class Lines(logging.Handler):
    """The warnings while it is open that have a word in them, those of this pack by default."""

    def __init__(self, word="LaVi-Bridge"):
        super().__init__()
        self.word = word
        self.lines = []

    def emit(self, record):
        if self.word in record.getMessage():
            self.lines.append(record.getMessage())

    def __enter__(self):
        logging.getLogger().addHandler(self)
        return self.lines

    def __exit__(self, *_):
        logging.getLogger().removeHandler(self)


def check(function):
    CHECKS[function.__name__] = function
    return function


def vision_targets():
    return importlib.import_module("hyphen-pack.lavi_core.vision").VISION_TARGETS


def refused(words, function, *args):
    """Whether this is refused, in one sentence that has the words."""
    try:
        function(*args)
    except ValueError as error:
        assert all(word in str(error) for word in words) and "\n" not in str(error), error
    else:
        raise AssertionError(f"{args} was taken")


def close(ours, name, tolerance=1e-5):
    assert ours.shape == EXPECTED[name].shape, (name, ours.shape, EXPECTED[name].shape)
    difference = (ours.float() - EXPECTED[name]).abs().max().item()
    assert difference <= tolerance, f"{name}: differs by {difference:.3g}, sized {EXPECTED[name].abs().max():.3g}"


def distance(ours, name):
    return (ours.float() - EXPECTED[name]).norm().item()


def language_model(kind, dtype=None):
    return language_.LanguageModel.load(MODELS / "LLM" / f"tiny-{kind}", dtype)


def connected(kind, model=None, strength=0.7):
    return bridge_.ConnectedBridge.load(f"{kind}.safetensors", model or language_model(kind), strength, False)


def context(bridge, i=0):
    return bridge.encode(PROMPTS[i])[0][0][0]


def partly(patcher):
    """Load with a budget of one byte: every module that can stay where it is does."""
    comfy.model_management.unload_all_models()
    patcher.partially_load(patcher.load_device, 1)
    assert patcher.model.model_lowvram


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
