"""A log as a stranger may read it: why it failed, and nothing of the lender's machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

LOG_BYTES: Final = 4096

# Escapes of terminals: CSI, OSC (ended by BEL or ST), and those of two or three characters.
_ESCAPES: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")
_UNPRINTABLE: Final = re.compile(
    r"[^\n\t\x20-\x7e\u00a0-\u1fff\u2010-\u2027\u2030-\u205e\u3000-\ud7ff]"
)
_TELLING: Final = re.compile(
    r"^(\s*(Collecting|Downloading|Using cached|Processing|Saved|Obtaining) .*"
    r"|.*(Looking in (indexes|links)|Location .* is ignored|notice\]|pip config|Using (proxy|cert)).*)$\n?",
    re.MULTILINE | re.IGNORECASE,
)
# Every repetition is bounded: what a package is called must not make this take long.
_ADDRESS: Final = re.compile(r"\b[a-z][a-z0-9+.-]{0,30}:/{1,3}\S+", re.IGNORECASE)
_HOST: Final = re.compile(
    r"\bhost(name)?=['\"]?[^\s'\",)]+['\"]?|\b[\w.-]{1,100}:\d{2,5}\b|[^\s:]{1,100}:\S{1,100}@\S+",
    re.IGNORECASE,
)
_IP: Final = re.compile(
    r"(?<![=<>~.\d])\b\d{1,3}(\.\d{1,3}){3}\b(:\d+)?|\[?[0-9a-f]{0,4}(:[0-9a-f]{0,4}){3,7}\]?"
)
_PATH: Final = re.compile(r"(?<![\w.])(~|[A-Za-z]:)?[/\\]([\w.+@%~-]+[/\\])*[\w.+@%~-]+")


def cleaned(log: str, secrets: Iterable[str] = (), *, limit_bytes: int = LOG_BYTES) -> str:
    """Return the end of ``log`` without terminal escapes, addresses, hosts and paths.

    Args:
        log: as a program wrote it.
        secrets: words that must not appear whatever surrounds them: names of hosts and accounts.
        limit_bytes: of the answer, as UTF-8.
    """
    text = _ESCAPES.sub("", log[-4 * limit_bytes :].replace("\r\n", "\n").replace("\r", "\n"))
    text = _UNPRINTABLE.sub("", text)
    text = _TELLING.sub("", text)
    text = _ADDRESS.sub("<address>", text)
    text = _HOST.sub("<address>", text)
    text = _IP.sub("<address>", text)
    text = _PATH.sub("<path>", text)
    for secret in sorted({word for word in secrets if len(word) > 2}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "<hidden>", text, flags=re.IGNORECASE)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    tail = "\n".join(lines).encode()[-limit_bytes:]
    return tail.decode(errors="ignore")
