"""How large the parts of a result are, roughly."""

from __future__ import annotations

import numpy as np
import pandas as pd

from worker.runtime.sizes import largest, size_of


class Moody:
    """Answers nothing that it is asked."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)


def test_the_largest_are_named_first() -> None:
    parts = {"small": 1, "array": np.zeros(1000), "frame": pd.DataFrame({"x": range(5000)})}
    parts |= {"text": "x" * 20_000, "odd": Moody()}
    assert [name for name, _ in largest(parts)] == ["frame", "text", "array"]
    assert [name for name, _ in largest(parts, 9)] == ["frame", "text", "array"]  # worth naming
    assert largest({}) == []


def test_containers_count_what_they_hold_and_arrays_are_not_touched() -> None:
    assert size_of([np.zeros(1000)] * 3) > 24_000
    assert size_of({"a": [np.zeros(1000)]}) > 8_000
    assert size_of(np.broadcast_to(np.zeros(1), (1 << 20,))) == 8 << 20
    assert size_of(memoryview(b"x" * 500)) == 500
    assert size_of(Moody()) == 0
