"""Every address of the HTTP port on one screen.

From this table are made: the routing and its refusals, the checks of bodies and queries,
``openapi.json`` and ``docs/api-reference.md``. Endpoints are plain functions of a context and one
checked call, not handler classes: a class would add nothing but a second place for the method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from gridx import errors
from gridx.blobs import OCTETS
from gridx.schemas import (
    AccountView,
    BlobRef,
    Credentials,
    GridStatus,
    Health,
    JobDetail,
    JobList,
    JobRequest,
    JobView,
    MissingBlobs,
    TokenView,
    WantedBlobs,
    WorkerList,
)

from ..rules.access import Scope
from . import accounts, blobs, jobs, metrics, system, workers
from .base import Endpoint
from .guard import UnsupportedContent

JSON = "application/json"
BYTES = OCTETS
EVENT_STREAM = "text/event-stream"
PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"
HTML = "text/html; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one address.

    ``errors`` names what this route refuses beside what every route may answer (403, 421 by the
    guard; 400 for a query or body that does not fit).
    """

    method: str
    path: str
    endpoint: Endpoint
    scope: Scope
    summary: str
    or_scope: Scope | None = None  # another scope that is enough
    request: type[Any] | None = None
    takes_bytes: bool = False  # its body is bytes, as they are or in one zstd frame
    query: type[Any] | None = None
    response: type[Any] | None = None
    content_type: str = JSON
    status: Mapping[int, str] = field(default_factory=lambda: {200: "As asked."})
    errors: tuple[type[errors.GridXError], ...] = ()

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The path as a regular expression with a named group for each part in braces."""
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path) + r"\Z")

    @property
    def path_names(self) -> list[str]:
        """The names of the parts in braces."""
        return re.findall(r"\{(\w+)\}", self.path)


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/jobs",
        endpoint=jobs.submit_job,
        scope=Scope.JOBS_WRITE,
        summary="Submit code. The same job_id sent again is the same job.",
        request=JobRequest,
        response=JobView,
        status={201: "A new job.", 200: "The job that was submitted under this id before."},
        errors=(
            errors.UnknownLanguage,
            errors.InsufficientCredits,
            errors.Conflict,
            errors.PayloadTooLarge,
            UnsupportedContent,
        ),
    ),
    Route(
        method="GET",
        path="/jobs",
        endpoint=jobs.list_jobs,
        scope=Scope.JOBS_READ,
        summary="List jobs, newest first.",
        query=jobs.JobsQuery,
        response=JobList,
    ),
    Route(
        method="GET",
        path="/jobs/{job_id}",
        endpoint=jobs.show_job,
        scope=Scope.JOBS_READ,
        summary="Show a job, with stdout and stderr as a terminal would show them.",
        response=JobDetail,
        errors=(errors.NotFound,),
    ),
    Route(
        method="POST",
        path="/jobs/{job_id}/cancel",
        endpoint=jobs.cancel_job,
        scope=Scope.JOBS_WRITE,
        summary="Stop a job. One that has ended stays as it is.",
        response=JobView,
        errors=(errors.NotFound,),
    ),
    Route(
        method="GET",
        path="/jobs/{job_id}/events",
        endpoint=jobs.stream_events,
        scope=Scope.JOBS_READ,
        summary="Follow a job as server-sent events, from any position on.",
        query=jobs.EventsQuery,
        content_type=EVENT_STREAM,
        errors=(errors.NotFound,),
    ),
    Route(
        method="POST",
        path="/blobs/missing",
        endpoint=blobs.list_missing,
        scope=Scope.JOBS_WRITE,
        summary="Which of these blobs the user has not put yet. Nobody else's are told of.",
        request=WantedBlobs,
        response=MissingBlobs,
        errors=(UnsupportedContent,),
    ),
    Route(
        method="PUT",
        path="/blobs/{digest}",
        endpoint=blobs.put_blob,
        scope=Scope.JOBS_WRITE,
        or_scope=Scope.WORKER,
        summary="Put a blob: up to 8 MiB of raw bytes, or one zstd frame of them"
        " (Content-Encoding: zstd). Putting it again changes nothing.",
        query=blobs.PutQuery,
        takes_bytes=True,
        response=BlobRef,
        status={200: "It is durable."},
        errors=(
            errors.BlobMismatch,
            errors.NotFound,
            errors.PayloadTooLarge,
            errors.StorageError,
            UnsupportedContent,
        ),
    ),
    Route(
        method="GET",
        path="/blobs/{digest}",
        endpoint=blobs.read_blob,
        scope=Scope.JOBS_READ,
        or_scope=Scope.WORKER,
        summary="Read a blob through a job that refers to it: one's own, or one that runs on the"
        " calling worker. With Accept-Encoding: zstd it may come packed.",
        query=blobs.ReadQuery,
        content_type=BYTES,
        errors=(errors.NotFound, errors.StorageError),
    ),
    Route(
        method="GET",
        path="/workers",
        endpoint=workers.list_workers,
        scope=Scope.JOBS_READ,
        summary="List the workers, with what they offer and what is free.",
        response=WorkerList,
    ),
    Route(
        method="GET",
        path="/credits/{user_id}",
        endpoint=accounts.show_credits,
        scope=Scope.JOBS_READ,
        summary="Show an account's balance, in credits.",
        response=AccountView,
        errors=(errors.NotFound,),
    ),
    Route(
        method="POST",
        path="/auth/register",
        endpoint=accounts.register,
        scope=Scope.PUBLIC,
        summary="Make an account with a password, or set the first password of one that has none.",
        request=Credentials,
        response=TokenView,
        status={201: "The account, and a token that is shown once."},
        errors=(errors.Conflict, UnsupportedContent),
    ),
    Route(
        method="POST",
        path="/auth/login",
        endpoint=accounts.log_in,
        scope=Scope.PUBLIC,
        summary="Exchange a password for a token.",
        request=Credentials,
        response=TokenView,
        errors=(errors.AuthError, UnsupportedContent),
    ),
    Route(
        method="GET",
        path="/health",
        endpoint=system.show_health,
        scope=Scope.PUBLIC,
        summary="Whether the coordinator serves.",
        response=Health,
    ),
    Route(
        method="GET",
        path="/status",
        endpoint=system.show_status,
        scope=Scope.PUBLIC,
        summary="The grid in numbers.",
        response=GridStatus,
    ),
    Route(
        method="GET",
        path="/metrics",
        endpoint=metrics.show_metrics,
        scope=Scope.PUBLIC,
        summary="Counters and gauges for Prometheus.",
        content_type=PLAIN_TEXT,
    ),
    Route(
        method="GET",
        path="/openapi.json",
        endpoint=system.show_openapi,
        scope=Scope.PUBLIC,
        summary="This description, for programs.",
        response=dict,
    ),
    Route(
        method="GET",
        path="/",
        endpoint=system.show_index,
        scope=Scope.PUBLIC,
        summary="A page that names these addresses.",
        content_type=HTML,
    ),
)


def find_routes(path: str) -> tuple[dict[str, Route], dict[str, str]]:
    """Return the routes of ``path`` by method, and the values of the parts in braces, decoded."""
    for route in ROUTES:
        if match := route.pattern.match(path):
            same = {r.method: r for r in ROUTES if r.path == route.path}
            return same, {name: unquote(part) for name, part in match.groupdict().items()}
    return {}, {}
