"""What a job lists under ``pip``: names and versions of the package index, and nothing else.

The coordinator checks a list when the job is submitted, and a worker checks it again before it
installs anything: a line of pip's can be an option, a folder, or an address that runs code.
"""

from __future__ import annotations

from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from .errors import InvalidRequest
from .schemas import MAX_REQUIREMENTS

MAX_REQUIREMENT_CHARS = 200
_HINT = "List names with versions, such as polars==1.20 or tqdm>=4."


def parse_requirements(lines: Iterable[str]) -> tuple[str, ...]:
    """Return ``lines`` in the one form in which equal lists are equal: normalised and sorted.

    >>> parse_requirements(["tqdm >= 4", "Polars==1.20"])
    ('polars==1.20', 'tqdm>=4')

    Raises:
        InvalidRequest: one is no name with versions, or two are of one distribution.
    """
    found: dict[str, str] = {}
    for count, line in enumerate(lines, 1):
        if count > MAX_REQUIREMENTS:
            raise InvalidRequest(
                f"The job lists more than {MAX_REQUIREMENTS} packages.",
                hint="List those that the code imports; what they need comes with them.",
            )
        name, text = _parse(line)
        if found.setdefault(name, text) != text:
            raise InvalidRequest(
                f"The packages list {name} twice: {found[name]} and {text}.",
                hint="Write both bounds into one, such as tqdm>=4,<5.",
                requirement=text,
            )
    return tuple(found[name] for name in sorted(found))


def _parse(line: str) -> tuple[str, str]:
    """Return the normalised name of one requirement, and the requirement in normal form."""
    text = line.strip()
    if len(text) > MAX_REQUIREMENT_CHARS:
        raise _refusal(text, f"has more than {MAX_REQUIREMENT_CHARS} characters")
    if not (text.isascii() and text.isprintable()):
        raise _refusal(text, "has characters that no requirement has")
    if text.startswith("-"):
        raise _refusal(text, "is an option of pip")
    if "://" in text or "@" in text:
        raise _refusal(text, "is an address")
    if text.startswith((".", "/", "~", "\\")) or "/" in text or "\\" in text:
        raise _refusal(text, "is a path")
    if ";" in text:
        raise _refusal(text, "has a condition")
    try:
        parsed = Requirement(text)
    except InvalidRequirement:
        raise _refusal(text, "is no name with versions") from None
    if any(specifier.operator == "===" for specifier in parsed.specifier):
        raise _refusal(text, "compares a version with ===")
    name = canonicalize_name(parsed.name)
    extras = ",".join(sorted(canonicalize_name(extra) for extra in parsed.extras))
    versions = ",".join(sorted(str(specifier) for specifier in parsed.specifier))
    return name, f"{name}[{extras}]{versions}" if extras else f"{name}{versions}"


def _refusal(text: str, why: str) -> InvalidRequest:
    shown = ascii(text[:80])
    return InvalidRequest(
        f"The package {shown} {why}: only names and versions from the package index are installed.",
        hint=_HINT,
        requirement=text[:MAX_REQUIREMENT_CHARS],
    )
