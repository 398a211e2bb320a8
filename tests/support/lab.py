"""A real JupyterLab with a notebook in a real Chromium, for what only a browser can show."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nbformat
import pytest
from playwright.sync_api import Browser, Page, Response, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

PATIENCE_S: Final = 60.0
TOKEN: Final = "of-this-test"  # for a server that lives as long as the test
_FLAGS: Final = (
    "--no-sandbox",  # of the browser itself: tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SETTINGS: Final = {
    "apputils-extension/notification.jupyterlab-settings": '{"fetchNews": "false", "checkForUpdates": false}',
    # Without windowing every cell is in the page, however long the notebook is.
    "notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',
}


def chromium_path() -> str:
    """Return the system's Chromium; fail with what to type where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.fail(
            "There is no Chromium on PATH. On Debian or Ubuntu: sudo apt-get install -y chromium; "
            "`make test` does it by itself as root.",
            pytrace=False,
        )
    return found


@dataclass
class Lab:
    """A running server: notebooks lie in ``folder``."""

    url: str
    folder: Path


@contextmanager
def lab(folder: Path, **environ: str) -> Iterator[Lab]:
    """Serve JupyterLab with settings, data and kernels of its own; it answers when yielded."""
    own = {
        name: str(folder / "own" / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
            "XDG_CACHE_HOME",
        )
    }
    notebooks = folder / "notebooks"
    for path in (notebooks, *map(Path, own.values())):
        path.mkdir(parents=True, exist_ok=True)
    for name, text in _SETTINGS.items():
        path = Path(own["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "lab.log").open("wb")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"),
            *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"),
            *(f"--ServerApp.root_dir={notebooks}", "--LabApp.expose_app_in_browser=True"),
            *(["--allow-root"] if os.geteuid() == 0 else []),
        ],
        env={**os.environ, **own, **environ},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, server, folder / "lab.log")
        yield Lab(url, notebooks)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/api?token={TOKEN}", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            server_has_had_a_moment(0.1)


def server_has_had_a_moment(seconds: float) -> None:
    """Ask again later: a server that starts can only be asked."""
    time.sleep(seconds)


@contextmanager
def chromium(port: int) -> Iterator[Browser]:
    """Start the system's Chromium; every host but 127.0.0.1 is ``port`` of this machine."""
    rules = f"--host-resolver-rules=MAP * 127.0.0.1:{port}, EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=[*_FLAGS, rules])
        try:
            yield browser
        finally:
            browser.close()


def write_notebook(path: Path, sources: Sequence[str]) -> None:
    """Write a notebook of code cells."""
    # The tag lets the cells below one that fails run.
    metadata = {"tags": ["raises-exception"]}
    cells = [nbformat.v4.new_code_cell(source, metadata=metadata) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@dataclass
class OpenNotebook:
    """A notebook in a page, and every address that has answered the page.

    What a policy blocks is announced as a request too; it has no answer.
    """

    page: Page
    answers: list[str] = field(default_factory=list)

    def run_all(self, cells: int) -> None:
        """Run every cell and wait until each has its number."""
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
        for _ in range(5):  # right after the start a command may find no notebook yet
            self.page.evaluate(
                "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); return 1 }"
            )
            try:
                self.page.wait_for_function(
                    f"() => {prompts}.some(e => /[\\d*]/.test(e.textContent))", timeout=3_000
                )
                break
            except PlaywrightTimeout:
                continue
        self.page.wait_for_function(
            f"count => {prompts}.filter(e => /\\d/.test(e.textContent)).length >= count",
            arg=cells,
            timeout=PATIENCE_S * 1000,
        )

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds``, while the page goes on."""
        end_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end_s, self.answers
            self.page.wait_for_timeout(50)

    def flags(self) -> list[str]:
        """Return what attacks have set in the page's window."""
        names: list[str] = self.page.evaluate(
            "() => Object.keys(window).filter(name => name.startsWith('__gx_pwned'))"
        )
        return names

    def outputs(self) -> list[dict[str, Any]]:
        """Return each cell's outputs as the page has them: text and HTML."""
        found: list[dict[str, Any]] = self.page.evaluate(
            "() => [...document.querySelectorAll('.jp-CodeCell')].map(cell => {"
            " const area = cell.querySelector('.jp-OutputArea');"
            " return {text: area ? area.innerText : '', html: area ? area.innerHTML : ''} })"
        )
        return found

    def save(self) -> None:
        """Save the notebook, and wait until it is saved."""
        self.page.evaluate(
            "async () => { await window.jupyterapp.commands.execute('docmanager:save'); return 1 }"
        )


@contextmanager
def notebook(browser: Browser, server: Lab, name: str) -> Iterator[OpenNotebook]:
    """Open a notebook of the server's folder; its kernel is idle when yielded."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    opened = OpenNotebook(page)

    def note(response: Response) -> None:
        opened.answers.append(response.url)

    context.on("response", note)
    try:
        page.goto(f"{server.url}/lab/tree/{name}?token={TOKEN}&reset", timeout=PATIENCE_S * 1000)
        # The notebook's own kernel: a command before it asks which kernel there should be.
        page.wait_for_function(
            "() => { const shown = window.jupyterapp && window.jupyterapp.shell.currentWidget;"
            " const context = shown && shown.sessionContext;"
            " return context && context.isReady && context.session"
            " && context.session.kernel && context.session.kernel.status === 'idle' }",
            timeout=PATIENCE_S * 1000,
        )
        yield opened
    finally:
        context.close()


def stop_kernels(server: Lab) -> None:
    """End every kernel of the server: they outlive their pages."""
    headers = {"Authorization": f"token {TOKEN}"}
    listing = urllib.request.Request(f"{server.url}/api/sessions", headers=headers)
    with urllib.request.urlopen(listing, timeout=30) as answer:
        sessions = json.load(answer)
    for session in sessions:
        address = f"{server.url}/api/sessions/{session['id']}"
        gone = urllib.request.Request(address, headers=headers, method="DELETE")
        with urllib.request.urlopen(gone, timeout=30):
            pass
