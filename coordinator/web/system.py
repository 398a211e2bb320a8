"""The coordinator about itself: health, status, its description, a page that names its addresses."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from gridx import __version__
from gridx.clock import monotonic_s
from gridx.protocol import PROTOCOL
from gridx.schemas import GridStatus, Health

from ..services import views
from .base import Call, Reply

if TYPE_CHECKING:
    from .context import Context


async def show_health(context: Context, call: Call) -> Reply:
    """Say that the coordinator serves."""
    return Reply(value=Health(status="ok", version=__version__))


async def show_status(context: Context, call: Call) -> Reply:
    """Show the grid in numbers."""
    counts = await context.store.read(views.count_jobs)
    settings = context.settings
    offered = [link.worker.capability for link in context.connections.workers()]
    lent = [capability for capability in offered if capability.pause is None]
    return Reply(
        value=GridStatus(
            version=__version__,
            protocol=PROTOCOL,
            auth=settings.auth,
            workers_online=len(lent),
            workers_paused=len(offered) - len(lent),
            cores=sum(capability.cores for capability in lent),
            jobs_queued=counts.queued,
            jobs_running=counts.running,
            rates=settings.rates,
            worker_share=settings.worker_share_percent / 100,
            uptime_s=monotonic_s() - context.started_s,
        )
    )


async def show_openapi(context: Context, call: Call) -> Reply:
    """Return ``openapi.json``."""
    from .openapi import openapi_text  # it is made from the table that names this function

    return Reply(text=openapi_text(), content_type="application/json")


async def show_index(context: Context, call: Call) -> Reply:
    """Name the addresses, for somebody who opens the port in a browser."""
    from .routes import HTML, ROUTES  # the table names this function

    rows = "\n".join(
        f"<tr><td><code>{escape(route.method)} {escape(route.path)}</code></td>"
        f"<td>{escape(route.summary)}</td></tr>"
        for route in ROUTES
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<title>Grid-X coordinator</title></head><body><h1>Grid-X coordinator</h1>"
        f"<p>Version {escape(__version__)}. Workers online:"
        f" {len(context.connections)}.</p>"
        "<p>In a notebook: <code>%load_ext gridx_jupyter</code>, then begin a cell with"
        " <code>%%gridx</code>.</p>"
        f"<table><thead><tr><th>Address</th><th>Does</th></tr></thead><tbody>{rows}</tbody>"
        "</table></body></html>\n"
    )
    return Reply(text=page, content_type=HTML)
