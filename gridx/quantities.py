"""Sizes, times and GPUs as people type and read them: ``2G``, ``90``, ``1h30m``, ``2:A100``."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import InvalidRequest
from .resources import GIB, KIB, MIB

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*\Z", re.IGNORECASE)
_UNIT_BYTES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}
_TIME = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?)h)?\s*(?:(\d+(?:\.\d+)?)m)?\s*(?:(\d+(?:\.\d+)?)s?)?\s*\Z",
    re.IGNORECASE,
)


class Gpus(NamedTuple):
    """How many GPUs, and a part of the name that each must have; "": any."""

    number: int
    model: str = ""


def parse_gpus(text: str) -> Gpus:
    """Return what ``text`` asks for: a number, a model, or both.

    >>> parse_gpus("2"), parse_gpus("A100"), parse_gpus("2:A100")
    (Gpus(number=2, model=''), Gpus(number=1, model='A100'), Gpus(number=2, model='A100'))

    Raises:
        InvalidRequest: it is none of these.
    """
    number, colon, model = text.partition(":")
    if not colon and not text.isdecimal():
        number, model = "1", text
    is_model = bool(re.fullmatch(r"[A-Za-z0-9][\w .+-]{0,63}", model)) if model else not colon
    if not text or not number.isdecimal() or not is_model:
        raise InvalidRequest(
            f"{text!r} asks for no GPU.", hint="Write a number, a model, or both: 2, A100, 2:A100."
        )
    if int(number) > 64 or (model and int(number) == 0):
        raise InvalidRequest(
            f"{text!r} is more than 64 GPUs, or none of a model.",
            hint="Ask for 1 to 64; a model that is a number is written 1:4090.",
        )
    return Gpus(int(number), model)


def parse_size(text: str) -> int:
    """Return ``text`` in bytes; K, M, G and T are binary units.

    >>> parse_size("512M"), parse_size("1.5 GiB")
    (536870912, 1610612736)

    Raises:
        InvalidRequest: ``text`` is not a size, or is 0.
    """
    match = _SIZE.match(text)
    size = int(float(match[1]) * _UNIT_BYTES[match[2].upper()]) if match else 0
    if size <= 0:
        raise InvalidRequest(
            f"{text!r} is not a size.", hint="Write bytes with a unit: 512M, 2G or 1.5GiB."
        )
    return size


def parse_duration(text: str) -> float:
    """Return ``text`` in seconds.

    >>> parse_duration("90"), parse_duration("10m"), parse_duration("1h30m")
    (90.0, 600.0, 5400.0)

    Raises:
        InvalidRequest: ``text`` is not a time, or is 0.
    """
    match = _TIME.match(text)
    hours, minutes, seconds = match.groups() if match else (None, None, None)
    total_s = float(hours or 0) * 3600 + float(minutes or 0) * 60 + float(seconds or 0)
    if total_s <= 0:
        raise InvalidRequest(
            f"{text!r} is not a time.", hint="Write seconds or units: 90, 10m, 1h or 1h30m."
        )
    return total_s


def format_duration(seconds: float) -> str:
    """Return ``seconds`` for people.

    >>> format_duration(0.0421), format_duration(75), format_duration(5400)
    ('42 ms', '1m15s', '1h30m')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"
