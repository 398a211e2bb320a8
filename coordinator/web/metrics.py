"""``GET /metrics``: counters and gauges in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gridx.clock import monotonic_s
from gridx.resources import PauseReason

from ..services import views
from .base import Call, Reply

if TYPE_CHECKING:
    from .context import Context

_Samples = Iterable[tuple[str, float]]


def _family(name: str, kind: str, text: str, samples: _Samples) -> list[str]:
    lines = [f"# HELP gridx_{name} {text}", f"# TYPE gridx_{name} {kind}"]
    return lines + [f"gridx_{name}{labels} {value:.10g}" for labels, value in samples]


def _by(label: str, counts: Iterable[tuple[str, int]]) -> _Samples:
    return [(f'{{{label}="{value}"}}', count) for value, count in sorted(counts)]


def _pauses(context: Context) -> Counter[str]:
    """Count the paused workers by reason; each reason is there, so that a rate can be made."""
    counts = Counter({reason.value: 0 for reason in PauseReason})
    for link in context.connections.workers():
        if (pause := link.worker.capability.pause) is not None:
            counts[pause.reason.value] += 1
    return counts


async def show_metrics(context: Context, call: Call) -> Reply:
    """Return every counter and gauge."""
    from .routes import PLAIN_TEXT  # the table names this function

    jobs = await context.store.read(views.count_jobs)
    count = context.counters
    live = [("queued", jobs.queued), ("running", jobs.running)]
    lines = [
        *_family("jobs", "gauge", "Jobs that have not ended, by state.", _by("state", live)),
        *_family("workers_online", "gauge", "Connected workers.", [("", len(context.connections))]),
        *_family(
            "workers_paused",
            "gauge",
            "Connected workers that take no job for now, by why.",
            _by("reason", _pauses(context).items()),
        ),
        *_family(
            "attempts_frozen",
            "gauge",
            "Attempts that stand still while their lender pauses.",
            [("", sum(1 for output in context.outputs.live() if output.frozen))],
        ),
        *_family("jobs_submitted_total", "counter", "New jobs.", [("", count.submitted)]),
        *_family("attempts_dispatched_total", "counter", "Attempts.", [("", count.dispatched)]),
        *_family("jobs_ended_total", "counter", "Ended jobs.", _by("state", count.ended.items())),
        *_family("attempts_requeued_total", "counter", "Requeued.", [("", count.requeued)]),
        *_family("refused_total", "counter", "Refusals.", _by("code", count.refused.items())),
        *_family("output_bytes_total", "counter", "Output taken in.", [("", count.output_bytes)]),
        *_family("blob_bytes_in_total", "counter", "Blobs put.", [("", count.blob_bytes_in)]),
        *_family("blob_bytes_out_total", "counter", "Blobs read.", [("", count.blob_bytes_out)]),
        *_family(
            "submit_to_start_seconds",
            "summary",
            "From a submission to its start being sent, for jobs placed at once.",
            [("_sum", count.submit_to_start_s), ("_count", count.placed_at_once)],
        ),
        *_family(
            "report_to_settled_seconds",
            "summary",
            "From a worker's report to its settlement.",
            [("_sum", count.report_to_settled_s), ("_count", count.settled)],
        ),
        *_family("uptime_seconds", "gauge", "Up.", [("", monotonic_s() - context.started_s)]),
    ]
    return Reply(text="\n".join(lines) + "\n", content_type=PLAIN_TEXT)
