"""What a user finds around the nodes: help pages, translations, search words, a quiet start; the registry's facts."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from lavi_bridge.tests.nodes.host import PACK, ROOT, Place, Server

LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
TRANSLATED = Path(__file__).with_name("translated_from.json")
HEADINGS = {"en": ("Inputs", "Outputs", "Typical graph", "When it refuses")}
HEADINGS["fr"] = ("Entrées", "Sorties", "Graphe typique", "Quand il refuse")
SPECIAL = set("{}@|")  # vue-i18n's own: hosts differ in whether they read or show them


@pytest.fixture(scope="module")
def english(server: Server) -> dict[str, Any]:
    """Our nodes in the form of a nodeDefs.json, as this host tells them."""
    return {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                field: {"name": field, "tooltip": options["tooltip"]}
                for group in ("required", "optional")
                for field, (_, options) in info["input"].get(group, {}).items()
            },
            "outputs": {
                str(i): {"name": told, "tooltip": tooltip}
                for i, (told, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
        for name, info in server.get("/object_info").items()
        if name.startswith("LaViBridge")
    }


def leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, (*above, key)) if isinstance(value, dict) else {(*above, key): value}
    return found


def fetch(server: Server, path: str) -> tuple[str, str]:
    """What the front end gets: content type and text."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=30) as reply:
        return reply.headers["Content-Type"], reply.read().decode()


def page(server: Server, node: str, language: str) -> str:
    file = f"{node}.md" if language == "en" else f"{node}/{language}.md"
    kind, text = fetch(server, f"/extensions/{PACK}/docs/{file}")
    assert "html" not in kind, kind  # the front end takes such an answer for a missing page
    assert text == (ROOT / "web" / "docs" / file).read_text(encoding="utf-8")
    return text


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_each_node_has_a_help_page(server: Server, english: dict[str, Any], language: str):
    """Under the node's name, with each of its inputs and outputs, and no others, by the names that are shown."""
    shown = english if language == "en" else server.get("/i18n")[language]["nodeDefs"]
    for node, told in shown.items():
        text = page(server, node, language)
        title, *parts = re.split(r"^##? ", text, flags=re.MULTILINE)[1:]
        assert title.splitlines()[0] == told["display_name"]
        assert tuple(part.splitlines()[0] for part in parts) == HEADINGS[language], node
        for part, fields in zip(parts, (told["inputs"], told["outputs"]), strict=False):
            assert re.findall(r"^- \*\*(.+?)\*\*", part, re.MULTILINE) == [f["name"] for f in fields.values()], node
        assert "→" in parts[2] and re.search(r"^- \*[^*]", parts[3], re.MULTILINE), node


