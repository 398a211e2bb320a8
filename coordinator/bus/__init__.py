"""Hints and live frames between the parts of the coordinator; losing every one is harmless."""

from __future__ import annotations

from .base import Bus, Subscription
from .in_process import InProcessBus

__all__ = ["Bus", "InProcessBus", "Subscription"]
