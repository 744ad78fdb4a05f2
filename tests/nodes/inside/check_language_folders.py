"""What the host's user is told of a language model's folder: what is missing, and what lies beside the weights."""

# pyright: reportMissingImports=false

from __future__ import annotations

from host_side import MODELS, Lines, check, folders, node_classes, refused


@check
def what_is_missing_of_the_demo_names_the_command_that_brings_it():
    language = ("language model", "SmolLM2-135M-Instruct.Q4_1.gguf", *folders.LANGUAGE)
    refused(["no language model", "python install_demo.py --smollm2,"], folders.resolve, *language)
    refused(["python install_demo.py,"], folders.resolve, "bridge", "lavi_demo_gone.safetensors", folders.BRIDGES)
    refused(["put it there, train it or"], folders.resolve, "bridge", "lavi_bridge.safetensors", folders.BRIDGES)


@check
def a_config_beside_a_folder_is_told_to_do_nothing():
    loader = node_classes["LaViBridgeLoadLanguageModel"]
    with Lines("config does nothing here: tiny-bert is a folder") as lines:
        loader.execute("tiny-bert", "float32")
        assert not lines
        found = loader.execute("tiny-bert", "float32", "tiny-t5").args[0]
    assert len(lines) == 1 and found.encoder.family.name == "bert"


@check
def a_lora_beside_the_weights_of_a_folder_is_told_to_be_left():
    loader = node_classes["LaViBridgeLoadLanguageModel"]
    beside = MODELS / "LLM" / "tiny-bert" / "adapter_config.json"
    beside.write_text("{}")
    try:
        with Lines("tiny-bert holds a LoRA (adapter_config.json) beside") as lines:
            loader.execute("tiny-bert", "float32")
    finally:
        beside.unlink()
    assert len(lines) == 1