def test_the_refusals_explained_are_those_that_are_spoken():
    """The words that a page quotes stand in a message of the nodes or the core."""
    files = [file for layer in ("nodes", "lavi_core") for file in (ROOT / layer).rglob("*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    spoken = re.sub(r"""["']\s*\n\s*f?["']""", "", code).lower()  # a message over several lines
    for file in (ROOT / "web" / "docs").rglob("*.md"):
        refusals = re.split(r"^## ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[-1]
        quotes = re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", refusals)
        parts = [part.strip(" ,").lower() for quote in quotes for part in quote.split("…")]
        assert quotes and not [part for part in parts if part not in spoken], (file.name, parts)


def test_no_help_page_is_left_over(english: dict[str, Any]):
    docs = ROOT / "web" / "docs"
    expected = {f"{node}.md" for node in english} | {f"{node}/{lang}.md" for node in english for lang in LANGUAGES}
    assert {path.relative_to(docs).as_posix() for path in docs.rglob("*") if path.is_file()} == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_every_word_and_no_other(server: Server, english: dict[str, Any], language: str):
    told = server.get("/i18n")[language]
    words = leaves(told["nodeDefs"])
    assert words.keys() == leaves(english).keys()
    assert all(isinstance(text, str) and text.strip() for text in words.values())
    special = {key: text for key, text in (words | leaves(told["dataTypes"])).items() if SPECIAL & set(text)}
    assert not special
    same = {key for key, text in words.items() if key[-1] != "name" and text == leaves(english)[key]}
    assert not same, f"not translated: {sorted(same)}"
    wires = {name for name in re.findall(r'"(LAVI_\w+)"', (ROOT / "nodes" / "schema.py").read_text(encoding="utf-8"))}
    assert told["dataTypes"].keys() == wires


def test_translations_are_of_the_english_that_is_shown(english: dict[str, Any]):
    """Whoever changes a text of a node is told where else it stands."""
    then, now = leaves(json.loads(TRANSLATED.read_text(encoding="utf-8"))), leaves(english)
    stale = sorted(".".join(key) for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    assert not stale, f"translate anew in locales/ and web/docs/, then copy the English to {TRANSLATED.name}: {stale}"


def test_the_front_end_offers_the_languages(place: Place):
    """A locale that its settings do not list can be chosen by nobody."""
    code = "import comfyui_frontend_package as p; print(p.__path__[0])"
    done = subprocess.run([place.python, "-c", code], capture_output=True, text=True, check=True)
    listed = re.compile(r'\b([a-z]{2}(?:-[A-Z]{2})?)["`]?[:,]\s*\{?\s*text:\s*["`]')
    offered: set[str] = set()
    for file in Path(done.stdout.strip(), "static", "assets").glob("*.js"):
        offered.update(listed.findall(file.read_text(encoding="utf-8", errors="replace")))
    assert {"en", "zh", "ru"} <= offered and set(LANGUAGES) <= offered, offered


def test_search_finds_the_nodes(server: Server):
    infos = server.get("/object_info")
    if not infos["CLIPTextEncode"].get("search_aliases"):
        pytest.skip("this host searches by name only")
    for name, info in infos.items():
        if name.startswith("LaViBridge"):
            assert info["search_aliases"] and all(word.strip() for word in info["search_aliases"]), name


def test_the_start_says_nothing_of_us(server: Server):
    """But for the line of times that ComfyUI prints of every pack. Asked of the host: what is printed waits in a buffer
    before it reaches the log file."""
    said = "".join(entry["m"] for entry in server.get("/internal/logs/raw")["entries"])
    start = said.split("Starting server")[0]
    ours = [line for line in start.splitlines() if PACK.lower() in line.lower() or "lavi" in line.lower()]
    assert len(ours) == 1 and re.search(rf"[\d.]+ seconds: .*{PACK}$", ours[0].strip()), ours


def test_a_host_reads_our_metadata(place: Place):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from comfy_config import config_parser\n"
        "print(config_parser.extract_node_configuration(sys.argv[2]).model_dump_json())"
    )
    command = [place.python, "-c", code, place.path, ROOT]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    project, comfy = told["project"], told["tool_comfy"]
    assert (project["name"], project["supported_os"]) == ("lavi-bridge", ["OS Independent"])
    assert project["supported_comfyui_version"] == ">=0.3.64"
    assert comfy["publisher_id"] and comfy["display_name"] == "LaVi-Bridge"
    urls = project["urls"]
    assert urls["repository"].endswith(PACK) and urls["documentation"] and urls["issues"] and project["license"]


def test_the_registry_takes_our_metadata():
    """The rules of https://docs.comfy.org/registry/specifications."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = data["project"], data["tool"]["comfy"]
    assert re.fullmatch(r"(?!.*[._-]{2})[a-z][a-z0-9._-]{0,99}", project["name"]) and "comfy" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert f'__version__ = "{project["version"]}"' in (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    installed = set((ROOT / "requirements.txt").read_text(encoding="utf-8").split())
    assert installed == {line for line in project["dependencies"] if not line.startswith("torch>")}  # the host's


def test_a_tag_publishes():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    assert flow[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}  # YAML 1.1 reads "on" as a truth value
    (job,) = flow["jobs"].values()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    owner = data["project"]["urls"]["Repository"].split("/")[-2]
    assert f"'{owner}'" in job["if"]
    action = job["steps"][-1]
    assert action["uses"].startswith("Comfy-Org/publish-node-action@")
    assert action["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
    check = job["steps"][1]["run"]
    for tag, passes in ((f"v{data['project']['version']}", True), ("v999.0.0", False)):
        done = subprocess.run(["bash", "-c", check], cwd=ROOT, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"})
        assert (done.returncode == 0) is passes
