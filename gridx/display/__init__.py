"""Rich output made safe: what a worker sends is rebuilt here from an allow-list.

Plain text, PNG and JPEG pass, the text without terminal control sequences; everything else is
left out and named, so that the notebook can say so.
"""

from __future__ import annotations

from .bundle import SafeBundle, safe_bundle
from .text import TextCleaner, clean_line, clean_text

__all__ = ["SafeBundle", "TextCleaner", "clean_line", "clean_text", "safe_bundle"]
