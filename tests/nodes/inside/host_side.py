"""The host's own library in this process, this pack loaded into it, and what the checks share."""

# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

HOST, BASE, PACK, OUT = (os.path.abspath(path) for path in sys.argv[1:5])  # noqa: PTH100
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
os.chdir(HOST)
sys.path.insert(0, HOST)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

before = set(sys.modules)
spec = importlib.util.spec_from_file_location("hyphen-pack", f"{PACK}/__init__.py", submodule_search_locations=[PACK])
assert spec is not None and spec.loader is not None
sys.modules["hyphen-pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
node_classes = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
imported = set(sys.modules) - before

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
