from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from .fresh_process import FreshProcesses
from .homecoming import Grid


@pytest.fixture(scope="session")
def fresh() -> Iterator[FreshProcesses]:
    processes = FreshProcesses()
    yield processes
    processes.close()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The namespace of a notebook, which is ``__main__`` as in a kernel."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    namespace = vars(main)
    namespace["__builtins__"] = __builtins__
    namespace["huge_unrelated"] = bytearray(10**6)
    return namespace


@pytest.fixture
def grid(notebook: dict[str, Any], fresh: FreshProcesses) -> Grid:
    return Grid(notebook, fresh)
