"""Rich output made safe: what a worker sends is rebuilt here from an allow-list.

Each type that may be shown has its treatment (the table is in ``bundle``); everything else is
left out and named, so that the notebook can say so.
"""

from __future__ import annotations

from .bundle import SafeBundle, Show, safe_bundle
from .text import TextCleaner, clean_line, clean_text

__all__ = ["SafeBundle", "Show", "TextCleaner", "clean_line", "clean_text", "safe_bundle"]
