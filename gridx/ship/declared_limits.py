"""What differs elsewhere by nature, where a look at the cell and its values can tell.

docs/limits.md has the whole list. These sentences are for ``--dry-run`` and ``%gridx why``: most
cells that they are true of come to no harm.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

_SEEDED: Final = re.compile(r"\bseed\s*\(")
_GLOBAL_NUMPY: Final = re.compile(
    r"\b(?:np|numpy)\.random\.(?!default_rng|Generator|RandomState|SeedSequence|PCG64|MT19937)\w+"
)
_GLOBAL_RANDOM: Final = re.compile(
    r"(?<!\.)\brandom\.(?!Random\b|SystemRandom\b|default_rng)\w+\s*\("
)


def limits_of(source: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each declared limit that concerns the cell ``source``."""
    yield from _shared_memory(values)
    unordered = sorted(name for name, value in values.items() if type(value) in (set, frozenset))
    if unordered:
        yield f"the order of the set {unordered[0]} may be another one there: sort it where it matters"
    if "random" in source and not _SEEDED.search(source):
        for pattern, name in ((_GLOBAL_NUMPY, "numpy.random"), (_GLOBAL_RANDOM, "random")):
            if pattern.search(source):
                yield (
                    f"the numbers of {name} start anew there: seed them in the cell, or send a "
                    f"generator of your own"
                )


def _shared_memory(values: Mapping[str, Any]) -> Iterator[str]:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return
    by_memory: dict[int, list[str]] = {}
    seen: set[int] = set()
    for name in sorted(values):
        root = values[name]
        if type(root) is not numpy.ndarray or id(root) in seen:
            continue
        seen.add(id(root))
        while isinstance(root.base, numpy.ndarray):
            root = root.base
        by_memory.setdefault(id(root), []).append(name)
    for names in by_memory.values():
        if len(names) > 1:
            yield (
                f"{' and '.join(names[:2])} share memory here and are two arrays there: what the "
                f"cell writes into one does not show in the other"
            )
