"""Whether the images on the grid have the packages that a cell needs, before anything is sent.

Modules that the payload refers to and the cell's own imports are mapped to distributions of this
environment, and compared with the manifests of the images. The standard library and the user's
own modules are left out. What is imported perhaps only warns.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from ..resources import Image
from .refusal import MissingModules

if TYPE_CHECKING:
    from .capture import Captured

# Of the runtime itself; never a package of the image.
_OURS: Final = frozenset({"gridx", "gridx_jupyter", "__main__", "__mp_main__", "builtins"})


class Distribution(NamedTuple):
    """An installed distribution: its normalised name (PEP 503) and its version."""

    name: str
    version: str


FindDistributions = Callable[[str], tuple[Distribution, ...]]


@dataclass(frozen=True, slots=True)
class Findings:
    """What images lack for a cell."""

    missing: tuple[str, ...] = ()
    """One sentence for each package that no image has."""
    notes: tuple[str, ...] = ()
    """What may go wrong, one sentence each."""
    packages: tuple[Distribution, ...] = ()
    """The packages of ``missing``, as they are installed here."""
    builds: bool = False
    """A worker would install them for the cell."""
    family: str = ""
    """Another image that has all of them."""

    def error(self) -> MissingModules | None:
        """Return the refusal, or None when an image fits."""
        if not self.missing:
            return None
        wanted = " ".join(f"'{part.name}=={part.version}'" for part in self.packages)
        ways = []
        if self.builds:
            plain = " ".join(f"{part.name}=={part.version}" for part in self.packages)
            ways.append(f"Have it installed there: --pip {plain}")
        if self.family:
            ways.append(f"{'use' if ways else 'Use'} the image that has it: --image {self.family}")
        if ways:
            return MissingModules(
                " ".join(self.missing),
                hint="; or ".join(ways) + "; or leave the variable out with --without NAME; or run "
                "the cell without %%gridx.",
                packages=[f"{part.name}=={part.version}" for part in self.packages],
            )
        return MissingModules(
            " ".join(self.missing),
            hint=f"Put a pure-Python package beside the notebook, from where it travels: "
            f"`pip install --no-deps --target . {wanted}` and restart the kernel; or leave the "
            f"variable out with --without NAME; or run the cell without %%gridx.",
            packages=[f"{part.name}=={part.version}" for part in self.packages],
        )


def check(
    captured: Captured,
    images: Iterable[Image],
    *,
    pip: Iterable[str] = (),
    builds: bool = False,
    others: Iterable[Image] = (),
    find_distributions: FindDistributions | None = None,
) -> Findings:
    """Compare what ``captured`` needs with what ``images`` hold.

    Args:
        captured: the cell.
        images: those that could serve it (gridx.ship.offers). Images of another Python version,
            or without a manifest, say nothing.
        pip: what is installed for the cell: there, with all that it needs.
        builds: whether a worker would install more.
        others: images that could be asked for instead.
        find_distributions: the distributions that bring a top-level module here; none when it
            is not installed.
    """
    find = find_distributions or installed_distributions
    fitting = _fitting(captured, images)
    asked = _asked_for(pip)
    notes = [note for name, text in asked.items() if (note := _pip_note(name, text))]
    if not fitting:
        return Findings(notes=tuple(notes))
    if asked:
        installed = dict.fromkeys(_with_what_they_need(asked), "")
        fitting = [_with(image, installed) for image in fitting]
    needed = _roots({*captured.modules, *captured.imports}, captured)
    perhaps = _roots(captured.optional_imports, captured) - needed
    by_root = {root: found for root in needed | perhaps if (found := find(root))}
    lacks = {
        image.name: {root for root in needed & by_root.keys() if _is_lacking(by_root[root], image)}
        for image in fitting
    }
    notes += _version_notes({root: by_root[root] for root in needed & by_root.keys()}, fitting)
    for root in sorted(perhaps & by_root.keys()):
        without = [image.name for image in fitting if _is_lacking(by_root[root], image)]
        if len(without) == len(fitting):
            notes.append(
                f"the cell may import {root}, which {_images(without)} {_lack(without)}: it fails "
                f"there if it does"
            )
    if not all(lacks.values()):
        for name, roots in sorted(lacks.items()):
            if roots:
                notes.append(f"{name} lacks {_and(sorted(roots))}; another image has all")
        return Findings(notes=tuple(notes))
    # Of several images the one that lacks least says what is missing.
    least = min(lacks.values(), key=lambda roots: (len(roots), sorted(roots)))
    return Findings(
        missing=tuple(_sentence(root, by_root[root], captured, lacks) for root in sorted(least)),
        notes=tuple(notes),
        packages=tuple(by_root[root][0] for root in sorted(least)),
        builds=builds,
        family=next(
            (
                other.family
                for other in _fitting(captured, others)
                if not any(_is_lacking(by_root[root], other) for root in least)
            ),
            "",
        ),
    )


def is_there(requirement: str, image: Image) -> bool:
    """Return whether ``image`` has what one line of ``--pip`` asks for."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    version = image.packages.get(_normalized(parsed.name))
    return version is not None and parsed.specifier.contains(version, prereleases=True)


