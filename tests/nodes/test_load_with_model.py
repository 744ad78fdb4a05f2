"""Language models wherever a user keeps them: found for a bridge, refused before loading, taken from a stock loader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lavi_bridge.lavi_core.language import TextEncoder
from lavi_bridge.tests.nodes.graphs import encoders, node, picture
from lavi_bridge.tests.nodes.host import Place, Server
from lavi_bridge.tests.nodes.tiny import bridge
from safetensors.torch import save_file

# A key of extra_model_paths.yaml -> the tiny model that lies there.
KEYS = {"LLM": "tiny-bert", "llm": "tiny-t5", "text_encoders": "tiny-gpt2", "clip": "tiny-llama"}


def test_a_wrong_pick_is_refused_before_it_is_loaded(server: Server):
    graph = encoders(language="tiny-llama", bridge="t5.safetensors") | {
        "look": node("PreviewAny", source=["positive", 1])
    }
    error = server.run(graph).error
    assert error.endswith("; it is installed as tiny-t5"), error
    last = max(server.get("/history").values(), key=lambda entry: entry["prompt"][0])
    (told,) = [message for kind, message in last["status"]["messages"] if kind == "execution_error"]
    assert told["node_id"] == "bridge" and told["executed"] == [], told


def test_a_bridge_brings_its_language_model(server: Server):
    """The same picture as with a language model that was picked."""
    picked, found = picture(bridge="t5.safetensors", language="tiny-t5"), picture(bridge="t5.safetensors")
    del found["language"]
    found["bridge"] = node("LaViBridgeLoadWithModel", bridge="t5.safetensors", language_lora=0.7, dtype="auto")
    found["report"] = node("PreviewAny", source=["bridge", 2])
    one, other = server.run(picked), server.run(found)
    assert not one.error and not other.error, (one.error, other.error)
    assert torch.equal(one.latents[0], other.latents[0])
    assert other.texts[0].startswith("language model: tiny-t5\nwhy: "), other.texts


@pytest.fixture(scope="module")
def clip_l(place: Place, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP-L of its true size and random weights, as a Hugging Face folder, as the file that stock
    loaders take, and a bridge to it."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    config = hf.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="quick_gelu",
    )
    with torch.device("meta"):
        model = hf.CLIPTextModel(config)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        draw = torch.ones if "norm" in name and name.endswith("weight") else torch.zeros
        tensor = torch.randn(parameter.shape) * 0.03 if parameter.ndim > 1 else draw(parameter.shape)
        state[f"text_model.{name.removeprefix('text_model.')}"] = tensor.half()
    (folder / "clip-l").mkdir()
    save_file(state, folder / "clip_l.safetensors", {"format": "pt"})
    (folder / "clip-l" / "model.safetensors").symlink_to(folder / "clip_l.safetensors")
    config.save_pretrained(folder / "clip-l")
    hf.AutoTokenizer.from_pretrained(place.path / "comfy" / "sd1_tokenizer").save_pretrained(folder / "clip-l")
    return folder


@pytest.fixture(scope="module")
def elsewhere(place: Place, base: Path, clip_l: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A host without a model of its own, told by an extra_model_paths.yaml where a user keeps them."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    other, own = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("own")
    for kind, name in KEYS.items():
        (other / kind.swapcase()).mkdir()  # no name that the host looks for by itself
        (other / kind.swapcase() / name).symlink_to(base / "models" / "LLM" / name)
    for path in clip_l.iterdir():
        (other / "CLIP" / path.name).symlink_to(path)
    (other / "bridges").mkdir()
    for path in (base / "models" / "lavi_bridges").glob("*.safetensors"):
        (other / "bridges" / path.name).symlink_to(path)
    vision = UNet2DConditionModel.from_pretrained(base / "models" / "diffusers" / "tiny-flow" / "unet")
    encoder = TextEncoder.load(clip_l / "clip-l", dtype=torch.float32)
    bridge(other / "bridges" / "clip-l.safetensors", encoder, vision, vision_mask=True)
    paths: dict[str, Any] = {kind: f"{kind.swapcase()}/" for kind in KEYS}
    paths |= {"base_path": str(other), "lavi_bridges": "bridges/", "diffusers": str(base / "models" / "diffusers")}
    (other / "extra_model_paths.yaml").write_text(yaml.safe_dump({"mine": paths}))
    running = Server(place, own, "--extra-model-paths-config", str(other / "extra_model_paths.yaml"))
    yield running
    running.stop()


def test_models_are_found_in_each_kind_of_the_users_folders(elsewhere: Server):
    inputs = elsewhere.get("/object_info/LaViBridgeLoadLanguageModel")["LaViBridgeLoadLanguageModel"]["input"]
    assert set(KEYS.values()) <= set(inputs["required"]["model"][1].get("options") or inputs["required"]["model"][0])
    for name in KEYS.values():
        graph = {
            "bridge": node(
                "LaViBridgeLoadWithModel",
                bridge=f"{name.removeprefix('tiny-')}.safetensors",
                language_lora=1.0,
                dtype="auto",
            )
        }
        told = elsewhere.run(graph | {"look": node("PreviewAny", source=["bridge", 2])})
        assert not told.error and told.texts[0].startswith(f"language model: {name}\n"), told


def test_a_stock_clip_loader_brings_a_bridge_its_language_model(elsewhere: Server):
    """What Load Language Model gives with the same weights, the bridge's LoRA off and on."""
    options = {"language": "clip-l", "bridge": "clip-l.safetensors"}
    for strength, tolerance in ((0.0, 1e-3), (1.0, 2e-2)):  # the host rounds a LoRA with its float16 weights
        usual = picture(language_lora=strength, **options)
        for name in ("vae", "decode", "save"):
            del usual[name]
        graph = dict(usual)
        graph["clip"] = node("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")
        graph["language"] = node("LaViBridgeLanguageModelFromCLIP", clip=["clip", 0], encoder="auto")
        ours, theirs = elsewhere.run(graph), elsewhere.run(usual)
        assert not ours.error and not theirs.error, (ours.error, theirs.error)
        off = (ours.latents[0] - theirs.latents[0]).abs().max().item()
        assert off <= tolerance * theirs.latents[0].abs().max().item(), (strength, off)
