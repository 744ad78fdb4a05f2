"""What a user does in the front end, done in a real one: open a template, run it, read an error, search, ask for help.

LAVI_SCREENSHOTS names a folder for pictures of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavi_bridge.tests.browser.chromium import PATIENCE, FrontEnd, open_page
from lavi_bridge.tests.browser.conftest import HOSTS
from lavi_bridge.tests.nodes.host import ROOT
from lavi_bridge.training.shapebench import PromptSpec, judge
from PIL import Image

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SPEC = PromptSpec((("red", "circle", None), ("blue", "square", None)), "left of")
ALIASES = {
    "ella": "Load Bridge (LaVi-Bridge)",
    "long prompt": "Bridge Text Encode (LaVi-Bridge)",
    "heatmap": "Bridge Attention Maps (LaVi-Bridge)",
}
NOT_OFFERED = """() => app.graph.nodes.flatMap((node) => (node.widgets ?? [])
    .filter((w) => w.type === 'combo' && Array.isArray(w.options.values) && !w.options.values.includes(w.value))
    .map((w) => [node.type, w.name, w.value]))"""
LONG = (
    "a red circle left of a blue square and a green triangle above a yellow cross and a striped blue circle below a "
    "dotted red square and a solid green cross"
)
STOCK_PROMPT = """() => {
    const [load, sampler] = ['LaViBridgeLoad', 'KSampler'].map((type) => app.graph.nodes.find((n) => n.type === type))
    const prompt = LiteGraph.createNode('CLIPTextEncode')
    prompt.pos = [780, 1050]
    app.graph.add(prompt)
    load.connect(1, prompt, 0)
    prompt.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === 'positive'))
}"""
ON_THE_NODE = """([kind, told]) => app.graph.nodes.find((n) => n.type === kind).widgets
    .some((w) => w.name === '$$node-text-preview' && new RegExp(told).test(w.value))"""
ON_THE_NEWEST = pytest.mark.parametrize("server", HOSTS[:1] or [None], indirect=True, ids=str)


def api_form(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def screenshot(front_end: FrontEnd, request: pytest.FixtureRequest) -> Iterator[None]:
    """Of the page as a test leaves it, and a clean page for the next."""
    yield
    folder = os.environ.get("LAVI_SCREENSHOTS")
    if folder:
        front_end.page.screenshot(path=Path(folder) / f"{request.node.name}.png")
    front_end.page.keyboard.press("Escape")


def test_the_demo_is_opened_queued_and_drawn(front_end: FrontEnd):
    front_end.open_template("demo")
    front_end.queue()
    drawn = "() => app.graph.nodes.some((n) => n.type === 'SaveImage' && n.imgs?.[0]?.naturalWidth)"
    front_end.page.wait_for_function(drawn)
    size, source = front_end.node("SaveImage", "const i = node.imgs[0]; return [i.naturalWidth, i.src]")
    name = re.search(r"filename=(lavi_demo_\d+_\.png)", source)
    assert size == 128 and name is not None, source
    with Image.open(front_end.server.base / "output" / name[1]) as picture:
        assert judge(np.asarray(picture.convert("RGB")), SPEC).correct
    told = "(type) => app.graph.nodes.find((n) => n.type === type).widgets.some((w) => /^10 tokens/.test(w.value))"
    front_end.page.wait_for_function(told, arg="PreviewAny")


@pytest.mark.parametrize("kind", ["LaViBridgeTextEncode", "CLIPTextEncode"])
def test_a_cut_prompt_is_told_on_its_node_until_it_is_mended(front_end: FrontEnd, kind: str):
    """On ours and on the stock node, which is put between Load Bridge's CLIP and the sampler; again where the prompt is
    remembered and not encoded anew."""
    front_end.open_template("demo")
    if kind == "CLIPTextEncode":
        front_end.page.evaluate(STOCK_PROMPT)
    said = r"^9 tokens of the prompt are cut off and not heard: 'a dotted red square and a solid green cross'; "
    for text, told in ((LONG, said), ("a red circle", r"^\s*$"), (LONG, said)):
        front_end.choose(kind, "text", text)
        front_end.queue()
        front_end.page.wait_for_function(ON_THE_NODE, arg=[kind, told])


def test_the_preset_of_anothers_adapter_is_told_on_its_node(front_end: FrontEnd):
    """Though the run ends in an error: its vision model is the demo's."""
    front_end.open_template("demo")
    front_end.choose("LaViBridgeLoadLanguageModel", "model", "states-t5")
    front_end.choose("LaViBridgeLoad", "bridge", "golden-ella.safetensors")
    front_end.queue()
    said = r"^golden-ella\.safetensors is an ELLA connector, read by the preset ella: the T5TextEmbedder of github\.com"
    front_end.page.wait_for_function(ON_THE_NODE, arg=["LaViBridgeLoad", said])
    front_end.wait_for_error(r"speaks to Stable Diffusion 1\.5 in width 64")


