"""`gridx-worker image`: build what is missing, print the tags, remove what is old."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gridx.errors import SandboxError

from .base import choose_base
from .build import progress_to_stderr
from .engine import Progress, engine_client
from .families import build_family, read_list
from .manifest import ImageInfo
from .names import checked_minor, current_python_minor
from .offered import ensure_images
from .prune import prune


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``gridx-worker image``."""
    made = argparse.ArgumentParser(
        prog="gridx-worker image",
        description="Build the sandbox images when this engine lacks them, and print their tags.",
    )
    made.add_argument(
        "--python",
        type=words,
        default=[current_python_minor()],
        metavar="MINORS",
        help=f"as 3.11,3.12; default: {current_python_minor()}",
    )
    made.add_argument(
        "--language",
        type=words,
        default=["python"],
        metavar="LANGUAGES",
        help="python, bash, node; default: python",
    )
    made.add_argument("--name", help="of an image of your own, as torch: needs --add")
    made.add_argument(
        "--add", type=Path, metavar="FILE", help="packages that it has besides, one a line"
    )
    made.add_argument(
        "--base",
        metavar="IMAGE",
        help="build on this image from now on; 'default' takes that back",
    )
    made.add_argument("--prune", action="store_true", help="only remove images of older versions")
    made.add_argument("--rebuild", action="store_true", help="build the last layer anew")
    made.add_argument("--json", action="store_true", help="print tag, id and manifest as JSON")
    return made


def words(text: str) -> list[str]:
    """Return the words of a list with commas, each once.

    >>> words("3.11, 3.12,3.11")
    ['3.11', '3.12']
    """
    return list(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gridx-worker image`; return its exit code."""
    options = parser().parse_args(argv)
    if (options.name is None) != (options.add is None):
        print(
            "--name and --add belong together: an image's name and its packages.", file=sys.stderr
        )
        return 2
    say = progress_to_stderr()
    try:
        api = engine_client()
        try:
            if options.prune:
                print("\n".join(prune(api, say, grace_s=0.0)) or "Nothing to remove.")
                return 0
            found = _build(api, options, say)
        finally:
            api.close()
    except SandboxError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 1
    if options.json:
        said = [msgspec.to_builtins(info) for info in found]
        print(json.dumps(said[0] if len(said) == 1 else said, indent=2))
    else:
        print("\n".join(info.tag for info in found))
    return 0


def _build(api: Any, options: argparse.Namespace, say: Progress) -> tuple[ImageInfo, ...]:
    minors = [checked_minor(minor) for minor in options.python]
    if options.base is not None:
        if len(minors) != 1:
            raise SandboxError(
                "One base has one Python.", hint="Name it with --python, such as --python 3.11."
            )
        choose_base(api, minors[0], options.base, say)
    if options.name is not None:
        added = read_list(options.add)
        return tuple(build_family(api, options.name, added, minor, say) for minor in minors)
    return ensure_images(
        api,
        pythons=minors,
        languages=options.language,
        rebuild=options.rebuild,
        progress=say,
    )
