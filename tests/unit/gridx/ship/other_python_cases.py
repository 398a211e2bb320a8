"""Notebooks whose cells must run the same under another minor version of Python."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class OtherPythonCase:
    """Cells that ran here, and one that is sent; ``refusal``: why it cannot be."""

    name: str
    cells: list[str]
    cell: str
    refusal: str = ""


def run_here(source: str, namespace: dict[str, Any]) -> str:
    """Run ``source``, without a ``%%gridx`` line, in ``namespace``; return what it printed."""
    source = re.sub(r"\A%%gridx[^\n]*\n", "", source)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, "<notebook>", "exec", dont_inherit=True), namespace)
    return out.getvalue()


CASES: Final = [
    OtherPythonCase("data", ["x = [1, {'a': (2, None)}]"], "print(x)"),
    OtherPythonCase(
        "a function and what it reads",
        ["k = 3", "def g(x): return x * k", "def f(x): return g(x) + 1"],
        "print(f(2))",
    ),
    OtherPythonCase(
        "a default that is data", ["b = [4]", "def f(a=b): return a[0]"], "print(f(), f.__name__)"
    ),
    OtherPythonCase(
        "a decorator",
        [
            "import functools",
            "def deco(f):\n    @functools.wraps(f)\n    def w(*a): return f(*a) + ONE\n    return w",
            "ONE = 1",
            "@deco\ndef h(x): return x",
        ],
        "print(h(1), h.__name__)",
    ),
    OtherPythonCase(
        "classes, bases and an instance",
        [
            "class A:\n    def f(self): return 'A' + SUFFIX",
            "class B(A):\n    def __init__(self, x): self.x = x\n"
            "    def f(self): return super().f() + str(self.x)",
            "SUFFIX = '!'",
            "b = B(3)\nboxed = {'b': [b]}",
        ],
        "print(b.f(), boxed['b'][0] is b, isinstance(b, A))",
    ),
    OtherPythonCase(
        "a dataclass and an enum",
        [
            "from dataclasses import dataclass\nimport enum",
            "@dataclass(order=True)\nclass P:\n    x: int\n    y: int = 0",
            "class C(enum.Enum):\n    R = 1\n    G = 2",
            "p = P(1)\nv = C.G",
        ],
        "print(p, p < P(2), v is C.G, list(C))",
    ),
    OtherPythonCase(
        "types that a call makes",
        [
            "from collections import namedtuple\nfrom typing import NamedTuple, TypeVar",
            "Q = namedtuple('Q', 'a b')",
            "class R(NamedTuple):\n    a: int\n    b: str = 'z'",
            "q, r = Q(1, 2), R(3)",
        ],
        "print(q, r, q._replace(a=5), isinstance(r, R))",
    ),
    OtherPythonCase(
        "a lambda with a name", ["k = 2", "g = lambda x: x + k"], "print(g(1), list(map(g, [1])))"
    ),
    OtherPythonCase(
        "a cache",
        [
            "import functools",
            "@functools.lru_cache(maxsize=9)\n"
            "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
        ],
        "print(fib(20), fib.cache_parameters()['maxsize'])",
    ),
    OtherPythonCase(
        "functions inside data and under two names",
        ["def f(x): return x + 1", "h = f\npipe = [f, len]\nd = {'f': f}"],
        "print(h(1), pipe[0] is f, d['f'] is h, pipe[1]('ab'))",
    ),
    OtherPythonCase(
        "methods as values",
        [
            "class A:\n    def m(self): return 7\n    @staticmethod\n    def s(): return 8",
            "a = A()\nm = a.m\ns = A.s\nu = A.m",
        ],
        "print(m(), s(), u(a))",
    ),
    OtherPythonCase(
        "a class inside a class",
        [
            "class A:\n    class Inner:\n        v = 5\n    def make(self): return self.Inner()",
            "i = A.Inner()",
        ],
        "print(i.v, isinstance(A().make(), A.Inner), type(i) is A.Inner)",
    ),
    OtherPythonCase(
        "the newest definition counts",
        ["def f(): return 'old'", "def f(): return 'new'"],
        "print(f())",
    ),
    OtherPythonCase(
        "definitions of a cell that ran elsewhere",
        ["%%gridx --timeout 5\ndef f(): return 6", "x = f()"],
        "print(f(), x)",
    ),
    OtherPythonCase(
        "postponed annotations",
        ["from __future__ import annotations\ndef f(x: Later) -> Later: return x"],
        "print(f(1), f.__annotations__)",
    ),
    OtherPythonCase(
        "recursion of two",
        ["def ev(n): return n == 0 or od(n - 1)", "def od(n): return n != 0 and ev(n - 1)"],
        "print(ev(10))",
    ),
    OtherPythonCase(
        "functions of libraries",
        ["import math, functools, operator", "p = functools.partial(operator.add, 2)"],
        "print(math.floor(2.5), p(3), type(None))",
    ),
    OtherPythonCase(
        "a partial of a notebook function",
        ["import functools", "def add(a, b): return a + b", "p = functools.partial(add, 2)"],
        "print(p(3))",
    ),
    OtherPythonCase(
        "an abstract class and a protocol",
        [
            "import abc\nfrom typing import Generic, TypeVar, Protocol, runtime_checkable",
            "T = TypeVar('T')",
            "class Base(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...",
            "class Box(Base, Generic[T]):\n    def __init__(self, v: T): self.v = v\n"
            "    def f(self): return self.v",
            "box = Box[int](3)",
        ],
        "print(box.f(), isinstance(box, Base))",
    ),
]

REFUSED: Final = [
    OtherPythonCase("a lambda in a value", ["d = {'f': lambda x: x}"], "d", "holds a lambda"),
    OtherPythonCase(
        "a closure",
        ["def make():\n    n = 0\n    def inc(): return n\n    return inc", "inc = make()"],
        "inc()",
        "made inside a function",
    ),
    OtherPythonCase(
        "a class made in a function",
        ["def make():\n    class C: pass\n    return C", "c = make()()"],
        "c",
        "made inside a function",
    ),
    OtherPythonCase(
        "a generic function",
        [
            "import functools",
            "@functools.singledispatch\ndef s(x): return 1",
            "@s.register\ndef _i(x: int): return 2",
        ],
        "s(1)",
        "generic function",
    ),
    OtherPythonCase(
        "a method that was set later",
        ["class A: pass", "def m(self): return 1", "A.m = m\na = A()"],
        "a.m()",
        "set after its definition",
    ),
    OtherPythonCase(
        "a name that holds another function",
        ["def make():\n    def g(): return 1\n    return g", "def f(): return 2", "f = make()"],
        "f()",
        "made inside a function",
    ),
    OtherPythonCase("code", ["c = compile('1', 'x', 'eval')"], "eval(c)", "is not among the cells"),
]
