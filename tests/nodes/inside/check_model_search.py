"""Which installed language model a bridge was made for: found without loading one, remembered, told in refusals."""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
from comfy_execution.graph import DynamicPrompt
from host_side import KINDS, MODELS, PROMPTS, bridge_, check, close, connected, language_model, node_classes, refused

checkpoint_ = importlib.import_module("hyphen-pack.lavi_core.checkpoint")
encoder_ = importlib.import_module("hyphen-pack.lavi_core.language").TextEncoder
fitting = importlib.import_module("hyphen-pack.nodes.load_with_model")
installed = importlib.import_module("hyphen-pack.nodes.model_search")


def language_of(bridge):
    return checkpoint_.read_config(MODELS / "lavi_bridges" / bridge).language


@contextmanager
def forbidden(*names):
    """Meanwhile, these ways to a TextEncoder raise AssertionError."""
    kept = {name: encoder_.__dict__[name] for name in names}

    def refuse(cls, *args, **more):
        raise AssertionError(f"{names} were not to be used")

    try:
        for name in names:
            setattr(encoder_, name, classmethod(refuse))
        yield
    finally:
        for name, method in kept.items():
            setattr(encoder_, name, method)


@contextmanager
def another_model():
    """A copy of the tiny BERT, whose weights are to be changed."""
    folder = Path(tempfile.mkdtemp(dir=MODELS / "LLM", prefix="another-"))
    shutil.copytree(MODELS / "LLM" / "tiny-bert", folder, dirs_exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@check
def each_bridge_finds_its_language_model_and_none_is_loaded():
    with forbidden("load"):
        for kind in KINDS:
            name, report = fitting.find(f"{kind}.safetensors")
            assert name == f"tiny-{kind}", (kind, name)
            assert f"tiny-{kind} (hidden 32, 2 layers" in report and "fingerprint" in report, report
        name, _ = fitting.find("packed.safetensors")
        assert name == "tiny-packed.gguf", name  # rows of its blocks are dequantised, no more


@check
def a_second_look_is_free_until_a_file_changes():
    wanted = language_of("bert.safetensors")
    with another_model() as folder:
        found = installed.search(wanted)
        assert found.fitting[0] == "tiny-bert" and folder.name in found.fitting, found.fitting
        with forbidden("skeleton"):
            assert installed.search(wanted) == found
            os.utime(folder / "model.safetensors", (1, 1))
            try:
                installed.search(wanted)
            except AssertionError:
                pass
            else:
                raise AssertionError("a changed file was not looked at")


@check
def sizes_that_differ_are_told_by_the_config_alone():
    wanted = dataclasses.replace(language_of("bert.safetensors"), hidden_size=56)
    for name in installed.models():  # lone files have none
        if name.endswith(".safetensors"):
            installed.look_at(name, wanted)
    with forbidden("skeleton", "load"):
        assert not installed.search(wanted).fitting


@check
def the_node_gives_the_bridge_and_says_why():
    node = node_classes["LaViBridgeLoadWithModel"]
    for kind in ("bert", "t5"):
        bridge, clip, report = node.execute(f"{kind}.safetensors", 0.7, "float32").args
        assert clip is bridge.clip and report.startswith(f"language model: tiny-{kind}\nwhy: "), report
        close(bridge.encode(PROMPTS[0])[0][0][0], f"{kind}.lora.0")
    key = node.fingerprint_inputs(bridge="bert.safetensors")
    assert "tiny-bert" in key and "bert.safetensors" in key and node.fingerprint_inputs() == ""


@check
def a_model_that_is_not_there_is_named_with_the_nearest():
    wanted = language_of("llama.safetensors")
    missing = dataclasses.replace(wanted, model_id="a-fine-tune", fingerprint="0" * 64)
    found = installed.search(missing)
    assert not found.fitting and "\n" not in found.report
    sizes = f"hidden 32, 2 layers, vocabulary {wanted.vocab_size}"
    for words in (
        f"a-fine-tune ({sizes}, fingerprint 000000000000)",
        "nearest is",
        "models/LLM",
        "put a-fine-tune there",
    ):
        assert words in found.report, (words, found.report)
    lone = MODELS / "LLM" / "lone-junk.safetensors"  # a broken download is passed over
    lone.write_bytes(b"")
    try:
        assert "nearest is" in installed.search(missing).report and "lone-junk" not in installed.search(missing).report
        assert installed.search(wanted).fitting
    finally:
        lone.unlink()
    with another_model() as folder:
        (folder / "model.safetensors").write_bytes(b"cut")
        assert f"nearest is {folder.name} (" in (told := installed.search(missing).report) and "cut short" in told, told
    nameless = dataclasses.replace(wanted, fingerprint=None)
    assert "records no fingerprint" in installed.search(nameless).report


@check
def a_wrong_pick_is_refused_with_the_right_one():
    words = ["made for tiny-t5", "tiny-llama", "it is installed as tiny-t5"]
    refused(words, connected, "t5", language_model("llama"))
    with forbidden("load"):
        refused(words, installed.refuse_choice, language_of("t5.safetensors"), "tiny-llama", False)
        installed.refuse_choice(language_of("t5.safetensors"), "tiny-t5", False)
        installed.refuse_choice(language_of("t5.safetensors"), "tiny-llama", True)  # of its width, and allowed
        installed.refuse_choice(language_of("t5.safetensors"), "no-tokenizer", False)  # its loader says what it lacks
    missing = dataclasses.replace(language_of("t5.safetensors"), hidden_size=56, fingerprint="0" * 64)
    with forbidden("load", "skeleton"):  # its vocabulary is not parsed for it
        refused(["hidden 56", "not among the installed"], installed.refuse_choice, missing, "tiny-llama", True)


@check
def a_search_ends_at_the_users_cancel():
    with another_model() as folder:
        comfy.model_management.interrupt_current_processing(True)
        try:
            installed.search(language_of("bert.safetensors"))
        except comfy.model_management.InterruptProcessingException:
            pass
        else:
            raise AssertionError("the cancel was not heard")
        comfy.model_management.interrupt_current_processing(True)
        try:  # of the single look, which is long where a vocabulary is
            installed.look_at(folder.name, language_of("bert.safetensors"))
        except comfy.model_management.InterruptProcessingException:
            pass
        else:
            raise AssertionError("the cancel was not heard")
        assert folder.name in installed.search(language_of("bert.safetensors")).fitting


@check
def a_pick_is_read_from_the_graph():
    loader = {"class_type": "LaViBridgeLoadLanguageModel", "inputs": {"model": "tiny-bert", "dtype": "auto"}}
    graph = {
        "1": loader,
        "2": {"class_type": "LaViBridgeLanguageLoRA", "inputs": {"language_model": ["1", 0], "strength": 1.0}},
        "3": {"class_type": "LaViBridgeLoad", "inputs": {"language_model": ["2", 0]}},
        "4": {"class_type": "Elsewhere", "inputs": {}},
        "5": {"class_type": "LaViBridgeLoad", "inputs": {"language_model": ["4", 0]}},
        "6": {"class_type": "LaViBridgeLoad", "inputs": {"language_model": ["7", 0]}},
        "7": loader | {"inputs": {"model": ["4", 0]}},
        "8": {"class_type": "Circle", "inputs": {"language_model": ["8", 0]}},
        "9": {"class_type": "LaViBridgeLoad", "inputs": {"language_model": ["10", 0]}},
        "10": loader | {"inputs": {"model": "clip_l.safetensors", "config": "tiny-bert"}},
    }
    told = {node: bridge_.picked(DynamicPrompt(graph), node) for node in ("3", "5", "6", "8", "9")}
    assert told == {"3": "tiny-bert", "5": None, "6": None, "8": None, "9": None}, told
