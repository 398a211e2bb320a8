"""Writes docs/reference/errors.md from the error classes: python -m tests.support.error_reference"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

from gridx.errors import GridXError, error_classes

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
_PACKAGES = ("gridx", "coordinator", "worker", "gridx_jupyter")
# Programs, what runs in the container, and what Alembic loads by itself.
_NOT_IMPORTED = (".main", ".runtime", ".migrations")

_HEAD = """\
# Errors

Every refusal of Grid-X has a code for programs, a sentence for people, and a hint that says what
to do next. The code never changes; the sentence may. Over REST it comes as

```json
{"error": {"code": "not_found", "message": "…", "hint": "…", "details": {}}, "detail": "…"}
```

and in Python as the class, found again by its code. This page is written from the classes
(`python -m tests.support.error_reference`), and a test compares both.
"""


def all_error_classes() -> dict[str, type[GridXError]]:
    """Return every error class of the four packages by its code."""
    for package in _PACKAGES:
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not any(part in found.name for part in _NOT_IMPORTED):
                importlib.import_module(found.name)
    return error_classes()


def section(cls: type[GridXError]) -> str:
    """Return what the page says of one class."""
    first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    parent = cls.__mro__[1]
    kind = f" A kind of `{parent.code}`." if parent not in (GridXError, Exception) else ""
    return (
        f"## {cls.code}\n\n{first}{kind}\n\n"
        f"Class `{cls.__module__}.{cls.__qualname__}`. Hint, unless the place knows a better one:"
        f" {cls.default_hint}\n"
    )


def render() -> str:
    """Return the page as the classes have it."""
    classes = all_error_classes()
    return "\n".join([_HEAD, *(section(classes[code]) for code in sorted(classes))])


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
