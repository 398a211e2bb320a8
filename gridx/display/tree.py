"""JSON of a worker: a tree that a page can show without effort."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from ..resources import MIB
from .text import clean_text

MAX_JSON_CHARS: Final = MIB
MAX_DEPTH: Final = 60
MAX_NODES: Final = 50_000
_EXACT_IN_A_PAGE: Final = 1 << 53


class TreeRefused(ValueError):
    """Why the tree is not shown, as the end of a sentence."""


def safe_tree(text: str) -> Any:
    """Return the value of a JSON text, with clean strings and numbers that a page reads exactly.

    Raises:
        TreeRefused: it is no JSON, too large, too deep, or has too many parts.
    """
    if len(text) > MAX_JSON_CHARS:
        raise TreeRefused(f"it has {len(text):,} characters, at most {MAX_JSON_CHARS:,} are shown")
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise TreeRefused("it is nested too deeply") from None
    except ValueError:
        raise TreeRefused("its text is not JSON") from None
    room = [MAX_NODES]
    return _clean(value, 0, room)


def _whole(digits: str) -> int | str:
    if len(digits) > 17:  # int() of very many digits takes its time
        return digits
    number = int(digits)
    return number if abs(number) < _EXACT_IN_A_PAGE else digits


def _clean(value: Any, depth: int, room: list[int]) -> Any:
    room[0] -= 1
    if room[0] < 0:
        raise TreeRefused(f"it has more than {MAX_NODES:,} parts")
    if depth > MAX_DEPTH:
        raise TreeRefused("it is nested too deeply")
    if isinstance(value, dict):
        return {clean_text(key): _clean(each, depth + 1, room) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each, depth + 1, room) for each in value]
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
