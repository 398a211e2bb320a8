"""Every benchmark, one table after the other: ``make bench`` or ``python -m bench``."""

from __future__ import annotations

from . import blobs, cell, interrupt, memory, sandbox

cell.main([])
print()
blobs.main([])
print()
memory.main([])
print()
interrupt.main([])
print()
sandbox.main([])
