"""The bus of one process: publishing is a call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


class _Subscription:
    __slots__ = ("_bus", "_subject", "receive")

    def __init__(self, bus: InProcessBus, subject: str, receive: Callable[[Any], None]) -> None:
        self._bus, self._subject, self.receive = bus, subject, receive

    def close(self) -> None:
        self._bus.drop(self._subject, self)


class InProcessBus:
    """Subscribers are called one after the other, in the order in which they came."""

    def __init__(self) -> None:
        self._subscribers: dict[str, list[_Subscription]] = {}

    def publish(self, subject: str, message: Any) -> None:
        """Call every subscriber of ``subject``; one that fails does not hurt its neighbours."""
        for subscription in tuple(self._subscribers.get(subject, ())):
            try:
                subscription.receive(message)
            except Exception:
                _log.exception("A subscriber failed", extra={"action": "bus.subscriber_failed"})

    def subscribe(self, subject: str, receive: Callable[[Any], None]) -> _Subscription:
        """Subscribe until the subscription is closed."""
        subscription = _Subscription(self, subject, receive)
        self._subscribers.setdefault(subject, []).append(subscription)
        return subscription

    def drop(self, subject: str, subscription: _Subscription) -> None:
        """End one subscription; a subject without subscribers is forgotten."""
        left = [s for s in self._subscribers.get(subject, ()) if s is not subscription]
        if left:
            self._subscribers[subject] = left
        else:
            self._subscribers.pop(subject, None)

    def has_subscribers(self, subject: str) -> bool:
        """Return whether anybody listens to ``subject``."""
        return subject in self._subscribers
