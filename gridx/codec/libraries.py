"""The only libraries that decoding may import, and only when a value needs them."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

from .failures import LibraryMissing

_KNOWN: Final = {
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "pyarrow.compute": "pyarrow",
    "polars": "polars",
    "scipy.sparse": "scipy",
    "PIL.Image": "pillow",
    "torch": "torch",
    "sklearn": "scikit-learn",
    **{
        f"sklearn.{name}": "scikit-learn"
        for name in (
            "cluster",
            "decomposition",
            "discriminant_analysis",
            "dummy",
            "impute",
            "linear_model",
            "mixture",
            "naive_bayes",
            "pipeline",
            "preprocessing",
            "svm",
        )
    },
}


def load(name: str) -> Any:
    """Return the library ``name`` of the fixed table.

    Raises:
        LibraryMissing: it is not installed here.
    """
    if name not in _KNOWN:
        raise AssertionError(f"{name} is not in the table")
    try:
        return importlib.import_module(name)
    except ImportError:
        raise LibraryMissing(_KNOWN[name]) from None


def loaded(name: str) -> Any:
    """Return the library ``name`` when this process has loaded it, else None."""
    return sys.modules.get(name)
