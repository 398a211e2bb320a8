"""Functions that the user's code has made: closures, lambdas, partials.

Only the values that a function holds travel. Its code is a constant of the user's own function or
cell, which both sides have: found by where it stands, and compiled from the user's own text.
"""

from __future__ import annotations

import ast
import functools
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..ship.analysis import transform
from . import tags
from .failures import CodecError, Unsupported
from .libraries import load

if TYPE_CHECKING:
    from .decode import Decoder
    from .encode import Encoder

_USER_MODULE: Final = "__main__"
_CELL: Final = ""
"""Stands for the cell itself, where a name of a function of the user stands else."""
_MAX_CODES: Final = 10_000
_MAX_SIGNATURE: Final = 1_000
_MAX_ARGUMENTS: Final = 100
_VECTORIZED_STATE: Final = frozenset(
    {
        "pyfunc", "otypes", "excluded", "cache", "signature",
        "__name__", "__doc__", "_doc", "_ufunc", "_in_and_out_core_dims",
    }
)  # fmt: skip
"""What the constructor of ``np.vectorize`` sets; another attribute is the user's."""


def codes_of_cell(source: str, file: str = "<cell>", line_offset: int = 0) -> list[types.CodeType]:
    """Return every code object of a cell, compiled from its text; none if it is not Python."""
    try:
        tree = ast.parse(transform(source))
        ast.increment_lineno(tree, line_offset)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(tree, file, "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return list(_inside(code))


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _inside(part)


def _codes_of(owner: Any) -> list[types.CodeType]:
    """Return the code objects inside a function of the user, or inside the methods of a class."""
    found: list[types.CodeType] = []
    members = list(vars(owner).values()) if isinstance(owner, type) else [owner]
    for member in members:
        plain = getattr(member, "__func__", getattr(member, "fget", member))
        for _ in range(16):  # below its decorators
            plain = vars(plain).get("__wrapped__", plain) if hasattr(plain, "__dict__") else plain
        if isinstance(plain, types.FunctionType):
            found += _inside(plain.__code__)
    return found[:_MAX_CODES]


def _in_a_word(code: types.CodeType) -> tuple[object, ...]:
    return code.co_qualname, code.co_firstlineno, code.co_code


# ---------------------------------------------------------------- encode


def encode_function(encoder: Encoder, value: types.FunctionType, depth: int) -> list[Any]:
    """Return the node of a function whose code stands in a function or cell of the user.

    Raises:
        Unsupported: its code stands nowhere where the user's side could find it.
    """
    if value.__module__ != _USER_MODULE:
        raise Unsupported("a function of a library")
    root, number = _where(encoder, value.__code__)
    encoder.mark(value)
    cells: list[Any] = []
    fresh: list[types.CellType] = []
    for cell in value.__closure__ or ():
        known = encoder.memo_index(cell)
        if known is None:
            encoder.mark(cell)
            fresh.append(cell)
        cells.append([tags.CELL] if known is None else [tags.REF, known])
    extras = {k: v for k, v in vars(value).items() if k != "__wrapped__"}
    return [
        tags.FUNCTION,
        root,
        number,
        value.__code__.co_name,
        cells,
        [_content(encoder, cell, depth) for cell in fresh],
        encoder.node(value.__defaults__, depth),
        encoder.node(value.__kwdefaults__, depth),
        encoder.node(extras, depth) if extras else None,
    ]


def _content(encoder: Encoder, cell: types.CellType, depth: int) -> list[Any]:
    try:
        content = cell.cell_contents
    except ValueError:  # not bound yet
        return []
    return [encoder.node(content, depth)]


def _where(encoder: Encoder, code: types.CodeType) -> tuple[str, int]:
    root = code.co_qualname.partition(".<locals>")[0]
    owner: Any = sys.modules.get(_USER_MODULE)
    parts = root.split(".")
    for part in parts[: -1 if root == code.co_qualname and len(parts) > 1 else None]:
        owner = getattr(owner, part, None)
    if isinstance(owner, (types.FunctionType, type)):
        for number, other in enumerate(_codes_of(owner)):
            if other is code:
                return owner.__qualname__, number
    for number, other in enumerate(encoder.cell_codes()):
        if _in_a_word(other) == _in_a_word(code):
            return _CELL, number
    raise Unsupported("a function made of text")


def encode_partial(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of a partial of a function or class of the user."""
    with encoder.busy(value):
        parts = (value.func, value.args, value.keywords)
        node = [tags.PARTIAL, *[encoder.node(part, depth) for part in parts]]
    encoder.mark(value)
    return node


def encode_vectorized(encoder: Encoder, value: Any, depth: int) -> list[Any]:
    """Return the node of an ``np.vectorize`` of a function of the user.

    Raises:
        Unsupported: it is made of other code, or holds what its constructor does not set.
    """
    if vars(value).keys() - _VECTORIZED_STATE or not _is_of_user(value.pyfunc):
        raise Unsupported("a function over arrays with more state")
    otypes = value.otypes if isinstance(value.otypes, str) else list(value.otypes or ())
    excluded = list(value.excluded)
    if not _is_quick_signature(value.signature) or not _are_arguments(excluded):
        raise Unsupported("a very long signature")
    with encoder.all_open(), encoder.busy(value):
        function = encoder.node(value.pyfunc, depth)
        kinds = otypes if isinstance(otypes, str) else encoder.nodes(otypes, depth)
    encoder.mark(value)
    doc = encoder.node(vars(value).get("_doc"))
    options = [value.otypes is not None, kinds, doc, excluded, bool(value.cache), value.signature]
    return [tags.VECTORIZED, function, *options]


def _is_of_user(function: Any) -> bool:
    return type(function) is types.FunctionType and function.__module__ == _USER_MODULE


def _is_quick_signature(signature: Any) -> bool:
    """Return whether numpy parses it at once: it runs regular expressions over it."""
    return signature is None or (type(signature) is str and len(signature) <= _MAX_SIGNATURE)


def _are_arguments(excluded: list[Any]) -> bool:
    are_known = all(type(one) in (int, str) for one in excluded)
    return are_known and len(excluded) <= _MAX_ARGUMENTS


# ---------------------------------------------------------------- decode


def _decode_function(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 9 and type(node[1]) is str, "function")
    decoder.check(type(node[4]) is type(node[5]) is list, "function")
    number = decoder.reserve()
    code = _find(decoder, node[1], decoder.integer(node[2]), decoder.text(node[3], 1_000))
    cells, fresh = _cells(decoder, node[4], depth)
    decoder.check(len(fresh) == len(node[5]), "function")
    if code is None:
        decoder.unresolved.add((_USER_MODULE, node[1]))
        made: Any = decoder.placeholder(f"{_USER_MODULE}.{node[1] or '<cell>'}.{node[3]}"[:300])
    else:
        decoder.check(len(cells) == len(code.co_freevars), "function")
        made = types.FunctionType(code, decoder.namespace, code.co_name, None, tuple(cells))
        made.__module__ = _USER_MODULE
    # Known before what it holds: a recursive function holds itself.
    decoder.settle(number, made)
    for cell, content in zip(fresh, node[5], strict=True):
        decoder.check(type(content) is list and len(content) <= 1, "function")
        if content:
            cell.cell_contents = decoder.value(content[0], depth)
    defaults = _of_type(decoder, node[6], tuple, depth)
    keyword_defaults = _of_type(decoder, node[7], dict, depth)
    extras = _of_type(decoder, node[8], dict, depth) or {}
    is_plain = all(type(key) is str and not key.startswith("__") for key in extras)
    decoder.check(is_plain, "function")
    if code is not None:
        made.__defaults__, made.__kwdefaults__ = defaults, keyword_defaults
        vars(made).update(extras)
    return made


def _cells(
    decoder: Decoder, nodes: list[Any], depth: int
) -> tuple[list[types.CellType], list[types.CellType]]:
    cells: list[types.CellType] = []
    fresh: list[types.CellType] = []
    for node in nodes:
        if node == [tags.CELL]:
            cells.append(decoder.place(types.CellType()))
            fresh.append(cells[-1])
            continue
        decoder.check(type(node) is list and node and node[0] == tags.REF, "function")
        found = decoder.value(node, depth)
        decoder.check(type(found) is types.CellType, "function")
        cells.append(found)
    return cells, fresh


def _find(decoder: Decoder, root: str, number: int, name: str) -> types.CodeType | None:
    if root == _CELL:
        codes = decoder.cell_codes()
    else:
        owner = decoder.classes.get((_USER_MODULE, root))
        codes = [] if owner is None else _codes_of(owner)
    if not codes:
        return None
    decoder.check(number < len(codes) and codes[number].co_name == name, "function")
    return codes[number]


def _of_type(decoder: Decoder, node: Any, cls: type, depth: int) -> Any:
    value = decoder.value(node, depth)
    decoder.check(value is None or type(value) is cls, "function")
    return value


def _decode_partial(decoder: Decoder, node: list[Any], depth: int) -> Any:
    decoder.check(len(node) == 4, "partial")
    function, arguments, keywords = decoder.parts(node[1:], depth)
    decoder.check(type(arguments) is tuple and type(keywords) is dict, "partial")
    decoder.check(all(type(key) is str for key in keywords), "partial")
    if not isinstance(function, (types.FunctionType, type)):
        # Closed or gone there is nothing to call.
        return decoder.place(decoder.placeholder("functools.partial"))
    # No subclass of a partial comes this way, and nothing is called before the user does.
    return decoder.place(functools.partial(function, *arguments, **keywords))


def _decode_vectorized(decoder: Decoder, node: list[Any], depth: int) -> Any:
    numpy = load("numpy")
    decoder.check(len(node) == 8 and type(node[2]) is bool and type(node[6]) is bool, "vectorize")
    function = decoder.value(node[1], depth)
    otypes = _otypes(decoder, node[3], depth)
    doc = decoder.value(node[4], depth)
    decoder.check(doc is None or type(doc) is str, "vectorize")
    decoder.check(type(node[5]) is list and _are_arguments(node[5]), "vectorize")
    decoder.check(_is_quick_signature(node[7]), "vectorize")
    if not _is_of_user(function):
        return decoder.place(decoder.placeholder("numpy.vectorize"))
    kinds = otypes if node[2] else None
    # Its constructor looks at names alone; nothing is called before the user does.
    try:
        made = numpy.vectorize(function, kinds, doc, set(node[5]), node[6], node[7])
    except (ValueError, TypeError):
        raise CodecError("The result is malformed (vectorize).") from None
    return decoder.place(made)


def _otypes(decoder: Decoder, node: Any, depth: int) -> Any:
    numpy = load("numpy")
    decoder.check(type(node) in (str, list) and len(node) <= _MAX_ARGUMENTS, "vectorize")
    kinds = node if type(node) is str else decoder.parts(node, depth)
    for kind in kinds:
        is_letter = type(kind) is str and len(kind) == 1 and kind in numpy.typecodes["All"]
        decoder.check(is_letter or isinstance(kind, numpy.dtype), "vectorize")
    return kinds


DECODERS: Final = {
    tags.FUNCTION: _decode_function,
    tags.PARTIAL: _decode_partial,
    tags.VECTORIZED: _decode_vectorized,
}
