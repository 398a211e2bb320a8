"""``tqdm.notebook`` without its widgets: nothing on this side could fill them.

``tqdm.auto`` decides so by itself; a cell that asks for the notebook's bars by name gets those of
the terminal, which the notebook shows as one line that changes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Final

_NAME: Final = "tqdm.notebook"


class _TextBars(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(_NAME, self) if fullname == _NAME else None

    def exec_module(self, module: ModuleType) -> None:
        std = import_module("tqdm.std")
        vars(module).update(
            tqdm=std.tqdm, trange=std.trange, tqdm_notebook=std.tqdm, tnrange=std.trange
        )


def show_bars_as_text() -> None:
    """Have ``tqdm.notebook`` imported as described above."""
    sys.meta_path.insert(0, _TextBars())