def _asked_for(pip: Iterable[str]) -> dict[str, str]:
    """Return each requirement of ``pip`` by the normalised name of its distribution."""
    pip = tuple(pip)
    if not pip:
        return {}
    from packaging.requirements import Requirement

    return {_normalized(Requirement(text).name): text for text in pip}


def _pip_note(name: str, text: str) -> str:
    from packaging.requirements import Requirement

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    if Requirement(text).specifier.contains(version, prereleases=True):
        return ""
    return f"{name} is {version} here and --pip asks for {text}: their results may differ"


def _with_what_they_need(names: Iterable[str]) -> set[str]:
    """Return ``names`` and the distributions that they need, as far as they are installed here."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in needs:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(_normalized(need.name))
    return found


def _with(image: Image, packages: Mapping[str, str]) -> Image:
    """Return ``image`` with ``packages``, whose versions nobody knows yet, put into it."""
    return msgspec.structs.replace(image, packages={**image.packages, **packages})


def _fitting(captured: Captured, images: Iterable[Image]) -> list[Image]:
    found = {
        image.name: image
        for image in images
        if image.language == "python"
        and image.packages
        and (image.python == captured.python or not captured.has_code)
    }
    return list(found.values())


def _roots(modules: Iterable[str], captured: Captured) -> set[str]:
    roots = {name.partition(".")[0] for name in modules}
    return roots - sys.stdlib_module_names - _OURS - captured.user_modules


def _is_lacking(found: tuple[Distribution, ...], image: Image) -> bool:
    return not any(part.name in image.packages for part in found)


def _sentence(
    root: str,
    found: tuple[Distribution, ...],
    captured: Captured,
    lacks: Mapping[str, set[str]],
) -> str:
    variables = {
        variable
        for module, variable in captured.needed_by.items()
        if module.partition(".")[0] == root
    }
    who = f"Variable {min(variables)!r}" if variables else "This cell"
    what = f"{found[0].name} {found[0].version}"
    names = sorted(name for name, roots in lacks.items() if root in roots)
    return f"{who} needs {what}, which {_images(names)} {_lack(names)}."


def _version_notes(
    found: Mapping[str, tuple[Distribution, ...]], images: list[Image]
) -> Iterable[str]:
    for root in sorted(found):
        if len(found[root]) != 1:
            continue  # several distributions share that module: which it is, nobody can tell
        name, version = found[root][0]
        there = {image.packages[name] for image in images if image.packages.get(name)}
        if there and all(_major(other) != _major(version) for other in there):
            yield (
                f"{name} is {version} here and {_and(sorted(there))} in the image: their results "
                f"may differ"
            )


def _major(version: str) -> str:
    # Before 1.0 the second number is the one that breaks.
    numbers = re.findall(r"\d+", version)
    return ".".join(numbers[:2]) if numbers[:1] == ["0"] else (numbers or [version])[0]


def _images(names: list[str]) -> str:
    return f"the image {names[0]}" if len(names) == 1 else f"the images {_and(names)}"


def _lack(names: list[str]) -> str:
    return "lacks" if len(names) == 1 else "lack"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


_found: Final[dict[str, tuple[Distribution, ...]]] = {}


def installed_distributions(root: str) -> tuple[Distribution, ...]:
    """Return what brings the top-level module ``root`` here; nothing when it is not installed."""
    # What is not there may be installed while the kernel runs.
    if root not in _found and (found := _find_distributions(root)):
        _found[root] = found
    return _found.get(root, ())


def _find_distributions(root: str) -> tuple[Distribution, ...]:
    name = _normalized(root)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if version and _is_importable(root):
        return (Distribution(name, version),)
    found = []
    for other in dict.fromkeys(_names_by_module().get(root, ())):
        try:
            version = importlib.metadata.version(other)
        except importlib.metadata.PackageNotFoundError:
            continue  # a leftover of what was removed
        found.append(Distribution(_normalized(other), version))
    return tuple(found)


def _is_importable(root: str) -> bool:
    if root in sys.modules:
        return True
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return False


@functools.cache
def _names_by_module() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
