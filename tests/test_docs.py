"""The pages, as their readers use them: a README of minutes, and links, paths and commands that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from lavi_bridge.training.commands import VERBS

ROOT = Path(__file__).resolve().parents[1]
README_BYTES = 9_000
NOT_OURS = {"build", "dist", "runs"}  # ignored by git

FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(\s*<?([^\s<>()]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
PATH = re.compile(
    r"(?<![\w./~-])(?:lavi_core|nodes|training|tests|workflows)/[\w./-]*\.(?:py|toml|md|json|yaml)(?![\w-])"
)
VERB = re.compile(r"\blavi-bridge[ \t]+(?:\\\n[ \t]*)?(\w[\w-]*)")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")


class Link(NamedTuple):
    page: Path
    target: str

    def __str__(self) -> str:
        return f"{name(self.page)}: {self.target}"


def pages() -> list[Path]:
    """Every Markdown file of the tree, but those in hidden folders and in what git ignores."""
    return [
        page
        for page in sorted(ROOT.rglob("*.md"))
        if not any(part.startswith(".") or part in NOT_OURS for part in page.relative_to(ROOT).parts)
    ]


def run_from_the_root() -> list[Path]:
    """The pages whose commands are said to run from the root."""
    return [page for page in pages() if page.relative_to(ROOT).parts[0] in ("README.md", "nodes", "training")]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links(page: Path) -> Iterator[Link]:
    """The relative links and images of a page, out of code; an address with a scheme is not looked up."""
    for target in LINK.findall(SPAN.sub("", FENCE.sub("", read(page)))):
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield Link(page, target)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, no punctuation, hyphens; -1, -2 behind repeats."""
    taken: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        first = slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        number = 0
        while slug in taken:
            number += 1
            slug = f"{first}-{number}"
        taken.add(slug)
    return taken


def leads_nowhere(link: Link) -> bool:
    """Whether the file or folder, or the heading in it, is missing."""
    path, _, anchor = unquote(link.target).partition("#")
    file = (link.page.parent / path).resolve() if path else link.page
    if not file.exists() or not file.is_relative_to(ROOT):
        return True
    return bool(anchor) and (file.suffix != ".md" or anchor not in anchors(read(file)))


def is_placeholder(path: str) -> bool:
    """Whether a part of it is in CAPITALS, for a name of the reader's own; pages have such names of their own."""
    return not path.endswith(".md") and any(PLACEHOLDER.fullmatch(part.split(".")[0]) for part in path.split("/"))


def test_the_readme_is_read_in_minutes():
    size = (ROOT / "README.md").stat().st_size
    assert size <= README_BYTES, f"README.md has {size} bytes; what is over {README_BYTES} belongs beside its code"


def test_every_link_leads_to_a_file_and_a_heading():
    found = [link for page in pages() for link in links(page)]
    assert len(found) > 100
    wrong = [str(link) for link in found if leads_nowhere(link)]
    assert not wrong, "\n".join(wrong)


def test_every_path_from_the_root_is_a_file():
    found = [(page, path) for page in run_from_the_root() for path in PATH.findall(read(page))]
    assert len(found) > 20
    wrong = [f"{name(page)}: {path}" for page, path in found if not (is_placeholder(path) or (ROOT / path).is_file())]
    assert not wrong, "\n".join(wrong)


def test_every_command_is_a_verb():
    found = [(page, verb) for page in pages() for verb in VERB.findall(read(page)) if not PLACEHOLDER.fullmatch(verb)]
    assert {verb for _, verb in found} >= {"train", "import", "install-demo"}
    wrong = [f"{name(page)}: lavi-bridge {verb}" for page, verb in found if verb not in VERBS]
    assert not wrong, "\n".join(wrong)


def test_anchors_are_those_of_github():
    text = "# What `a-b` is, in *short*: 1.5 x\n## Twice\n```\n# no heading\n```\n## Twice\n### [A link](x.md) & more\n"
    assert anchors(text) == {"what-a-b-is-in-short-15-x", "twice", "twice-1", "a-link--more"}
