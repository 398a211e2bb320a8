from __future__ import annotations

import IPython.core.inputtransformer2  # noqa: F401  # magics are understood where it is loaded
import pytest

from gridx.ship.analysis import analyze


@pytest.mark.parametrize(
    ("cell", "reads"),
    [
        ("df = [1]; print(df)", {"print"}),
        ("if c: df = 1\nprint(df)", {"c", "df", "print"}),
        ("while x: y = 1\ny", {"x", "y"}),
        ("for i in xs: pass\ni", {"xs", "i"}),
        ("with open_it() as f: v = 1\nf; v", {"open_it", "v"}),
        ("try:\n    v = 1\nexcept E:\n    raise\nv", {"E"}),
        ("try:\n    v = f()\nexcept E:\n    v = 0\nv", {"E", "f"}),
        ("try:\n    pass\nfinally:\n    v = 1\nv", set()),
        ("x: T", {"T"}),
        ("x: int = 1\nx", {"int"}),
        ("x[0] = 1", {"x"}),
        ("x.a = 1", {"x"}),
        ("a, (b, *c) = v\na; b; c", {"v"}),
        ("lambda: q", {"q"}),
        ("def f(a=d): return f(a)", {"d"}),
        ("@f\ndef f(): pass", {"f"}),
        ("class A(A): pass", {"A"}),
        ("class B:\n    y = z\n    def m(self): return w", {"z", "w"}),
        ("match m:\n    case {'k': v, **rest} if v > lo: rest", {"m", "lo"}),
        ("match m:\n    case C(x=a) | [C.D, a]: a", {"m", "C"}),
        ("import a.b.c\na", set()),
        ("async def f(): await g()\nawait f()", {"g"}),
        ("async with cm as x:\n    pass\nx", {"cm"}),
        ("assert v, msg", {"v", "msg"}),
        ("global g\ng = 1\ng", set()),
        ("def f():\n    global h\n    h = 1\nf()\nh", {"h"}),
        ("print(f'{a!r:>{w}}')", {"print", "a", "w"}),
        ("type_ = 1\ndel type_\ntype_", {"type_"}),
        ("raise E from c\nunreached", {"E", "c"}),
        ("from __future__ import annotations\ndef f(x: N): pass", set()),
    ],
)
def test_a_cell_reads_what_it_has_not_surely_bound_before(cell: str, reads: set[str]) -> None:
    assert analyze(cell).reads == reads


@pytest.mark.parametrize(
    ("cell", "writes", "deletes"),
    [
        ("a = b = 1", {"a", "b"}, set()),
        ("(n := 1)", {"n"}, set()),
        ("[y := x for x in xs]", {"y"}, set()),
        ("for i in xs: j = i", {"i", "j"}, set()),
        ("with c as (a, b): pass", {"a", "b"}, set()),
        ("def f():\n    global g\n    g = 1", {"f", "g"}, set()),
        ("class A:\n    x = 1", {"A"}, set()),
        ("import a.b, c as d\nfrom e import f as g", {"a", "d", "g"}, set()),
        ("del a, b[0]", set(), {"a"}),
        ("def f():\n    global g\n    del g", {"f"}, {"g"}),
        ("x: int", set(), set()),
        ("x += 1", {"x"}, set()),
    ],
)
def test_a_cell_writes_and_deletes_names_of_the_notebook(
    cell: str, writes: set[str], deletes: set[str]
) -> None:
    analysis = analyze(cell)
    assert (analysis.writes, analysis.deletes) == (writes, deletes)


@pytest.mark.parametrize(
    ("cell", "soft"),
    [
        ("df.query('a > @lim')", {"lim", "a"}),
        ("ols('y ~ x + C(g)', df)", {"y", "x", "C", "g"}),
        ("d['name']", {"name"}),
        ("'two words'", set()),
        ("def f(x: 'Node') -> 'list[Leaf]': pass", {"Node", "list", "Leaf"}),
        ("!echo $name {other.upper()}", {"name", "other"}),
    ],
)
def test_names_in_strings_are_soft(cell: str, soft: set[str]) -> None:
    assert soft <= analyze(cell).soft


@pytest.mark.parametrize(
    ("cell", "reads"),
    [
        ("%time y = x + 1", {"x"}),
        ("%timeit -n1 -r1 f(x)", {"f", "x"}),
        ("%%time\ny = x", {"x"}),
        ("%%timeit -n1 setup(a)\nf()", {"f", "setup", "a"}),
        ("%%capture out\nz = w", {"w"}),
        ("f?", {"f"}),
        ("exec('w = q + 1')", {"exec", "q"}),
        ("%%bash\necho $HOME", set()),
    ],
)
def test_code_inside_magics_and_literals_is_read(cell: str, reads: set[str]) -> None:
    assert analyze(cell).reads == reads


