"""Modules that lie beside the notebook: they travel by value, because no image has them."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import cloudpickle

_INSTALLED: Final = tuple(
    {
        str(Path(place).resolve())
        for place in (
            *sysconfig.get_paths().values(),
            sys.prefix,
            sys.base_prefix,
            sys.exec_prefix,
        )
    }
    | {str(Path(sys.prefix) / "lib")}
)
# A temporary file of the kernel is a cell, not a module.
_OURS: Final = frozenset(
    {"gridx", "gridx_jupyter", "coordinator", "worker", "__main__", "__mp_main__"}
)


class LocalModules:
    """The modules of the user that are loaded now."""

    def __init__(self, files: list[ModuleType], packages: frozenset[str]) -> None:
        self.files = files
        self.packages = packages

    def notes(self, sent: set[str]) -> tuple[str, ...]:
        """Return a sentence for each local module among ``sent``."""
        names = {module.__name__ for module in self.files}
        found = [
            f"{name}.py travels as it is loaded now; restart the kernel after you edit it."
            for name in sorted(sent & names)
        ]
        roots = {name.partition(".")[0] for name in sent}
        found += [
            f"The package {name} lies beside the notebook and does not travel: "
            f"put it into the image, or its code into a cell."
            for name in sorted(roots & self.packages)
        ]
        return tuple(found)


@contextmanager
def by_value() -> Iterator[LocalModules]:
    """Within, single-file modules of the user are pickled by value."""
    local = _find()
    registered = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in local.files if module.__name__ not in registered]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield local
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


_installed: set[str] = set()
"""Names of modules that were looked at and are nobody's own: hundreds, and looked at each time."""


def _find() -> LocalModules:
    files: list[ModuleType] = []
    packages: set[str] = set()
    for name in [name for name in list(sys.modules) if name not in _installed]:
        module = sys.modules.get(name)
        root = name.partition(".")[0]
        file = getattr(module, "__file__", None)
        is_alias = name != getattr(module, "__name__", None)
        is_file = isinstance(file, str) and file.endswith(".py")
        if module is None or root in _OURS or is_alias or not is_file or _is_installed(file):
            _installed.add(name)
            continue
        if "." in name or hasattr(module, "__path__"):
            packages.add(root)
        else:
            files.append(module)
    return LocalModules(files, frozenset(packages))


def _is_installed(file: str | None) -> bool:
    return file is not None and (
        file.startswith(_INSTALLED) or "site-packages" in file or "dist-packages" in file
    )
