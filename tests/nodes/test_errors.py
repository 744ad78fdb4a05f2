"""Every mistake a user can make is answered by one sentence that names both sides or the way out."""

from __future__ import annotations

import pytest
from lavi_bridge.tests.nodes.graphs import CHECKPOINTS, encoders, node, picture

MISTAKES = {
    "another language model": (picture(language="tiny-llama"), ["tiny-bert", "tiny-llama", "made for"]),
    "another vision model": (picture(bridge="wide.safetensors"), ["tiny-wide", "40", "24"]),
    "a Llama for a bridge of a T5": (
        picture(language="tiny-llama", bridge="t5.safetensors"),
        ["tiny-t5", "tiny-llama"],
    ),
    "a bridge to Stable Diffusion 1 on SDXL": (
        picture(vision=CHECKPOINTS["sdxl"], bridge="sd1.safetensors"),
        ["tiny-sd1", "768", "SDXL", "2048"],
    ),
    "a bridge without a pooled vector on SDXL": (
        picture(vision=CHECKPOINTS["sdxl"], bridge="unpooled.safetensors"),
        ["tiny-sdxl", "no pooled vector", "SDXL", "1280"],
    ),
    "a bridge to PixArt on another model of its width": (
        picture(
            vision=node("UNETLoader", unet_name="tiny-sd3.safetensors", weight_dtype="default"),
            bridge="pixart.safetensors",
        ),
        ["tiny-pixart", "4096", "SD3"],
    ),
    "LoRA sites that are not there": (picture(vision="tiny-velocity"), ["LoRA sites", "tiny-flow"]),
    "no bridge of that name": (picture(bridge="absent.safetensors"), ["absent.safetensors", "lavi_bridges"]),
    "no language model of that name": (picture(language="absent"), ["absent", "LLM"]),
    "no vision model of that name": (picture(vision="absent"), ["absent", "diffusers"]),
    "a bridge cut short": (picture(bridge="truncated.safetensors"), ["truncated.safetensors", "cut short"]),
    "a language model without tokenizer": (picture(language="no-tokenizer"), ["no-tokenizer", "tokenizer"]),
    "a name outside the folders": (picture(bridge="../vae/tiny-taesd.safetensors"), ["inside", "lavi_bridges"]),
    "an absolute name": (picture(language="/etc"), ["inside", "LLM"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_clear_sentence(server, mistake):
    graph, words = MISTAKES[mistake]
    error = server.run(graph).error
    assert error and all(word in error for word in words), error
    assert "\n" not in error and "Traceback" not in error, error


def test_a_lora_of_another_model(server):
    graph = encoders() | {
        "patched": node("LaViBridgeLanguageLoRA", language_model=["language", 0], lora="peft-llama", strength=1.0)
    }
    graph["bridge"]["inputs"]["language_model"] = ["patched", 0]
    graph["look"] = node("PreviewAny", source=["positive", 1])
    error = server.run(graph).error
    assert all(word in error for word in ("tiny-bert", "layers.0.self_attn", "no such module")), error
