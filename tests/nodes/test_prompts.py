"""Prompts as people write them, through a running host: switches of Bridge Text Encode."""

from __future__ import annotations

import pytest
import torch
from lavi_bridge.tests.nodes.graphs import encoders, node, picture


def told(graph, **inputs):
    graph["positive"]["inputs"] |= inputs
    return graph


def latents(server, **inputs):
    outcome = server.run(told(picture(steps=2), **inputs))
    assert not outcome.error, outcome.error
    return outcome.latents[0]


def report(server, **inputs):
    outcome = server.run(told(encoders(), **inputs) | {"report": node("PreviewAny", source=["positive", 1])})
    assert not outcome.error, outcome.error
    return outcome.texts[0]


def test_weights_are_a_switch(server):
    plain = latents(server, text="a red circle")
    off = latents(server, text="a (red:1.5) circle")
    on = latents(server, text="a (red:1.5) circle", weights=True)
    assert not torch.equal(off, plain) and not torch.equal(on, plain) and not torch.equal(on, off)
    assert torch.equal(latents(server, text="a (red:1.0) circle", weights=True), plain)


def test_pieces_of_a_long_prompt_reach_the_sampler_beside_a_short_negative(server):
    text = "a red circle left of a blue square BREAK two elephants in the forest"
    assert not torch.equal(latents(server, text=text, long_prompts="chunk"), latents(server, text=text))
    assert " pieces, " in report(server, text=text, long_prompts="chunk")
    assert "were cut off" in report(server, text=text)


def test_the_report_shows_the_template(server):
    assert "'{prompt}, best quality'" in report(server, text="a")
    assert "'see {prompt}'" in report(server, text="a", template="see {prompt}")


@pytest.mark.parametrize("template", ["no place for it", "{prompt} {prompt}"])
def test_a_template_without_one_place_for_the_prompt_is_refused(server, template):
    error = server.run(told(picture(), template=template)).error
    assert "{prompt} exactly once" in error and template in error and "\n" not in error, error


@pytest.mark.parametrize("weight", ["nan", "1e999"])
def test_a_weight_that_is_no_number_is_refused(server, weight):
    error = server.run(told(picture(), text=f"a (red:{weight}) circle", weights=True)).error
    assert "the weight of 'red' in the prompt is" in error and "take a number such as 1.2" in error, error


def test_random_choices_are_the_front_ends(server):
    """It fills in {a|b} before a graph is queued; here braces mean nothing."""
    info = server.get("/object_info/LaViBridgeTextEncode")["LaViBridgeTextEncode"]["input"]
    assert info["required"]["text"][1]["dynamicPrompts"] is True
    assert info["optional"]["template"][1]["advanced"] is True
    assert not torch.equal(latents(server, text="a {red|blue} circle"), latents(server, text="a red circle"))


def test_a_bridge_that_hears_the_timestep_draws_through_a_graph_and_misses_apply_bridge(server):
    """Its pictures change with the prompt; a graph without the node that puts its tokens in is told so."""
    told = "timed-flow.safetensors gives another context at each timestep, and the sampler hears one of them alone"
    graphs = [picture(bridge="timed-flow.safetensors", steps=2, positive=side) for side in ("positive", "negative")]
    outcomes = [server.run(graph) for graph in graphs]
    assert not any(outcome.error for outcome in outcomes), [outcome.error for outcome in outcomes]
    assert not torch.equal(outcomes[0].latents[0], outcomes[1].latents[0])
    assert told not in server.log()
    without = encoders(bridge="timed-flow.safetensors", language_lora=0.5)
    outcome = server.run(without | {"report": node("PreviewAny", source=["positive", 1])})
    assert not outcome.error and told in server.log()


def test_a_graph_that_samples_without_apply_bridge_is_told_so(server):
    """A bridge that is loaded anew each time: the host keeps what is as it was."""
    told = (
        "the model that samples has not the LoRA of bert.safetensors, with which it was trained to hear it: put Apply"
    )

    def run(graph, strength):
        graph["bridge"]["inputs"]["language_lora"] = strength
        before = server.log().count(told)
        outcome = server.run(graph | {"report": node("PreviewAny", source=["positive", 1])})
        assert not outcome.error, outcome.error
        return server.log().count(told) - before

    assert run(picture(steps=1), 0.11) == 0 and run(encoders(), 0.12) == 0  # applied; nothing samples
    forgotten = picture(steps=1)
    del forgotten["bridged"]
    forgotten["sampler"]["inputs"]["model"] = ["vision", 0]
    assert run(forgotten, 0.13) == 1
    watched = picture(steps=1) | {
        "watched": node("LaViBridgeWatchAttention", model=["vision", 0], conditioning=["positive", 0])
    }
    watched["bridged"]["inputs"]["model"] = ["watched", 0]
    assert run(watched, 0.14) == 0  # what stands before Apply Bridge takes the prompt and samples nothing
    for strength, lora, told_of in ((0.15, "a-bridge.safetensors", 0), (0.16, "exported-pixart.safetensors", 1)):
        styled = forgotten | {
            "style": node("LoraLoaderModelOnly", model=["vision", 0], lora_name=lora, strength_model=1.0)
        }  # the bridge's own LoRA by a stock loader, then another's
        styled["sampler"]["inputs"]["model"] = ["style", 0]
        assert run(styled, strength) == told_of, lora


def test_a_sampler_that_a_timed_bridge_cannot_follow_is_told_though_another_node_could(server):
    told = "timed-flow.safetensors gives another context at each timestep, and the sampler hears one of them alone"
    before = server.log().count(told)
    graph = picture(bridge="timed-flow.safetensors", steps=1, language_lora=0.21) | {
        "hook": node("LaViBridgeHook", model=["vision", 0], bridge=["bridge", 0], strength=1.0)
    }
    graph["sampler"]["inputs"]["model"] = ["hook", 1]
    assert not server.run(graph).error and server.log().count(told) == before
    graph["sampler"]["inputs"] |= {"model": ["vision", 0], "seed": 8}
    assert not server.run(graph).error and server.log().count(told) == before + 1