@pytest.mark.parametrize(
    ("cell", "dynamic"),
    [
        ("exec(text)", {"exec"}),
        ("globals()[k]", {"globals"}),
        ("get_ipython().user_ns['x']", {"user_ns"}),
        ("%run -i other.py", {"%run -i"}),
        ("eval('a + b')", set()),
        ("df.eval('a + b')", set()),
        ("re.compile(text)", set()),
        ("model.eval(); torch.compile(f)", set()),
        ("builtins.eval(text)", {"eval"}),
    ],
)
def test_what_no_analysis_can_follow_is_flagged(cell: str, dynamic: set[str]) -> None:
    assert analyze(cell).dynamic == dynamic


def test_imports_files_and_history_are_noted() -> None:
    analysis = analyze("import a.b\nfrom c import d\nfrom math import *\n%run x.py\nOut[7]")
    assert analysis.imports == {"a.b", "c", "math"}
    assert analysis.files == {"x.py"}
    assert analysis.out_values == {7}
    assert analysis.star


def test_a_cell_with_warnings_is_analysed_without_them() -> None:
    assert analyze("x = '\\d'\ny is 1").reads == {"y"}


def test_the_name_of_a_handler_is_unbound_there_when_the_notebook_has_one() -> None:
    analysis = analyze("try:\n    f()\nexcept E as e:\n    print(e)")
    assert analysis.deletes == {"e"}
    assert "e" in analysis.soft
    assert "e" not in analysis.reads


@pytest.mark.parametrize(
    ("cell", "soft"),
    [
        ("duckdb.sql('select a from orders where b > 1')", {"orders"}),
        ("con.query(f'select * from {table}')", {"select", "from"}),
        ("numexpr.evaluate('a * b + c')", {"a", "b", "c"}),
        ("smf.ols('y ~ x1 + np.log(x2)', data=df)", {"y", "x1", "x2", "np"}),
        ("timeit.timeit('f(x)', setup='x = z')", {"f", "x", "z"}),
        ("patsy.dmatrices('y ~ C(group)', df)", {"y", "group"}),
        ("exec('a = b +')", {"a", "b"}),
        ("df.query('a > @limit and b')", {"limit"}),
        ("x = 'name'", {"name"}),
        ("x = 'two words'", set()),
    ],
)
def test_names_in_the_strings_of_calls_that_read_frames_are_soft(cell: str, soft: set[str]) -> None:
    analysis = analyze(cell)
    assert soft <= analysis.soft
    if not soft:
        assert not analysis.soft


@pytest.mark.parametrize(
    ("cell", "dynamic"),
    [
        ("globals()", {"globals"}),
        ("exec(text)", {"exec"}),
        ("eval(text)", {"eval"}),
        ("vars()", {"vars"}),
        ("locals()['x']", {"locals"}),
        ("__import__(name)", {"__import__"}),
        ("get_ipython().user_ns['x']", {"user_ns"}),
        ("ip.ev('x')", {"ev"}),
        ("%run -i other.py", {"%run -i"}),
        ("%whos", {"%whos"}),
        ("exec('x = 1')", set()),
        ("df.eval('a + b')", set()),
        ("re.compile(text)", set()),
        ("model.eval(); torch.compile(f)", set()),
        ("builtins.eval(text)", {"eval"}),
    ],
)
def test_what_may_reach_any_name_is_flagged(cell: str, dynamic: set[str]) -> None:
    assert analyze(cell).dynamic == dynamic


def test_files_that_magics_read_and_write_are_told_apart() -> None:
    analysis = analyze("%%writefile -a notes.txt\nhello")
    assert (analysis.files, analysis.written_files) == (set(), {"notes.txt"})
    assert analyze("%run script.py arg").files == {"script.py"}


@pytest.mark.parametrize(
    ("cell", "sure", "optional"),
    [
        ("import a.b, c as d\nfrom e.f import g", {"a.b", "c", "e.f"}, set()),
        ("from . import x", set(), set()),
        ("try:\n    import a\nexcept ImportError:\n    import b", set(), {"a", "b"}),
        ("try:\n    import a\nexcept (KeyError, ModuleNotFoundError):\n    pass", set(), {"a"}),
        ("try:\n    import a\nfinally:\n    import b", {"a", "b"}, set()),
        ("if x:\n    import a\nelse:\n    import b", set(), {"a", "b"}),
        ("def f():\n    import a\ndef g():\n    import b\ng()", {"b"}, {"a"}),
        ("class A:\n    import a", {"a"}, set()),
        ("import a\ntry:\n    import a\nexcept ImportError:\n    pass", {"a"}, set()),
    ],
)
def test_sure_imports_are_told_from_those_that_may_not_happen(
    cell: str, sure: set[str], optional: set[str]
) -> None:
    analysis = analyze(cell)
    assert (analysis.imports, analysis.optional_imports) == (sure, optional)


@pytest.mark.parametrize(
    ("cell", "writes"),
    [
        ("%%capture out\nx = 1", {"out", "x"}),
        ("%%capture --no-stderr out\npass", {"out"}),
        ("%%capture\nx = 1", {"x"}),
        ("%%bash --out text --err wrong\necho a", {"text", "wrong"}),
        ("r = %timeit -o 1 + 1", {"r"}),
        ("files = !ls", {"files"}),
    ],
)
def test_what_magics_bind_is_written(cell: str, writes: set[str]) -> None:
    assert analyze(cell).writes == writes
