"""A worker that attacks whoever looks at its output: real protocol, made-up events.

A cell names its attack. Each attack sets ``window.__gx_pwned_<name>`` where it gets to run, or
asks for an address with ``gx-probe`` in it where it gets to load something.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from coordinator.app import Serving, serving
from coordinator.settings import Settings
from gridx.codec.results import encode_result, snapshot
from gridx.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    Stream,
    UpdateDisplayData,
    encode_event,
)
from gridx.protocol import StartAttempt, Welcome
from gridx.states import Cause

from .scripted_worker import ScriptedWorker, offer

ELSEWHERE: Final = "http://elsewhere.test/gx-probe"  # answers whatever is asked: see elsewhere()
WORKER_NAME: Final = "<img src=/gx-probe/name onerror=window.__gx_pwned_name=1>"


def pwn(name: str) -> str:
    """Return a script that shows that it has run, in this page or in those around it."""
    return f"for(let w of [window,parent,top])try{{w.__gx_pwned_{name}=1}}catch(e){{}}"


def display(mime: str, content: str, **metadata: Any) -> DisplayData:
    return DisplayData(data={mime: content, "text/plain": f"<{mime}>"}, metadata=metadata)


def html(content: str, **metadata: Any) -> DisplayData:
    return display("text/html", content, **metadata)


def _drawing(name: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="120" height="40" onload="{pwn(name)}"><script>{pwn(name)}</script>'
        f'<image href="{ELSEWHERE}/svg" width="9" height="9"/>'
        f'<foreignObject width="9" height="9"><body xmlns="http://www.w3.org/1999/xhtml">'
        f'<img src="x" onerror="{pwn(name)}"/></body></foreignObject>'
        '<rect width="120" height="40" fill="seagreen"/><text x="8" y="25">a drawing</text></svg>'
    )


ATTACKS: Final[dict[str, list[Event]]] = {
    "html_script": [html(f"<script>{pwn('html_script')}</script>")],
    "html_handler": [html(f'<img src=x onerror="{pwn("html_handler")}">')],
    "html_result": [
        ExecuteResult(data={"text/html": f'<svg onload="{pwn("html_result")}">', "text/plain": "r"})
    ],
    "html_mutation": [
        html(
            "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 "
            f"onerror={pwn('html_mutation')}&gt;'>"
        )
    ],
    "javascript": [display("application/javascript", pwn("javascript"))],
    "javascript_link": [html(f'<a href="javascript:{pwn("javascript_link")}">CLICK-ME</a>')],
    "markdown_handler": [
        display("text/markdown", f'<img src=x onerror="{pwn("markdown_handler")}"> *text*')
    ],
    "markdown_link": [
        display("text/markdown", f"[CLICK-ME](javascript:{pwn('markdown_link')})".replace(" ", "%20"))
    ],
    "markdown_diagram": [
        display(
            "text/markdown",
            "```mermaid\ngraph TD; A-->B; click A href \"javascript:"
            f"{pwn('markdown_diagram')}\"\n```",
        )
    ],
    "latex_link": [display("text/latex", rf"$\href{{javascript:{pwn('latex_link')}}}{{CLICK-ME}}$")],
    "latex_tag": [display("text/latex", f'$x$<img src=x onerror="{pwn("latex_tag")}">')],
    "svg": [display("image/svg+xml", _drawing("svg"))],
    "svg_bytes": [DisplayData(binary={"image/svg+xml": _drawing("svg_bytes").encode()})],
    "style_spoof": [
        html("<style>body{display:none!important} *{color:transparent!important}</style>kept")
    ],
    "style_cover": [
        html(
            '<div style="position:fixed;inset:0;z-index:99999;background:#fff">SPOOFED</div>'
            f'<b style="background:url({ELSEWHERE}/style)">b</b>'
        )
    ],
    "relative_image": [html('<img src="/gx-probe/relative"><img src="files/gx-probe">')],
    "remote_image": [
        html(f'<img src="{ELSEWHERE}/img"><img srcset="{ELSEWHERE}/set 1x">'
             f'<link rel=stylesheet href="{ELSEWHERE}/css"><video poster="{ELSEWHERE}/v"></video>'
             f'<table background="{ELSEWHERE}/t"><tr><td>x</table>')
    ],
    "markdown_image": [display("text/markdown", f"![x]({ELSEWHERE}/md) ![y](/gx-probe/md)")],
    "refresh": [html(f'<meta http-equiv=refresh content="0;url={ELSEWHERE}/refresh"><base href=/gx-probe/>')],
    "command_linker": [
        html(
            '<button data-commandlinker-command="notebook:insert-cell-below" '
            'data-commandlinker-args="{}">CLICK-ME</button>'
            '<a data-commandlinker-command="notebook:insert-cell-below" href="#">CLICK-ME</a>'
            '<b data-commandlinker-command="notebook:insert-cell-below">CLICK-ME</b>'
        )
    ],
    "form": [html(f'<form action="{ELSEWHERE}/form"><button>CLICK-ME</button></form>')],
    "frame": [
        html(f'<iframe srcdoc="<script>{pwn("frame")}</script>"></iframe>'
             f'<iframe src="/gx-probe/frame"></iframe><object data="/gx-probe/object"></object>')
    ],
    "isolated": [html(f"<script>{pwn('isolated')}</script>", isolated=True)],
    "isolated_type": [
        html(f"<script>{pwn('isolated_type')}</script>", **{"text/html": {"isolated": True}})
    ],
    "widget": [
        display("application/vnd.jupyter.widget-view+json",
                '{"model_id": "gx", "version_major": 2, "version_minor": 0}')
    ],
    "vega": [
        display("application/vnd.vegalite.v5+json",
                f'{{"data": {{"url": "{ELSEWHERE}/vega"}}, "mark": "bar"}}')
    ],
    "untrusted_type": [
        display("application/vnd.gridx.untrusted.v1+json",
                '{"data": {"text/html": "<script>1</script>"}}')
    ],
    "json": [display("application/json", '{"<img src=x onerror=1>": ["<script>1</script>"]}')],
    "made_up_type": [display(f"text/html; x=<img src=x onerror={pwn('made_up_type')}>", "x")],
    "picture": [DisplayData(binary={"image/png": f"<script>{pwn('picture')}</script>".encode()})],
    "update": [
        DisplayData(data={"text/plain": "before"}, display_id="x"),
        UpdateDisplayData(data={"text/html": f"<script>{pwn('update')}</script>"}, display_id="x"),
        UpdateDisplayData(data={"text/plain": "STOLEN"}, display_id="users-own"),
    ],
    "clear": [ClearOutput(), Stream(name="stdout", text="after the clear\n")],
    "terminal": [
        Stream(
            name="stdout",
            text="\x1b]8;;javascript:alert(1)\x1b\\link\x1b]8;;\x1b\\ \x1b]52;c;ZXZpbA==\x07"
            f"\x1b]0;title\x07\x9d52;c;eA==\x9c\x1b[2J\u202eevil <img src=x onerror=\"{pwn('terminal')}\">\n",
        )
    ],
    "error": [
        ErrorOutput(
            error={
                "type": f"<img src=x onerror={pwn('error')}>\x1b]0;t\x07",
                "module": "builtins",
                "mro": ["ValueError"],
                "message": f"<script>{pwn('error')}</script>\x1b]8;;http://x\x07\u202e",
                "notes": [f"<img src=/gx-probe/note onerror={pwn('error')}>"],
                "frames": [],
            }
        )
    ],
    "pickle": [Stream(name="stdout", text="a pickle comes home\n")],
    "names": [Stream(name="stdout", text="names come home\n")],
    "frame_scripts": [
        html(
            "<div id=o>not yet</div><script>"
            + pwn("frame_scripts")
            + ";let done=[];"
            + "try{parent.document.title;done.push('reached the page')}catch(e){}"
            + "try{top.location='/gx-probe/top'}catch(e){}"
            + "try{if(open('/gx-probe/open'))done.push('opened')}catch(e){}"
            + "try{localStorage.x=1;done.push('storage')}catch(e){}"
            + "for(let a of [document.baseURI,document.referrer,location.href])"
            + "if(/127.0.0.1|lab|token/.test(a))done.push(a);"
            + "fetch('/gx-probe/fetch').then(()=>done.push('fetched')).catch(()=>{});"
            + f"new Image().src='{ELSEWHERE}/frame';"
            + "let f=document.createElement('form');f.action='/gx-probe/submit';"
            + "document.body.append(f);try{f.submit()}catch(e){}"
            + "document.getElementById('o').textContent='SCRIPT RAN: '+(done.join()||'alone');"
            + "</script><button data-commandlinker-command='notebook:insert-cell-below'>b</button>"
        )
    ],
    "frame_leaves": [
        html(f"<b>LEAVING</b><script>setTimeout(()=>location='{ELSEWHERE}/nav',50)</script>"
             f'<meta http-equiv=refresh content="0;url={ELSEWHERE}/nav-refresh">')
    ],
}  # fmt: skip


class _Server(ThreadingHTTPServer):
    """Knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []


