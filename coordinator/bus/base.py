"""What a bus promises.

A message is delivered at most once, in the order of publishing, to whoever is subscribed at that
moment. Nobody may rely on it: the database decides, the bus only hints, and every reader can
recover from the log. Subjects are ``job.<job id>`` (frames and state of one job).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Subscription(Protocol):
    """An open subscription."""

    def close(self) -> None:
        """Deliver nothing more. Closing twice is allowed."""


class Bus(Protocol):
    """Publish and subscribe by subject."""

    def publish(self, subject: str, message: Any) -> None:
        """Hand ``message`` to everybody who is subscribed to ``subject`` now."""

    def subscribe(self, subject: str, receive: Callable[[Any], None]) -> Subscription:
        """Call ``receive`` with each message of ``subject`` until the subscription is closed.

        ``receive`` must not block: it is called inside ``publish``.
        """

    def has_subscribers(self, subject: str) -> bool:
        """Return whether anybody here listens to ``subject``: what nobody hears is not made."""


def job_subject(job_id: str) -> str:
    """Return the subject of one job's frames and states."""
    return f"job.{job_id}"
