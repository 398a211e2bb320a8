"""Uses a value as a notebook would: bad data that slipped through shows here."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pandas as pd

_MAX_CELLS = 10**6


def use(value: Any, depth: int = 0) -> None:
    """Look at ``value``, add it up, print it, write it, pickle it."""
    if isinstance(value, np.ma.MaskedArray):
        repr(value)
        value.filled()
    elif isinstance(value, np.ndarray):
        _use_array(value)
    elif isinstance(value, pd.DataFrame):
        repr(value)
        value.describe()
        value.to_csv()
        if not set(map(str, value.index.names)) & set(map(str, value.columns)):
            value.reset_index()
    elif isinstance(value, (pd.Series, pd.Index)):
        repr(value)
        value.astype(str)
        pickle.dumps(value)
    elif isinstance(value, pd.api.extensions.ExtensionArray):
        repr(value)
        value.astype(str)
    elif isinstance(value, np.vectorize):
        value(np.arange(3.0))
    elif isinstance(value, (io.BytesIO, io.StringIO)):
        value.read()
        value.write(value.getvalue()[:1])  # type: ignore[arg-type]  # of one type
    elif hasattr(value, "toarray"):
        _use_sparse(value)
    elif type(value).__module__.startswith("pyarrow"):
        value.to_pylist()
        value.validate(full=True)
    elif type(value).__module__.startswith("polars"):
        value.to_dicts()
    elif isinstance(value, BaseException):
        repr(value), str(value)
    elif isinstance(value, (list, tuple, set, frozenset)) and depth < 4:
        repr(value) if len(value) < 1_000 else None
        for part in list(value)[:200]:
            use(part, depth + 1)
    elif isinstance(value, dict) and depth < 4:
        repr(value) if len(value) < 1_000 else None
        for part in list(value.values())[:200]:
            use(part, depth + 1)
    elif type(value).__module__.startswith("sklearn"):
        repr(value)
        value.predict(np.ones((4, 3)))
    else:
        repr(value)
        if hasattr(value, "random"):
            value.random()
        elif hasattr(value, "getpixel"):
            value.convert("RGB").tobytes()


def _use_array(value: Any) -> None:
    repr(value)
    pickle.dumps(value)
    if value.dtype.kind in "iufc":
        value.sum()
        value.copy().sort()
    elif value.dtype.kind in "US":
        value.tolist()
    elif value.dtype.kind in "mM":
        value.astype(str)


def _use_sparse(value: Any) -> None:
    repr(value)
    if value.shape[0] * value.shape[1] < _MAX_CELLS:
        value.toarray()
    if value.shape[1] < _MAX_CELLS:
        value @ np.ones(value.shape[1])
    if max(value.shape) < _MAX_CELLS:
        value.tocsc().sum()
