"""Attention maps and the list of tokens, through a running host."""

from __future__ import annotations

import torch
from lavi_bridge.tests.nodes.graphs import PIXART, node, picture


def watched(**options):
    """A picture, and the maps of its prompt."""
    graph = picture(steps=2, **options)
    graph["watch"] = node("LaViBridgeWatchAttention", model=["bridged", 0], conditioning=["positive", 0])
    graph["sampler"]["inputs"]["model"] = ["watch", 0]
    graph["maps"] = node(
        "LaViBridgeAttentionMaps",
        images=["decode", 0],
        attention=["watch", 1],
        words="",
        measure="attention",
        scale="each word",
    )
    graph["sheet"] = node("SaveImage", images=["maps", 0], filename_prefix="sheet")
    return graph


def ran(outcome):
    assert not outcome.error, outcome.error
    return outcome


def test_a_sheet_of_maps_and_the_same_picture(server):
    plain = ran(server.run(picture(steps=2)))
    outcome = ran(server.run(watched()))
    assert torch.equal(outcome.latents[0], plain.latents[0])
    (sheet,) = [image for image in outcome.images if image.shape != (128, 128, 3)]
    assert any(torch.equal(image, plain.images[0]) for image in outcome.images)
    assert sheet.shape[0] > 256 and sheet.shape[1] > 3 * 256 and sheet.float().std() > 10
    again = ran(server.run(watched(seed=9)))
    (other,) = [image for image in again.images if image.shape != (128, 128, 3)]
    assert other.shape == sheet.shape and not torch.equal(other, sheet)


def test_maps_of_a_stock_pixart(server):
    outcome = ran(server.run(watched(vision=PIXART, bridge="pixart.safetensors", side=40)))
    assert {tuple(image.shape[:2]) for image in outcome.images} > {(320, 320)}


def test_maps_without_the_watched_model_are_refused(server):
    graph = watched()
    graph["sampler"]["inputs"]["model"] = ["bridged", 0]
    error = server.run(graph).error
    assert "watched MODEL" in error and "\n" not in error, error


def test_maps_of_an_earlier_run_are_refused(server):
    """They are another picture's, although they lie on the wire."""
    ran(server.run(watched(seed=21)))
    for changed in ({"seed": 21}, {"seed": 22}):
        graph = watched(**changed)
        graph["sampler"]["inputs"]["model"] = ["bridged", 0]
        error = server.run(graph).error
        assert "watched MODEL" in error and "of these pictures" in error and "\n" not in error, error
    graph["empty"]["inputs"]["batch_size"] = 2
    assert "watched MODEL" in server.run(graph).error


def test_a_picture_from_the_cache_gets_its_own_maps(server):
    """Only the words change, at once and after another picture was made."""

    def sheet(words, seed):
        graph = watched(seed=seed)
        graph["maps"]["inputs"]["words"] = words
        (found,) = [image for image in ran(server.run(graph)).images if image.shape != (128, 128, 3)]
        return found

    every, circle = sheet("", 31), sheet("circle", 31)
    assert every.shape != circle.shape
    assert not torch.equal(sheet("circle", 32), circle)
    assert torch.equal(sheet("circle ", 31), circle)


def test_tokens_are_listed(server):
    graph = picture() | {"tokens": node("LaViBridgeTokens", conditioning=["positive", 0])}
    (text,) = ran(server.run(graph)).texts
    assert "circle" in text and "norm" in text and "special" in text
    graph["raw"] = node("ConditioningZeroOut", conditioning=["positive", 0])
    graph["tokens"]["inputs"]["conditioning"] = ["raw", 0]
    (zeros,) = ran(server.run(graph)).texts
    assert zeros != text and zeros.count(" 0.00") > 10
