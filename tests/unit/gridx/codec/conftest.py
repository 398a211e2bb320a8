from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from . import sample_values


@pytest.fixture(autouse=True)
def notebook_main(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """``__main__`` holds the notebook's classes, on both sides."""
    main = sample_values.as_main()
    monkeypatch.setitem(sys.modules, "__main__", main)
    yield vars(main)
