"""Lines that run first in every remote cell: ``%gridx prelude``.

What libraries keep to themselves does not travel with variables: seeds, plotting settings,
options. ``--state`` writes those that differ from the defaults as lines of the prelude.
"""

from __future__ import annotations

import random
import sys
from types import ModuleType
from typing import Any

from gridx.ship.analysis import transform


class Prelude:
    """The lines of this kernel."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.state: list[str] = []

    @property
    def text(self) -> str:
        """What runs before the cell; empty when there is none."""
        return "\n".join([*self.state, *self.lines])

    @property
    def names(self) -> frozenset[str]:
        """What the lines bind, there."""
        from gridx.ship.analysis import analyze

        return frozenset(analyze(self.text).writes)

    def add(self, line: str) -> None:
        """Add one line. Raises SyntaxError when it is not Python."""
        compile(transform(line), "<prelude>", "exec", dont_inherit=True)
        self.lines.append(line)

    def clear(self) -> None:
        """Forget all lines."""
        self.lines.clear()
        self.state.clear()

    def take_state(self, namespace: dict[str, Any]) -> None:
        """Write the state of libraries here, as it is now, as lines."""
        self.state = [*_random_lines(namespace), *_option_lines()]


def _names(namespace: dict[str, Any], module: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and any(
        value is found or getattr(value, "__module__", None) == module
        for value in namespace.values()
        if isinstance(value, ModuleType) or callable(value)
    )


def _random_lines(namespace: dict[str, Any]) -> list[str]:
    """Return the generators' states, of those that the notebook has its hands on."""
    lines = []
    if _names(namespace, "random"):
        lines += ["import random as __random", f"__random.setstate({random.getstate()!r})"]
    numpy = sys.modules.get("numpy")
    if numpy is not None and any(value is numpy for value in namespace.values()):
        kind, keys, at, has_gauss, gauss = numpy.random.get_state()
        state = (str(kind), keys.tolist(), int(at), int(has_gauss), float(gauss))
        lines += ["import numpy as __numpy", f"__numpy.random.set_state({state!r})"]
    return lines


def _option_lines() -> list[str]:
    """Return the settings of loaded libraries that differ from the libraries' defaults."""
    lines: list[str] = []
    matplotlib: Any = sys.modules.get("matplotlib")
    if matplotlib is not None:
        defaults = matplotlib.rcParamsDefault
        changed = {
            key: value
            for key, value in matplotlib.rcParams.items()
            if key in defaults and value != defaults[key] and key != "backend" and _is_plain(value)
        }
        if changed:
            lines += [
                "import matplotlib as __matplotlib",
                f"__matplotlib.rcParams.update({changed!r})",
            ]
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None:
        settings = pandas._config.config
        for key, option in getattr(settings, "_registered_options", {}).items():
            if key in getattr(settings, "_deprecated_options", {}):
                continue
            value = pandas.get_option(key)
            if value != option.defval and _is_plain(value):
                lines.append(f"__pandas.set_option({key!r}, {value!r})")
        if lines and lines[-1].startswith("__pandas"):
            at = next(n for n, line in enumerate(lines) if line.startswith("__pandas"))
            lines.insert(at, "import pandas as __pandas")
    decimal: Any = sys.modules.get("decimal")
    if decimal is not None:
        context = decimal.getcontext()
        if (context.prec, context.rounding) != (28, decimal.ROUND_HALF_EVEN):
            lines += [
                "import decimal as __decimal",
                f"__decimal.getcontext().prec = {context.prec}",
                f"__decimal.getcontext().rounding = {context.rounding!r}",
            ]
    return lines


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
