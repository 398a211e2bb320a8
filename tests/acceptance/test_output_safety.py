"""What a hostile worker shows, in a real JupyterLab in a real Chromium: nothing of it runs.

The attacks are rows of ``tests/support/hostile_worker.py``; the worker sends them to a real
coordinator, the magic of a real kernel shows them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import Browser

from coordinator.settings import Settings
from tests.support.hostile_worker import ATTACKS, ELSEWHERE, elsewhere, hostile_grid
from tests.support.lab import (
    Lab,
    OpenNotebook,
    chromium,
    lab,
    notebook,
    stop_kernels,
    write_notebook,
)

FRAMES = ("frame_scripts", "frame_leaves")
OTHERS = (
    "remote_image",
    "javascript",
    "widget",
    "vega",
    "latex_link",
    "svg",
    "markdown_handler",
    "json",
)
CLEAN = [name for name in ATTACKS if name not in FRAMES]
SHOTS = os.environ.get("GRIDX_SCREENSHOTS")  # a folder for pictures of what the tests saw


@dataclass
class Seen:
    """What a page has shown and done."""

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    cells: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def probes(self) -> list[str]:
        # Lab itself asks its server whether paths in a text are files, to make links of them.
        asked = [url for url in self.answers if "/api/resolvePath?" not in url]
        return [url for url in asked if "gx-probe" in url and "/control" not in url]


@dataclass
class World:
    """The programs of this module."""

    browser: Browser
    lab: Lab
    proof: Path
    asked: list[str]  # of the host elsewhere


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("lab")
    settings = Settings(http_port=0, ws_port=0, data_dir=folder / "coordinator")
    proof = folder / "opened"
    with (
        hostile_grid(settings, proof) as grid,
        elsewhere() as (port, asked),
        chromium(port) as browser,
        lab(folder, GRIDX_URL=grid.http_url, GRIDX_USER="reader") as server,
    ):
        yield World(browser, server, proof, asked)


def shoot(opened: OpenNotebook, name: str) -> None:
    if SHOTS:
        for number, area in enumerate(opened.page.query_selector_all(".jp-CodeCell")):
            area.scroll_into_view_if_needed()
            area.screenshot(path=f"{SHOTS}/{name}-{number:02d}.png")


@pytest.fixture(scope="module")
def clean(world: World) -> Seen:
    """Every attack, with nothing asked for: run, clicked on, and looked at again after a reload."""
    control = (
        f"<script>window.__control=1</script><img src='{ELSEWHERE}/control'>"
        f'<iframe sandbox="allow-scripts" srcdoc="<script>location=&quot;{ELSEWHERE}/control-frame'
        '&quot;</script>"></iframe>'
    )
    sources = [
        "%load_ext gridx_jupyter\nusers_own = 'mine'; before = print, get_ipython\n"
        "handle = display('users own plot', display_id='users-own')",
        *(f"%%gridx\n'{name}'" for name in CLEAN),
        "assert users_own == 'mine' and (print, get_ipython) == before, users_own\n"
        "print('still', users_own)",
        f"from IPython.display import HTML\nHTML({control!r})",
    ]
    write_notebook(world.lab.folder / "clean.ipynb", sources)
    seen = Seen()
    with notebook(world.browser, world.lab, "clean.ipynb") as opened:
        opened.run_all(len(sources))
        opened.page.wait_for_selector("text=still mine")
        _look(opened, seen, CLEAN)
        seen.extra["last"] = opened.outputs()[-2]["text"]
        opened.page.wait_for_function("() => window.__control === 1")
        opened.wait_until(lambda: f"{ELSEWHERE}/control-frame" in world.asked)
        seen.extra["first"] = opened.outputs()[0]["text"]
        seen.extra["acting"] = opened.page.evaluate(_ACTING)
        _click_everything(opened)
        seen.extra["dialogs"] = opened.page.locator(".jp-Dialog").count()
        seen.cells = len(opened.outputs()) - len(sources)
        seen.extra["background"] = opened.page.evaluate(
            "() => getComputedStyle(document.body).display"
        )
        shoot(opened, "clean")
        opened.save()
        seen.flags += opened.flags()
        seen.answers += opened.answers
    with notebook(world.browser, world.lab, "clean.ipynb") as opened:  # as it was saved
        seen.flags += opened.flags()
        seen.answers += [*opened.answers, *world.asked]
    stop_kernels(world.lab)
    return seen


@pytest.fixture(scope="module")
def framed(world: World) -> Seen:
    """The same on the user's word."""
    sources = [
        "%load_ext gridx_jupyter",
        *(f"%%gridx --show interactive\n'{name}'" for name in (*FRAMES, *OTHERS)),
    ]
    write_notebook(world.lab.folder / "framed.ipynb", sources)
    seen = Seen()
    with notebook(world.browser, world.lab, "framed.ipynb") as opened:
        opened.run_all(len(sources))
        _look(opened, seen, [*FRAMES, *OTHERS])
        cell = opened.page.locator(".jp-CodeCell").nth(1 + FRAMES.index("frame_scripts"))
        cell.scroll_into_view_if_needed()
        inner = cell.frame_locator("iframe").frame_locator("iframe")
        inner.locator("text=SCRIPT RAN").wait_for()
        seen.extra["frame"] = inner.locator("#o").inner_text()
        opened.page.locator(".jp-CodeCell").nth(2).scroll_into_view_if_needed()
        opened.page.wait_for_timeout(500)  # what must not happen has no event to wait for
        seen.extra["caption"] = cell.inner_text()
        shoot(opened, "framed")
        seen.flags, seen.answers = opened.flags(), [*opened.answers, *world.asked]
    stop_kernels(world.lab)
    return seen


