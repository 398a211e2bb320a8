"""Names in the strings of pickled values, for libraries that evaluate them when they unpickle."""

from __future__ import annotations

import io
import pickletools
from typing import Final

from .analysis import names_in_text

FORMULA_LIBRARIES: Final = frozenset(
    {"patsy", "statsmodels", "formulaic", "formulae", "bambi", "lifelines", "linearmodels"}
)
_MAX_BYTES: Final = 32 << 20


def names_in_pickles(stream: memoryview) -> frozenset[str]:
    """Return the identifiers in the strings of the pickles in ``stream``.

    Empty for a stream so long that looking through it would take seconds.
    """
    if len(stream) > _MAX_BYTES:
        return frozenset()
    found: set[str] = set()
    file = io.BytesIO(stream)
    while file.tell() < len(stream):
        for opcode, argument, _ in pickletools.genops(file):
            if isinstance(argument, str) and "UNICODE" in opcode.name:
                found |= names_in_text(argument)
    return frozenset(found)
