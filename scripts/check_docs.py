"""Check the docs without a network: every local link, named `make` target and test is there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TARGET: Final = re.compile(r"`make ([a-z-]+)`|^make ([a-z-]+)", re.MULTILINE)
# `tests/acceptance/test_x.py`, or one test of it: `tests/acceptance/test_x.py::test_that`
TEST: Final = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def pages(repository: Path) -> list[Path]:
    """Return the Markdown pages of the repository, those of its tools left out."""
    return [*sorted(repository.glob("*.md")), *sorted(repository.glob("docs/**/*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings, as a Markdown renderer names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


def complaints(repository: Path = REPOSITORY) -> Iterator[str]:
    """Yield one sentence for each link, target or test that leads nowhere."""
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    for page in pages(repository):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(repository)
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                yield f"{name}: {link} does not exist"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                yield f"{name}: {link} has no such heading"
        for first, second in TARGET.findall(text):
            if not re.search(rf"^{first or second}:", makefile, re.MULTILINE):
                yield f"{name}: the Makefile has no target {first or second}"
        for module, test in TEST.findall(text):
            source = repository / module
            if not source.exists():
                yield f"{name}: {module} does not exist"
            elif test and not re.search(
                rf"^\s*(async )?def {test}\(", source.read_text(encoding="utf-8"), re.MULTILINE
            ):
                yield f"{name}: {module} has no test {test}"


def main() -> int:
    """Print what is wrong; exit code 1 when something is."""
    found = list(complaints())
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