def _look(opened: OpenNotebook, seen: Seen, names: list[str]) -> None:
    seen.outputs = dict(zip(names, opened.outputs()[1:], strict=False))


_ACTING = """() => [...document.querySelectorAll('.jp-CodeCell:not(:last-of-type) .jp-OutputArea-output *')].filter(e =>
  ['SCRIPT','IFRAME','FORM','OBJECT','EMBED','STYLE','LINK','META','BASE','VIDEO'].includes(e.tagName)
  || [...e.attributes].some(a => /^on|^data-commandlinker|^srcset|^ping/.test(a.name))
  || /^(javascript|data):/i.test(e.getAttribute('href') || '')
  || (e.tagName === 'IMG' && !/^data:image/.test(e.getAttribute('src') || 'data:image'))
  || ['fixed', 'absolute', 'sticky'].includes(getComputedStyle(e).position)
     && !e.closest('mjx-container')
).filter(e => !e.closest('.jp-RenderedJSON')  // the page's own tree, with a field to search it
).map(e => e.outerHTML.slice(0, 200))"""


def _click_everything(opened: OpenNotebook) -> None:
    """Click wherever an attack asks for it, and on every link and button of an output."""
    opened.page.evaluate(
        "() => { for (const e of document.querySelectorAll("
        "'.jp-OutputArea a, .jp-OutputArea button, .jp-OutputArea b, .jp-OutputArea img,"
        " .jp-OutputArea [data-commandlinker-command]')) {"
        " if (e.tagName !== 'A' || !/^https?:/.test(e.getAttribute('href') || '')) e.click() } }"
    )


@pytest.mark.parametrize("name", CLEAN)
def test_an_attack_does_not_run(clean: Seen, name: str) -> None:
    assert name in clean.outputs
    assert f"__gx_pwned_{name}" not in clean.flags
    assert "completed on" in clean.outputs[name]["text"] or name == "error"


def test_nothing_of_the_worker_has_run_or_loaded_anything(clean: Seen) -> None:
    assert clean.flags == []
    assert clean.probes == []


def test_what_a_cell_of_this_kernel_shows_would_have_run_and_loaded(clean: Seen) -> None:
    """The control: these tests would notice."""
    for name in ("control", "control-frame"):
        assert f"{ELSEWHERE}/{name}" in clean.answers


def test_no_element_of_an_output_acts(clean: Seen) -> None:
    assert clean.extra["acting"] == []
    assert clean.extra["dialogs"] == 0
    assert clean.cells == 0  # no command has put one in
    assert clean.extra["background"] != "none"


def test_what_was_left_out_is_named_below_its_cell(clean: Seen) -> None:
    for name, sentence in {
        "html_script": "script in text/html left out; --show interactive shows it",
        "html_handler": "onerror in text/html left out",
        "javascript": "application/javascript left out: a script of a worker never runs",
        "widget": "widget-view+json left out",
        "vega": "vegalite.v5+json left out",
        "latex_link": "text/latex left out: its command \\href reaches beyond the formula",
        "picture": "image/png left out: its bytes are not that kind of image",
        "remote_image": "left out",
    }.items():
        assert sentence in clean.outputs[name]["text"], (name, clean.outputs[name]["text"])


def test_what_is_harmless_in_it_is_shown(clean: Seen) -> None:
    assert 'src="data:image/svg+xml;base64,' in clean.outputs["svg"]["html"]
    assert "<em>text</em>" in clean.outputs["markdown_handler"]["html"]
    assert "kept" in clean.outputs["style_spoof"]["text"]
    assert "after the clear" in clean.outputs["clear"]["text"]
    assert "<U+202E>evil" in clean.outputs["terminal"]["text"]


def test_names_of_worker_and_error_are_text(clean: Seen) -> None:
    for output in clean.outputs.values():
        assert "<img src=/gx-probe/name" in output["text"] or "error" in output["text"].lower()
    shown = clean.outputs["error"]["text"]
    assert "<script>" in shown
    assert "\x1b" not in shown


def test_the_users_own_display_and_names_stay(clean: Seen, world: World) -> None:
    assert "users own plot" in clean.extra["first"]
    assert "STOLEN" not in clean.extra["first"]
    assert "still mine" in clean.extra["last"]
    assert not world.proof.exists()


def test_on_the_users_word_scripts_run_in_a_frame_that_reaches_nothing(framed: Seen) -> None:
    assert framed.extra["frame"] == "SCRIPT RAN: alone"
    assert framed.flags == []
    assert framed.probes == []


def test_the_frame_stands_below_a_line_that_names_its_worker(framed: Seen) -> None:
    assert "Shown by worker <img src=/gx-probe/name" in framed.extra["caption"]


def test_what_is_no_html_is_treated_the_same_on_the_users_word(framed: Seen) -> None:
    for name in OTHERS[1:]:
        assert "<iframe" not in framed.outputs[name]["html"]


def test_the_exported_page_runs_nothing_either(clean: Seen, world: World) -> None:
    saved = nbformat.read(world.lab.folder / "clean.ipynb", as_version=4)
    page_html, _ = HTMLExporter().from_notebook_node(saved)
    exported = world.lab.folder / "clean.html"
    exported.write_text(page_html)
    context = world.browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    context.on("response", lambda response: asked.append(response.url))
    page.route("https://**", lambda route: route.abort())  # the typesetter of the export
    page.goto(exported.as_uri())
    page.evaluate("() => { for (const e of document.querySelectorAll('a')) if "
                  "(/^javascript:/.test(e.getAttribute('href') || '')) e.click() }")  # fmt: skip
    flags = page.evaluate("() => Object.keys(window).filter(n => n.startsWith('__gx_pwned'))")
    context.close()
    assert flags == []
    assert [url for url in asked if "gx-probe" in url and "/control" not in url] == []