def test_an_error_is_one_sentence_in_the_front_end(front_end: FrontEnd):
    front_end.open_template("demo")
    front_end.choose("LaViBridgeLoadLanguageModel", "model", "tiny-llama")
    front_end.queue()
    front_end.wait_for_error(r"this bridge was made for minilm .*, the loaded model is tiny-llama .*: load minilm")


@ON_THE_NEWEST
def test_a_missing_file_is_told_at_its_node(front_end: FrontEnd):
    front_end.open_template("demo")
    front_end.choose("LaViBridgeLoad", "bridge", "absent.safetensors")
    front_end.queue()
    front_end.wait_for_error(
        r"there is no bridge 'absent\.safetensors' in .*: put it there, train it or import it, or choose another"
    )
    assert front_end.node("LaViBridgeLoad", "return node.has_errors")


@ON_THE_NEWEST
def test_the_template_browser_shows_each_workflow_with_a_picture(front_end: FrontEnd):
    from playwright.sync_api import expect

    expect(front_end.templates()).to_have_count(len(WORKFLOWS), timeout=PATIENCE)
    for name in WORKFLOWS:
        card = front_end.page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        shown = "(card) => [...card.querySelectorAll('img')].some((image) => image.naturalWidth === 400)"
        front_end.page.wait_for_function(shown, arg=card.element_handle())


@ON_THE_NEWEST
@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name != "demo"])
def test_each_workflow_opens_whole_and_would_be_queued_as_we_say(front_end: FrontEnd, name: str):
    """No node or widget is missing, every file named is offered, and the notes, which are never queued, are there."""
    front_end.open_template(name)
    unknown = "() => app.graph.nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
    assert front_end.page.evaluate(unknown) == []
    assert front_end.page.evaluate(NOT_OFFERED) == []
    queued = front_end.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert queued == api_form(name)
    assert re.match(r"## [\w.-]+ speaks to ", front_end.node("MarkdownNote", "return node.widgets[0].value"))


@ON_THE_NEWEST
@pytest.mark.parametrize("words", ALIASES)
def test_the_search_finds_our_nodes_by_other_words(front_end: FrontEnd, words: str):
    front_end.open_template("demo")
    front_end.search(words).filter(has_text=ALIASES[words]).first.wait_for()


@ON_THE_NEWEST
def test_the_help_panel_shows_our_page(front_end: FrontEnd):
    front_end.open_template("demo")
    shown = front_end.help_page("LaViBridgeLoad")
    page = (ROOT / "web" / "docs" / "LaViBridgeLoad.md").read_text(encoding="utf-8")
    for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE):
        assert heading in shown, shown


@ON_THE_NEWEST
def test_the_front_end_is_french_where_the_browser_is(front_end: FrontEnd, chromium: Any):
    french = open_page(chromium, front_end.server, locale="fr-FR")
    told = json.loads((ROOT / "locales" / "fr" / "nodeDefs.json").read_text(encoding="utf-8"))
    shown = "(names) => names.map((name) => LiteGraph.registered_node_types[name].title)"
    assert french.page.evaluate(shown, list(told)) == [node["display_name"] for node in told.values()]
    french.page.context.close()
