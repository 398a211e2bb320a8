"""Interactive HTML of a worker in a frame of its own: its scripts run, and reach nothing.

The frame has an origin that equals no other one, so page, cookies and Jupyter's API are closed
to it; its policy forbids every load; it may open no window and submit no form. It stands inside
a second frame whose policy forbids frames of any address, so it cannot send itself elsewhere
either. It can still use the processor and draw what it likes inside its border: so it is shown
on the user's word alone, below a line of ours that names its worker.
"""

from __future__ import annotations

import html
from typing import Final

MAX_FRAME_CHARS: Final = 7_000_000
DEFAULT_HEIGHT_PX: Final = 480
MAX_HEIGHT_PX: Final = 2_000

POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; media-src data: blob:; "
    "worker-src blob:; connect-src 'none'; frame-src 'none'; form-action 'none'; base-uri 'none'"
)
_POLICY_META: Final = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
# Else a frame's base address is that of the page, which may hold a token.
_NOWHERE: Final = "http://frame.invalid/"
_OUTER: Final = (
    f'<!DOCTYPE html><html><head><base href="{_NOWHERE}">{_POLICY_META}'
    "<style>html,body{margin:0;height:100%;"
    "overflow:hidden}iframe{border:0;width:100%;height:100%}</style></head><body>"
    '<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" srcdoc="SRCDOC"></iframe>'
    "</body></html>"
)
_INNER: Final = (
    f'<!DOCTYPE html><html><head>{_POLICY_META}<meta charset="utf-8"><style>body{{margin:8px;'
    "background:#fff;color:#000;font:13px sans-serif}</style></head><body>"
)


def sandboxed_frame(document: str, caption: str, height_px: int | None = None) -> str:
    """Return HTML that shows ``document``, scripts and all, in a sandboxed frame.

    Args:
        document: the worker's HTML as it came, at most ``MAX_FRAME_CHARS``.
        caption: whose it is, shown above the frame. Must be clean already.
        height_px: of the frame.
    """
    inner = html.escape(_INNER + document, quote=True)
    outer = html.escape(_OUTER.replace("SRCDOC", inner), quote=True)
    height = min(max(height_px or DEFAULT_HEIGHT_PX, 40), MAX_HEIGHT_PX)
    # A page that strips frames, as one of a reopened notebook may, leaves the caption.
    return (
        f"<div><small>{html.escape(caption)}</small></div>"
        f'<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" width="100%" '
        f'height="{height}" style="border: 1px solid #8888" title="{html.escape(caption)}" '
        f'srcdoc="{outer}"></iframe>'
    )
