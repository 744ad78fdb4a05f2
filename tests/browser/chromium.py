"""A front end as a person has it: a headless Chromium on a real host's page, clicked and typed into."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lavi_bridge.tests.nodes.host import PACK, Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120_000  # ms that a wait may take: nothing here draws with a GPU
SCREEN = {"width": 1600, "height": 1000}
HOSTS_OWN_PICTURES = "**/templates/*.webp"  # hundreds of thumbnails that no test looks at
READY = "() => window.app?.graph && app.extensionManager && document.querySelector('[data-testid=queue-button]')"
OPENED = """(prefix) => app.graph.nodes.some((node) => node.type === 'SaveImage' && node.widgets[0].value === prefix)
    && !app.graph.nodes.some((node) => node.before)"""
ON_SCREEN = """([x, y]) => {
    const frame = app.canvas.canvas.getBoundingClientRect()
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y])
    return [frame.x + left, frame.y + top]
}"""


def find() -> str | None:
    """The program that the variable CHROMIUM names, else the first of NAMES on PATH.

    Raises ValueError where CHROMIUM names none.
    """
    told = os.environ.get("CHROMIUM")
    if told and not shutil.which(told):
        raise ValueError(f"CHROMIUM names {told!r}, which is no program here: correct it or unset it")
    return told or next((name for name in map(shutil.which, NAMES) if name), None)


@dataclass(frozen=True)
class FrontEnd:
    """One page of a host. page: Playwright's."""

    page: Any
    server: Server

    def templates(self, name: str = "") -> Any:
        """Opens the templates of this pack. Returns the locator of their cards, all of which are there; with a name: of
        its own, and no more were brought than it takes, since a list that grows moves under a click."""
        from playwright.sync_api import TimeoutError

        self.page.get_by_role("button", name="Templates").first.click()
        self.page.get_by_text(PACK, exact=True).first.click()
        content = self.page.get_by_test_id("template-workflows-content")
        cards = content.locator("[data-testid^=template-workflow-]")
        wanted = content.get_by_test_id(f"template-workflow-{name}") if name else cards
        needed = 1 if name else len(self.server.get("/workflow_templates")[PACK])
        cards.first.wait_for()
        shown = 0
        while wanted.count() < needed and shown < (now := cards.count()):  # newer ones bring 24, more when scrolled
            shown = now
            cards.last.scroll_into_view_if_needed()
            with suppress(TimeoutError):
                cards.nth(shown).wait_for(timeout=PATIENCE / 8)
        return wanted

    def open_template(self, name: str) -> None:
        """Until its graph is there; the one before it, which may be of the same template, is there for a while."""
        from playwright.sync_api import TimeoutError

        self.page.evaluate("() => app.graph.nodes.forEach((node) => { node.before = true })")
        card = self.templates(name)
        for patience in (PATIENCE / 8, PATIENCE / 8, PATIENCE):  # a list that grows or moves can lose a click
            if card.count():
                card.click()
            try:
                self.page.wait_for_function(OPENED, arg=f"lavi_{name}", timeout=patience)
                break
            except TimeoutError:
                if patience == PATIENCE:
                    raise

    def node(self, kind: str, code: str, *given: Any) -> Any:
        """What ``code``, a JavaScript function's body, returns for ``node``, the first of its kind, and ``given``."""
        found = "const node = app.graph.nodes.find((n) => n.type === kind)"
        return self.page.evaluate(f"([kind, ...given]) => {{ {found}; {code} }}", [kind, *given])

    def choose(self, kind: str, widget: str, value: Any) -> None:
        self.node(kind, "node.widgets.find((w) => w.name === given[0]).value = given[1]", widget, value)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A place of the graph on the screen."""
        return tuple(self.page.evaluate(ON_SCREEN, [x, y]))

    def queue(self) -> None:
        self.page.get_by_test_id("queue-button").first.click()

    def wait_for_error(self, said: str) -> None:
        """Until the front end shows what the last run came to. Newer ones hide it behind a notice and a button or two.

        said: a regular expression.
        """
        notice = self.page.get_by_role("button", name="View details")
        notice.or_(self.page.get_by_role("dialog")).first.wait_for()
        if notice.count():
            notice.first.click()
            self.page.get_by_text("Resolve before running the workflow").wait_for()
            more = self.page.get_by_role("button", name="Info for")
            if more.count():
                more.first.click()
        self.page.wait_for_function("(said) => new RegExp(said).test(document.body.innerText)", arg=said)

    def help_page(self, kind: str) -> str:
        """The help of a node, asked for by the button over the selected node."""
        x, y = self.node(kind, "return [...node.pos]")
        self.page.mouse.click(*self.at(x + 60, y - 15))
        self.page.get_by_test_id("info-button").click()
        page = self.page.locator(".node-help-content")
        page.get_by_role("heading").first.wait_for()
        return page.inner_text()

    def search(self, words: str) -> Any:
        """A double click on the bare canvas, and words. Returns the locator of what is offered."""
        from playwright.sync_api import TimeoutError

        for patience in (PATIENCE / 8, PATIENCE / 8, PATIENCE):  # a busy page can miss that two clicks were one
            self.page.mouse.dblclick(*self.at(1300, 720))  # below the group of the picture
            try:
                self.page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'", timeout=patience)
                break
            except TimeoutError:
                if patience == PATIENCE:
                    raise
        self.page.keyboard.type(words)
        return self.page.get_by_role("option")


@contextmanager
def browser(program: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield running
        finally:
            running.close()


def open_page(running: Any, server: Server, locale: str = "en-US") -> FrontEnd:
    """A page as on a machine in ``locale`` that has not seen this host before."""
    context = running.new_context(viewport=SCREEN, locale=locale, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    context.route(HOSTS_OWN_PICTURES, lambda route: route.abort())
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function(READY)
    return FrontEnd(page, server)
