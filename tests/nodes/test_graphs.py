"""Graphs on a running host: the whole way from a prompt to a picture, and every stock node on that way."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from lavi_bridge.tests.nodes.base_folder import SAMPLED
from lavi_bridge.tests.nodes.graphs import CHECKPOINTS, PIXART, encoders, node, picture


def ran(outcome):
    assert not outcome.error, outcome.error
    return outcome


def test_a_prompt_becomes_a_picture(server):
    image = ran(server.run(picture())).images[0]
    assert image.shape == (128, 128, 3)
    assert image.float().std() > 1


STOCK = CHECKPOINTS | {"pixart": PIXART}  # where not a folder for our own loader


@pytest.mark.parametrize("name", SAMPLED)
def test_the_standalone_sampler_gives_the_same_latents(server, expected, name):
    """A mask there is dropped padding here; a prompt and the empty prompt then differ in length. The host takes this
    PixArt for another, with other latents."""
    case = SAMPLED[name]
    graph = {"vision": STOCK.get(name, case.vision), "bridge": f"{case.bridge}.safetensors"}
    graph |= {"side": case.side, "steps": case.steps}
    latents = ran(server.run(picture(**graph))).latents[0]
    assert (latents - expected[f"sampled.{name}"]).abs().max() < 1e-3 * max(1.0, latents.abs().max())
    assert (ran(server.run(picture(seed=8, **graph))).latents[0] - latents).abs().max() > 0.1


def test_both_loaders_of_pixart_give_the_same_latents(server):
    """One is mistaken about the model, the other not; the bridge says it to both."""
    graph = {"bridge": "pixart.safetensors", "side": 40, "steps": 2}
    stock, ours = (ran(server.run(picture(vision=v, **graph))).latents[0] for v in (PIXART, "tiny-pixart"))
    assert (stock - ours).abs().max() < 1e-3 * ours.abs().max()
    plain = picture(vision=PIXART, **graph)
    plain["sampler"]["inputs"]["model"] = ["vision", 0]
    without = ran(server.run(plain)).latents[0]
    assert without.norm() / stock.norm() == pytest.approx(0.18215 / 0.13025, rel=0.05)


def test_the_stock_text_encoder_gives_the_same_picture(server):
    ours = ran(server.run(picture())).images[0]
    stock = ran(server.run(picture(stock=True))).images[0]
    assert torch.equal(ours, stock)


def test_both_loras_show(server):
    with_both = ran(server.run(picture())).latents[0]
    for changed in (picture(strength=0.0), picture(language_lora=0.0)):
        assert (ran(server.run(changed)).latents[0] - with_both).abs().max() > 1e-3
    assert torch.equal(ran(server.run(picture())).latents[0], with_both)


@pytest.mark.parametrize(
    "mix",
    [
        node("ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["negative", 0]),
        node(
            "ConditioningAverage",
            conditioning_to=["positive", 0],
            conditioning_from=["negative", 0],
            conditioning_to_strength=0.5,
        ),
        node("ConditioningConcat", conditioning_to=["positive", 0], conditioning_from=["negative", 0]),
        node("ConditioningSetArea", conditioning=["positive", 0], width=64, height=64, x=0, y=0, strength=1.0),
    ],
    ids=lambda mix: mix["class_type"],
)
def test_conditioning_nodes_take_ours(server, mix):
    plain = ran(server.run(picture())).latents[0]
    mixed = ran(server.run(picture(positive="mix") | {"mix": mix})).latents[0]
    assert mixed.isfinite().all() and (mixed - plain).abs().max() > 1e-4


def test_the_report_tells_what_was_cut(server):
    graph = encoders() | {"report": node("PreviewAny", source=["positive", 1])}
    (report,) = ran(server.run(graph)).texts
    assert "tokens" in report and "padding" in report
    graph["positive"]["inputs"]["text"] = "two elephants in the forest " * 5
    (report,) = ran(server.run(graph)).texts
    assert "were cut off" in report and "forest" in report


def test_the_lora_node_and_a_bridge_agree(server):
    graph = picture(language="tiny-llama", bridge="llama.safetensors", language_lora=0.7)
    direct = ran(server.run(graph)).latents[0]
    for source in ("peft-llama", "llama.safetensors"):
        graph["patched"] = node("LaViBridgeLanguageLoRA", language_model=["language", 0], lora=source, strength=0.7)
        graph["bridge"]["inputs"] |= {"language_model": ["patched", 0], "language_lora": 0.0}
        assert (ran(server.run(graph)).latents[0] - direct).abs().max() < 1e-4


def test_the_stock_lora_loader_reads_a_bridge_file(server):
    ours = ran(server.run(picture(strength=0.8))).latents[0]
    graph = picture()
    graph["bridged"] = node(
        "LoraLoaderModelOnly", model=["vision", 0], lora_name="a-bridge.safetensors", strength_model=0.8
    )
    assert (ran(server.run(graph)).latents[0] - ours).abs().max() < 1e-4


def test_a_file_that_changes_is_read_again(server, base):
    bridges = base / "models" / "lavi_bridges"
    shutil.copy(bridges / "bert.safetensors", bridges / "changing.safetensors")
    first = ran(server.run(picture(bridge="changing.safetensors"))).latents[0]
    shutil.copy(bridges / "masked.safetensors", bridges / "changing.safetensors")
    os.utime(bridges / "changing.safetensors", ns=(1, 1))
    second = ran(server.run(picture(bridge="changing.safetensors"))).latents[0]
    assert (first - second).abs().max() > 1e-4
    (bridges / "changing.safetensors").unlink()


@pytest.mark.parametrize("bridge", ["flow.safetensors", "timed-flow.safetensors"])
def test_the_hosts_trainer_of_loras_trains_on_a_bridges_prompt(server, bridge):
    """It walks through all that a conditioning holds."""
    asked = server.get("/object_info/TrainLoraNode")["TrainLoraNode"]["input"]["required"]
    given = {name: default_of(*kind) for name, kind in asked.items()}
    given |= {"steps": 2, "rank": 2, "training_dtype": "fp32", "lora_dtype": "fp32", "existing_lora": "[None]"}
    given |= {"model": ["bridged", 0], "latents": ["empty", 0], "positive": ["positive", 0], "bucket_mode": False}
    graph = picture(bridge=bridge, vision="tiny-flow") | {
        "trained": node("TrainLoraNode", **{name: given[name] for name in asked})
    }
    count = server.get("/object_info/TrainLoraNode")["TrainLoraNode"]["output"].index("INT")
    graph["report"] = node("PreviewAny", source=["trained", count])
    for name in ("sampler", "latents", "decode", "save", "vae"):
        del graph[name]
    outcome = server.run(graph)
    assert not outcome.error, outcome.error


def default_of(kind, more=None):
    options = kind if isinstance(kind, list) else (more or {}).get("options") or [None]
    return (more or {}).get("default", options[0])