class _Answers(BaseHTTPRequestHandler):
    """Answers everything, so that whatever a page loads leaves a trace."""

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.asked.append(f"http://{self.headers['Host']}{self.path}")
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_HEAD = do_GET

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@contextmanager
def elsewhere() -> Iterator[tuple[int, list[str]]]:
    """Serve the host of ``ELSEWHERE``; yield its port, and the addresses that it is asked for."""
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, name="elsewhere")
        thread.start()
        try:
            yield server.server_address[1], server.asked
        finally:
            server.shutdown()
            thread.join(10)


class _Bomb:
    """A pickle that shows that it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self._path}",)


class HostileWorker(ScriptedWorker):
    """Runs no code: sends the attack that a cell's text names, then its result."""

    def __init__(self, *args: Any, proof: Path, **options: Any) -> None:
        super().__init__(*args, name=WORKER_NAME, capability=offer(slots=2), **options)
        self._proof = proof

    async def run(self, start: StartAttempt) -> None:
        name = start.job.code.strip().strip("'\"")
        events = ATTACKS.get(name, [Stream(name="stdout", text=f"no attack {name}\n")])
        data = b"".join(map(encode_event, events))
        is_error = any(isinstance(event, ErrorOutput) for event in events)
        self.started(start)
        self.output(start, 0, data)
        self.finish(
            start,
            cause=Cause.ERROR if is_error else Cause.COMPLETED,
            exit_code=1 if is_error else 0,
            stream_bytes=len(data),
            result=self._result_of(name),
        )

    def _result_of(self, name: str) -> bytes | None:
        if name == "pickle":
            return pickle.dumps({"answer": _Bomb(self._proof)})
        if name == "names":
            after: dict[str, Any] = {
                "users_own": "STOLEN", "print": "STOLEN", "get_ipython": "STOLEN",
                "__builtins__": {}, "_": "STOLEN", "In": [], "os": "STOLEN", "_ih": [],
            }  # fmt: skip
            return encode_result(snapshot({}, ()), after, expected=tuple(after), cell="")
        return None


@contextmanager
def hostile_grid(settings: Settings, proof: Path) -> Iterator[Serving]:
    """Serve a real coordinator with one hostile worker, in a thread of their own."""
    ready = threading.Event()
    made: list[Serving] = []
    ends: list[Callable[[], object]] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        try:
            async with serving(settings) as running:
                worker = HostileWorker(running.ws_url, proof=proof)
                answer = await worker.connect()
                assert isinstance(answer, Welcome), answer
                made.append(running)
                ready.set()
                await end.wait()
                await worker.leave()
        except BaseException as exc:
            failed.append(exc)
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="hostile-grid")
    thread.start()
    assert ready.wait(30)
    try:
        assert made, failed
        yield made[0]
    finally:
        ends[0]()
        thread.join(30)
