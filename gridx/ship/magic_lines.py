"""Code and names hidden in the strings that IPython makes of ``%``, ``!`` and ``?`` lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final, Literal

Kind = Literal["python", "expression", "soft", "names", "write", "file", "written", "dynamic"]

# Magics whose text is Python that runs in the user's namespace.
_PYTHON_LINE: Final = frozenset({"time", "timeit", "prun", "lprun", "memit", "mprun", "debug"})
_PYTHON_CELL: Final = frozenset({"time", "timeit", "prun", "capture", "memit"})
_NAMING: Final = frozenset({"pinfo", "pinfo2", "psource", "pdoc", "psearch", "store", "R"})
_LEADING_OPTIONS: Final = re.compile(r"^(\s*-\w+(\s+\d+)?)+\s*")
_RESULT_OPTION: Final = re.compile(r"--(?:out|err|proc)[ =]+([^\W\d]\w*)")
_DOLLAR: Final = re.compile(r"(?<!\$)\$([^\W\d]\w*)")
_BRACES: Final = re.compile(r"\{([^{}]+)\}")
_HIDING: Final = re.compile(r"get_ipython|user_ns|\.\s*e[vx]\b")


def may_hide_code(text: str) -> bool:
    """Return whether ``hidden_code`` could find anything: most cells have no magics."""
    return _HIDING.search(text) is not None


def hidden_code(tree: ast.AST) -> Iterator[tuple[Kind, str]]:
    """Yield what the magic calls of ``tree`` hide: a kind, and code or a name.

    ``python`` runs in the namespace; ``expression`` is expanded by IPython; ``soft`` and
    ``names`` are names mentioned or read, ``write`` is a name that is bound; ``file`` is read and
    ``written`` is written; ``dynamic`` may reach anything.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if _is_get_ipython(node.func.value):
                yield from _of_call(node.func.attr, _texts(node))
            elif node.func.attr in ("ev", "ex"):
                yield "dynamic", node.func.attr
        elif isinstance(node, ast.Attribute) and node.attr == "user_ns":
            yield "dynamic", "user_ns"


def _is_get_ipython(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "get_ipython"
    )


def _texts(node: ast.Call) -> list[str]:
    return [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]


def _of_call(method: str, texts: list[str]) -> Iterator[tuple[Kind, str]]:
    match method, texts:
        case (("system" | "getoutput"), _):
            for text in texts:
                yield from _expansions(text)
        case "run_line_magic", [name, line]:
            yield from _of_line_magic(name, line)
        case "run_cell_magic", [name, line, body]:
            yield from _expansions(line)
            if name in ("writefile", "file"):
                yield from (("written", word) for word in line.split() if word != "-a")
            yield from (("write", word) for word in _bound_by(name, line))
            # Bodies of %%bash and its like are not expanded by IPython.
            if name in _PYTHON_CELL:
                yield "python", body
                if name == "timeit":
                    yield "python", _LEADING_OPTIONS.sub("", line)
        case _:
            pass


def _bound_by(name: str, line: str) -> Iterator[str]:
    """Yield the variables that a cell magic puts its results into."""
    if name == "capture":
        yield from (word for word in line.split()[:4] if word.isidentifier())
    elif name not in _PYTHON_CELL:
        yield from _RESULT_OPTION.findall(line)  # of %%bash and all script magics


def _of_line_magic(name: str, line: str) -> Iterator[tuple[Kind, str]]:
    if name in _PYTHON_LINE:
        yield "python", _LEADING_OPTIONS.sub("", line)
    elif name in _NAMING:
        yield "names", line.split(".")[0]
    elif name in ("who", "whos", "who_ls"):
        yield "dynamic", f"%{name}"
    elif name == "run":
        for word in line.split():
            if word.endswith((".py", ".ipynb")):
                yield "file", word
        if " -i" in f" {line}":
            yield "dynamic", "%run -i"
    else:
        yield from _expansions(line)


def _expansions(text: str) -> Iterator[tuple[Kind, str]]:
    """``{expression}`` and ``$name`` as IPython's ``var_expand`` reads them."""
    for match in _DOLLAR.finditer(text):
        yield "soft", match.group(1)
    for match in _BRACES.finditer(text):
        yield "expression", match.group(1)
