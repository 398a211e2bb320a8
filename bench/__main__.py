"""Every benchmark, one table after the other: ``make bench`` or ``python -m bench``."""

from __future__ import annotations

from . import cell, interrupt, memory

cell.main([])
print()
memory.main([])
print()
interrupt.main([])
