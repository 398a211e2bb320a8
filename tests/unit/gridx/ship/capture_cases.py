"""Cells and the notebooks that they were written in: what must travel, and what must come out.

Each setup runs in the notebook. The cell then runs in a fresh process that holds only what was
captured, and must print there what it prints in the notebook. A case with ``limit`` is a declared
limit: the reason stands there, and the test asserts that it shows in the declared way.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    name: str
    setup: str
    cell: str
    inputs: set[str] | None = None
    """Names that must travel; others may, but for ``huge_unrelated``."""
    outputs: set[str] | None = None
    deletes: set[str] | None = None
    ipython: bool = False
    """The cell has magics, so only IPython can run it."""
    compare_output: bool = True
    limit: str = ""
    """Why this case is a declared limit."""
    shows: Literal["", "refused", "differs"] = ""
    """How the limit shows: refused before sending, or another output than at home."""


_ALL: Final = (
    Case(
        "plain",
        "x=1;y=2;big=list(range(10))",
        "print(x+y)",
        inputs={"x", "y"},
    ),
    Case(
        "assign_first",
        "df=list(range(9))",
        """\
df=[1]
print(df)
""",
        inputs=set(),
        outputs={"df"},
    ),
    Case(
        "assign_in_if",
        "df=[9]",
        """\
import os
if len(os.name)>100:
    df=[1]
print(df)
""",
        inputs={"df"},
    ),
    Case(
        "assign_both_branches",
        "df=[9]",
        """\
if True:
    df=[1]
else:
    df=[2]
print(df)
""",
        inputs=set(),
    ),
    Case(
        "loop_zero_iter",
        "v='old'",
        """\
for i in []:
    v=i
print(v)
""",
        inputs={"v"},
    ),
    Case(
        "try_fallback",
        "v='old'",
        """\
try:
    v=1/0
except ZeroDivisionError:
    pass
print(v)
""",
        inputs={"v"},
    ),
    Case(
        "with_suppress",
        "v='old'",
        """\
import contextlib
with contextlib.suppress(Exception):
    raise_ = 1/0
    v='new'
print(v)
""",
        inputs={"v"},
    ),
    Case(
        "augassign",
        "n=5",
        """\
n+=1
print(n)
""",
        inputs={"n"},
        outputs={"n"},
    ),
    Case(
        "augassign_attr",
        """\
class C: pass
c=C(); c.v=1
""",
        """\
c.v+=1
print(c.v)
""",
        inputs={"c"},
    ),
    Case(
        "subscript_store",
        "d={'a':1}",
        """\
d['b']=2
print(d)
""",
        inputs={"d"},
    ),
    Case(
        "delete",
        "tmp=1;keep=2",
        """\
del tmp
print('tmp' in globals(), keep)
""",
        inputs={"keep", "tmp"},
        deletes={"tmp"},
    ),
    Case(
        "comprehension",
        "xs=[1,2];k=10;i=99",
        "print([i*k for i in xs], {i for i in xs}, {i:k for i in xs}, sum(i for i in xs))",
        inputs={"k", "xs"},
    ),
    Case(
        "comp_iter_outer",
        "x=[[1,2],[3]]",
        "print([x for x in x])",
        inputs={"x"},
    ),
    Case(
        "nested_comp",
        """\
m=[[1,2],[3,4]];f=lambda v:v+z
z=1
""",
        "print([[f(b) for b in a] for a in m])",
        inputs={"f", "m", "z"},
    ),
    Case(
        "walrus",
        "data=[1,2,3]",
        """\
if (n:=len(data))>2:
    print(n, [y for x in data if (y:=x*2)>2], y)
""",
        inputs={"data"},
        outputs={"n", "y"},
    ),
    Case(
        "fstring",
        "name='a';w=8;vals={'k':1}",
        "print(f'{name!r:>{w}} {vals[\"k\"]:03d} {name=}')",
        inputs={"name", "vals", "w"},
    ),
    Case(
        "lambda_default",
        "a=3",
        """\
g=lambda x,y=a:x+y
print(g(1))
""",
        inputs={"a"},
    ),
    Case(
        "func_reads_global_transitively",
        """\
a=1
def f(): return a+b
b=2
def g(): return f()*2
""",
        "print(g())",
        inputs={"a", "b", "f", "g"},
    ),
    Case(
        "func_sees_cell_rebinding",
        """\
t=1
def f(): return t
""",
        """\
t=5
print(f())
""",
        inputs={"f"},
    ),
    Case(
        "func_global_write",
        """\
n=0
def inc():
    global n
    n+=1
""",
        """\
inc();inc()
print(n)
""",
        inputs={"inc", "n"},
        outputs={"n"},
    ),
    Case(
        "cell_defines_func_used_by_old",
        """\
def f(): return helper()
def helper(): return 'old'
""",
        """\
def helper(): return 'new'
print(f())
""",
        inputs={"f"},
    ),
    Case(
        "recursion",
        "def fact(n): return 1 if n<2 else n*fact(n-1)",
        "print(fact(6))",
        inputs={"fact"},
    ),
    Case(
        "mutual_recursion",
        """\
def ev(n): return n==0 or od(n-1)
def od(n): return n!=0 and ev(n-1)
""",
        "print(ev(10))",
        inputs={"ev", "od"},
    ),
    Case(
        "closure_counter",
        """\
def mk():
    c=[0]
    def inc():
        c[0]+=k
        return c[0]
    return inc
k=2
cnt=mk()
""",
        "print(cnt(),cnt())",
        inputs={"cnt", "k"},
    ),
    Case(
        "nonlocal_closure",
        """\
def mk():
    c=0
    def inc():
        nonlocal c
        c+=1
        return c
    return inc
cnt=mk()
""",
        "print(cnt(),cnt())",
    ),
    Case(
        "two_closures_share_cell",
        """\
def mk():
    c=0
    def inc():
        nonlocal c
        c+=1
    def get(): return c
    return inc,get
inc,get=mk()
""",
        "inc();inc();print(get())",
    ),
    Case(
        "class_body_fallback",
        "x=1",
        """\
class A:
    x=x+1
    def m(self): return x
print(A.x,A().m())
""",
        inputs={"x"},
    ),
    Case(
        "class_bases_meta_decorator",
        """\
import abc
class Base(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
def deco(c): c.tag=TAG; return c
TAG='t'
""",
        """\
@deco
class D(Base):
    def f(self): return 1
print(D().f(), D.tag, isinstance(D(),Base))
""",
        inputs={"Base", "TAG", "deco"},
    ),
    Case(
        "class_method_global",
        """\
K=4
class P:
    s=K
    def m(self): return helper(K)
    @property
    def q(self): return Z
    @staticmethod
    def st(): return W
    @classmethod
    def cm(cls): return V
def helper(v): return v*2
Z=1;W=2;V=3
p=P()
""",
        "print(p.m(),p.q,P.st(),P.cm(),p.s)",
        inputs={"K", "P", "V", "W", "Z", "helper", "p"},
    ),
    Case(
        "super_cell",
        """\
class A:
    def f(self): return 'A'
class B(A):
    def f(self): return super().f()+'B'
    def g(self): return __class__.__name__
""",
        "print(B().f(),B().g())",
    ),
    Case(
        "instance_only",
        """\
class P:
    def __init__(s): s.v=1
    def m(s): return s.v+OFF
OFF=10
p=P()
""",
        "print(p.m())",
        inputs={"OFF", "p"},
    ),
    Case(
        "dataclass",
        """\
from dataclasses import dataclass,field,asdict
@dataclass(order=True)
class Pt:
    x:int
    y:list=field(default_factory=list)
p=Pt(1)
""",
        """\
q=Pt(2,[3])
print(p<q,asdict(q),p==Pt(1),isinstance(p,Pt))
""",
    ),
    Case(
        "dataclass_slots_frozen",
        """\
from dataclasses import dataclass,replace
@dataclass(frozen=True,slots=True)
class Pt:
    x:int
p=Pt(1)
""",
        "print(replace(p,x=2),hash(p)==hash(Pt(1)))",
    ),
    Case(
        "enum",
        """\
import enum
class C(enum.Enum):
    R=1
    G=2
    def lab(self): return PRE+self.name
PRE='c'
v=C.R
""",
        "print(v is C.R, v.lab(), C(2), list(C))",
        inputs={"C", "PRE", "v"},
    ),
    Case(
        "flag_intenum",
        """\
import enum
class F(enum.Flag):
    A=enum.auto();B=enum.auto()
class I(enum.IntEnum):
    X=3
""",
        "print(F.A|F.B, I.X+1, F.A in (F.A|F.B))",
    ),
    Case(
        "namedtuple",
        """\
from collections import namedtuple
from typing import NamedTuple
P=namedtuple('P','x y')
class Q(NamedTuple):
    a:int
    b:str='z'
p=P(1,2);q=Q(1)
""",
        "print(p._replace(x=5),q,isinstance(q,Q),Q(2).b)",
    ),
    Case(
        "typing_generic",
        """\
from typing import TypeVar,Generic,Protocol,runtime_checkable
T=TypeVar('T')
class Box(Generic[T]):
    def __init__(s,v:T): s.v=v
@runtime_checkable
class HasV(Protocol):
    v:int
b=Box[int](3)
""",
        "print(b.v,isinstance(b,HasV),Box[str].__args__)",
    ),
    Case(
        "typeddict_literal",
        """\
from typing import TypedDict,Literal,NewType
class TD(TypedDict):
    a:int
U=NewType('U',int)
M=Literal['a','b']
""",
        """\
x:TD={'a':U(1)}
print(x,TD.__annotations__,M.__args__)
""",
    ),
    Case(
        "abc_register",
        """\
import abc
class S(abc.ABC): pass
S.register(int)
""",
        "print(isinstance(3,S),isinstance('a',S))",
    ),
    Case(
        "metaclass",
        """\
class M(type):
    def __call__(cls,*a):
        if not hasattr(cls,'i'): cls.i=super().__call__(*a)
        return cls.i
class S(metaclass=M): pass
""",
        "print(S() is S())",
    ),
    Case(
        "class_level_lambda",
        """\
class T:
    ops={'add':lambda a,b:a+b+BIAS,'neg':(lambda a:-a)}
BIAS=100
""",
        "print(T.ops['add'](1,2),T.ops['neg'](3))",
        inputs={"BIAS", "T"},
    ),
    Case(
        "partial_lru_wraps",
        """\
import functools
@functools.lru_cache
def fib(n): return n if n<2 else fib(n-1)+fib(n-2)
def add(a,b): return a+b+C
C=1
p=functools.partial(add,2)
def deco(f):
    @functools.wraps(f)
    def w(*a): return f(*a)+C
    return w
@deco
def h(x): return x
""",
        "print(fib(20),p(3),h(1))",
        inputs={"C", "fib", "h", "p"},
    ),
    Case(
        "singledispatch",
        """\
import functools
@functools.singledispatch
def s(x): return 'd'
@s.register
def _i(x:int): return 'i'+SUF
SUF='!'
""",
        "print(s(1),s('a'))",
    ),
    Case(
        "functions_in_container",
        """\
def a(x): return x+D
def b(x): return x*D
D=3
pipe=[a,b]
reg={'a':a}
""",
        """\
r=1
for f in pipe: r=f(r)
print(r,reg['a'](1))
""",
        inputs={"D", "pipe", "reg"},
    ),
    Case(
        "alias_same_object",
        """\
a=[1,2]
b=a
""",
        """\
b.append(3)
print(a is b,a)
""",
        inputs={"a", "b"},
    ),
    Case(
        "alias_in_container",
        "row=[0];grid={'r':row}",
        """\
row.append(1)
print(grid['r'] is row,grid)
""",
    ),
    Case(
        "shared_base_view",
        """\
import numpy as np
A=np.zeros(6);V=A[::2]
""",
        """\
V[:]=7
print(A.tolist())
""",
        limit="numpy views are pickled as copies: the view loses its base",
        shows="differs",
    ),
    Case(
        "nan_identity",
        """\
import math
nan=float('nan');xs=[nan]
""",
        "print(nan in xs)",
        limit="pickle does not keep the identity of floats",
        shows="differs",
    ),
    Case(
        "sentinel",
        """\
MISSING=object()
def get(d,k,default=MISSING):
    return 'no' if d.get(k,default) is MISSING else 'yes'
""",
        "print(get({},1),get({1:2},1))",
    ),
    Case(
        "none_ellipsis_notimpl",
        "e=...;n=NotImplemented;t=type(None)",
        "print(e is ..., n is NotImplemented, t)",
    ),
    Case(
        "module_alias",
        """\
import math as m
import os.path
""",
        "print(m.pi>3, os.path.join('a','b'))",
        inputs={"m", "os"},
    ),
    Case(
        "from_import",
        """\
from math import sqrt as sq
from collections import Counter
""",
        "print(sq(4),Counter('aab').most_common(1))",
    ),
    Case(
        "submodule_attr",
        """\
import xml
import xml.etree.ElementTree
""",
        "print(xml.etree.ElementTree.fromstring('<a/>').tag)",
    ),
    Case(
        "star_import_in_cell",
        "cos='shadow'",
        """\
from math import *
print(cos(0),pi>3)
""",
    ),
    Case(
        "star_import_reads",
        "xs=[0]",
        """\
from math import *
print([cos(x) for x in xs])
""",
        inputs={"xs"},
    ),
    Case(
        "import_in_function",
        """\
def f():
    import json
    return json.dumps({'a':A})
A=1
""",
        "print(f())",
        inputs={"A", "f"},
    ),
    Case(
        "global_in_nested",
        "g=1",
        """\
def f():
    def h():
        global g
        g=g+1
    h()
f()
print(g)
""",
        inputs={"g"},
        outputs={"f", "g"},
    ),
    Case(
        "match_stmt",
        """\
cmd={'op':'add','v':[1,2]};K='add'
lim=5
""",
        """\
class k: OP=K
match cmd:
    case {'op':k.OP,'v':[a,*rest]} if a<lim:
        print(a,rest)
    case _:
        print('no')
""",
        inputs={"K", "cmd", "lim"},
    ),
    Case(
        "annotations_quoted",
        """\
class Node: pass
from typing import get_type_hints
""",
        """\
def f(x:'Node')->'list[Node]': return [x]
print(sorted(get_type_hints(f)))
""",
    ),
    Case(
        "future_annotations",
        """\
class Node: pass
import dataclasses,typing
""",
        """\
from __future__ import annotations
@dataclasses.dataclass
class T:
    n:Node
print(typing.get_type_hints(T)['n'].__name__)
""",
    ),
    Case(
        "decorator_registry",
        """\
REG={}
def reg(f): REG[f.__name__]=f; return f
""",
        """\
@reg
def z(): return 1
print(sorted(REG))
""",
        inputs={"REG", "reg"},
    ),
    Case(
        "generator_func",
        """\
def gen(n):
    for i in range(n): yield i*S
S=2
""",
        "print(list(gen(3)))",
        inputs={"S", "gen"},
    ),
    Case(
        "async_toplevel",
        """\
import asyncio
async def work(x): return x*F
F=3
""",
        """\
r=await asyncio.gather(work(1),work(2))
print(r)
""",
        inputs={"F", "asyncio", "work"},
    ),
    Case(
        "exec_literal",
        "q=4",
        """\
exec('w=q+1')
print(w)
""",
        inputs={"q"},
    ),
    Case(
        "eval_expr",
        "q=4",
        "print(eval('q*2'))",
        inputs={"q"},
    ),
    Case(
        "globals_key",
        "q=4",
        "print(globals()['q'])",
        inputs={"q"},
    ),
    Case(
        "globals_dynamic_key",
        "q1=4",
        """\
k='q'+str(1)
print(globals()[k])
""",
        limit="name made at run time: flagged dynamic, needs --needs q1 or --all",
        shows="differs",
    ),
    Case(
        "func_using_globals",
        """\
q=4
def f(): return globals()['q']
""",
        "print(f())",
        inputs={"f", "q"},
    ),
    Case(
        "pandas_query_at",
        """\
import pandas as pd
d=pd.DataFrame({'a':[1,2,3]});lim=2
""",
        "print(len(d.query('a >= @lim')))",
        inputs={"d", "lim"},
    ),
    Case(
        "pandas_query_in_func",
        """\
import pandas as pd
d=pd.DataFrame({'a':[1,2,3]});lim=2
def f(): return len(d.query('a>=@lim'))
""",
        "print(f())",
        inputs={"d", "f", "lim"},
    ),
    Case(
        "magic_time",
        "x=3",
        """\
%time y=x+1
print(y)
""",
        inputs={"x"},
        ipython=True,
        compare_output=False,
    ),
    Case(
        "magic_timeit_cell",
        """\
x=3
def f(): return x
""",
        """\
%%timeit -n1 -r1
f()
""",
        inputs={"f", "x"},
        ipython=True,
        compare_output=False,
    ),
    Case(
        "shell_expand",
        "name='abc'",
        "!echo {name.upper()} $name",
        inputs={"name"},
        ipython=True,
    ),
    Case(
        "shell_assign",
        "name='abc'",
        """\
out=!echo $name
print(out[0])
""",
        inputs={"name"},
        outputs={"out"},
        ipython=True,
    ),
    Case(
        "help_q",
        """\
def f():
    'doc'
""",
        "f?",
        inputs={"f"},
        ipython=True,
        compare_output=False,
    ),
    Case(
        "underscore",
        "_=41",
        "print(_+1)",
        inputs={"_"},
    ),
    Case(
        "shadow_builtin",
        "list_=list;sum=lambda xs:'mine'",
        "print(sum([1]))",
        inputs={"sum"},
    ),
    Case(
        "del_shadow_builtin",
        "max=3",
        """\
del max
print(max(1,2))
""",
        inputs={"max"},
        deletes={"max"},
    ),
    Case(
        "except_name_unbinds",
        "e=1",
        """\
try:
    1/0
except ZeroDivisionError as e:
    pass
print('e' in globals())
""",
    ),
    Case(
        "unused_huge_attr",
        """\
class H: n=1
h=H()
""",
        "print(h.n)",
    ),
    Case(
        "lock_object",
        """\
import threading
class W:
    def __init__(s): s.lock=threading.Lock()
w=W();ok=1
""",
        "print(ok)",
        inputs={"ok"},
    ),
    Case(
        "lock_needed",
        """\
import threading
lk=threading.Lock()
""",
        "with lk: print(1)",
        limit="lock cannot be pickled: reported before sending",
        shows="refused",
    ),
    Case(
        "open_file",
        "fh=open('/etc/hostname')",
        "print(len(fh.read())>0)",
    ),
    Case(
        "generator_obj",
        "g=(i for i in range(3))",
        "print(next(g))",
        limit="generators cannot be pickled: reported",
        shows="refused",
    ),
    Case(
        "sqlite_conn",
        """\
import sqlite3
con=sqlite3.connect(':memory:')
""",
        "print(con.execute('select 1').fetchone())",
        limit="connections cannot be pickled: reported",
        shows="refused",
    ),
    Case(
        "weakref_unrelated",
        """\
import weakref
class A: pass
a=A();r=weakref.ref(a)
""",
        "print(a is not None)",
        inputs={"a"},
    ),
    Case(
        "weakref_needed",
        """\
import weakref
class A: pass
a=A();r=weakref.ref(a)
""",
        "print(r() is a)",
        limit="weakref cannot be pickled: reported",
        shows="refused",
    ),
    Case(
        "mpl_figure",
        """\
import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
fig,ax=plt.subplots();ax.plot([1,2])
""",
        "print(len(ax.lines), ax.figure is fig)",
    ),
    Case(
        "iterator_state",
        "it=iter([1,2,3]);_x=next(it)",
        "print(next(it))",
    ),
    Case(
        "rng_state",
        """\
import random,numpy as np
rng=np.random.default_rng(1);rng.random(3);r=random.Random(3);r.random()
""",
        "print(rng.random()==__import__('numpy').random.default_rng(1).random(4)[3], round(r.random(),6))",
    ),
    Case(
        "global_seed",
        """\
import random
random.seed(1);random.random()
""",
        "print(random.random())",
        limit="module-level random state is not a variable: not shipped",
        shows="differs",
    ),
    Case(
        "module_state",
        """\
import decimal
decimal.getcontext().prec=5
""",
        "print(decimal.Decimal(1)/3)",
        limit="state inside library modules is not shipped",
        shows="differs",
    ),
    Case(
        "monkeypatched_module",
        """\
import math
math.foo=3
""",
        "print(math.foo)",
        limit="patched library modules are not shipped",
        shows="differs",
    ),
    Case(
        "exception_class",
        """\
class E(ValueError):
    def __init__(s,a,b): super().__init__(a); s.b=b
""",
        """\
try:
    raise E(1,2)
except ValueError as ex:
    print(type(ex).__name__,ex.b)
""",
    ),
    Case(
        "setattr_on_class_method_later",
        """\
class A: pass
def m(self): return N
N=7
A.m=m
del m
a=A()
""",
        "print(a.m())",
    ),
    Case(
        "descriptor_desc",
        """\
class D:
    def __get__(s,o,t): return O
class A:
    d=D()
O=5
""",
        "print(A().d)",
        inputs={"A", "O"},
    ),
    Case(
        "dunder_call_instance",
        """\
class M:
    def __call__(s,x): return x+BIAS2
BIAS2=2
m=M()
""",
        "print(list(map(m,[1])))",
        inputs={"BIAS2", "m"},
    ),
    Case(
        "operator_dunders",
        """\
class V:
    def __init__(s,v): s.v=v
    def __add__(s,o): return V(s.v+o.v)
    def __repr__(s): return f'V({s.v})'
u=V(1)
""",
        "print(u+V(2))",
    ),
    Case(
        "import_hook_numpy_ufunc",
        """\
import numpy as np
vf=np.vectorize(lambda x:x+OFFS)
OFFS=1
""",
        "print(vf([1,2]).tolist())",
    ),
    Case(
        "sklearn_custom",
        """\
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
ft=FunctionTransformer(lambda X:X*SC)
SC=3
pl=make_pipeline(ft)
""",
        """\
import numpy as np
print(pl.fit_transform(np.ones((1,2))).tolist())
""",
    ),
    Case(
        "type_alias_union",
        """\
Num=int|float
from typing import Callable
F=Callable[[int],str]
""",
        "print(isinstance(1,Num),F.__args__)",
    ),
    Case(
        "property_setter_mutates",
        """\
class A:
    def __init__(s): s._v=0
    @property
    def v(s): return s._v
    @v.setter
    def v(s,x): s._v=clip(x)
def clip(x): return min(x,LIM)
LIM=3
a=A()
""",
        """\
a.v=9
print(a.v)
""",
        inputs={"LIM", "a", "clip"},
    ),
    Case(
        "cell_level_return_value",
        "x=2",
        "x*21",
    ),
    Case(
        "bytes_big_int",
        "b=b'\\x00\\xff';n=10**200;c=1+2j;s='\\ud800'",
        "print(b,n%7,c,len(s))",
    ),
    Case(
        "deep_nesting",
        """\
d=[]
for _ in range(500): d=[d]
""",
        """\
n=0
while d: d=d[0];n+=1
print(n)
""",
    ),
    Case(
        "too_deep_nesting",
        """\
d=[]
for _ in range(100000): d=[d]
""",
        "print(bool(d))",
        limit="pickle recursion: reported with the variable name",
        shows="refused",
    ),
    Case(
        "self_ref",
        "d={};d['me']=d;l=[d]",
        "print(d['me'] is d, l[0] is d)",
    ),
    # ------------------------------------------------ flow
    Case(
        "raise_ends_a_branch",
        "v='old';c=0",
        "if c:\n    raise ValueError\nelse:\n    v='new'\nprint(v)",
        inputs={"c"},
    ),
    Case(
        "break_ends_a_branch",
        "v='old'",
        "for i in [1, 2]:\n    if i == 1:\n        break\n    v = i\nprint(v)",
        inputs={"v"},
    ),
    Case("while_body_is_not_sure", "v='old';n=0", "while n:\n    v=1\nprint(v)", inputs={"n", "v"}),
    Case("loop_target_is_bound_in_the_body", "i=99", "for i in [1]:\n    print(i)", inputs=set()),
    Case(
        "with_as_binds",
        "h='old'",
        "import io\nwith io.StringIO('a') as h:\n    print(h.read())",
        inputs=set(),
    ),
    Case(
        "finally_binds_for_sure",
        "v='old'",
        "try:\n    pass\nfinally:\n    v=2\nprint(v)",
        inputs=set(),
    ),
    Case(
        "try_else_is_not_sure",
        "v='old'",
        "try:\n    1/0\nexcept ZeroDivisionError:\n    pass\nelse:\n    v=1\nprint(v)",
        inputs={"v"},
    ),
    Case(
        "except_star",
        "v='old'",
        "try:\n    raise ExceptionGroup('g', [ValueError(1)])\nexcept* ValueError as g:\n"
        "    print(len(g.exceptions), v)",
        inputs={"v"},
    ),
    Case("bare_annotation_reads_its_type_alone", "T=int;x=5", "x: T\nprint(x)", inputs={"T", "x"}),
    Case("annotated_assignment_binds", "x='old';T=int", "x: T = 3\nprint(x)", inputs={"T"}),
    Case(
        "a_default_reads_the_old_function",
        "def f(): return 'old'",
        "def f(g=f): return g()\nprint(f())",
        inputs={"f"},
    ),
    Case(
        "a_decorator_reads_the_old_name",
        "def f(g): return lambda: 'made'",
        "@f\ndef f(): pass\nprint(f())",
        inputs={"f"},
    ),
    Case(
        "a_base_reads_the_old_class",
        "class A:\n    v='old'",
        "class A(A): pass\nprint(A.v)",
        inputs={"A"},
    ),
    Case(
        "recursion_in_the_cell_reads_nothing",
        "fact='old'",
        "def fact(n): return 1 if n < 2 else n * fact(n - 1)\nprint(fact(5))",
        inputs=set(),
    ),
    Case(
        "walrus_behind_and_is_not_sure",
        "n='old';c=0",
        "c and (n := 1)\nprint(n)",
        inputs={"c", "n"},
        outputs={"n"},
    ),
    Case("del_then_bind_again", "t=1;k=t", "del t\nt = 2\nprint(t)", inputs={"t"}, deletes={"t"}),
    Case("augmented_subscript", "d={'a': [1]}", "d['a'] += [2]\nprint(d)", inputs={"d"}),
    Case(
        "starred_target",
        "rest='old';a=0",
        "a, *rest = [1, 2, 3]\nprint(a, rest)",
        inputs=set(),
        outputs={"a", "rest"},
    ),
    Case("swap", "a=1;b=2", "a, b = b, a\nprint(a, b)", inputs={"a", "b"}),
    Case(
        "chained_comparison_and_conditional",
        "lo=1;hi=5;x=3;other=9",
        "print('in' if lo < x < hi else other)",
        inputs={"lo", "hi", "x", "other"},
    ),
    Case(
        "class_body_loop_and_scope",
        "k=2;items=[1,2]",
        "class A:\n    for i in items:\n        pass\n    j = [k for _ in range(2)]\n"
        "print(A.i, A.j)",
        inputs={"k", "items"},
    ),
    Case(
        "nested_def_reads_a_global",
        "g=4",
        "def outer():\n    def inner():\n        return g\n    return inner()\nprint(outer())",
        inputs={"g"},
    ),
    Case(
        "lambda_in_a_comprehension", "k=3", "print([f(2) for f in [lambda x: x * k]])", inputs={"k"}
    ),
    Case(
        "async_comprehension",
        "n=3",
        "async def gen():\n    for i in range(n): yield i\nprint([x async for x in gen()])",
        inputs={"n"},
    ),
    Case(
        "future_flag_of_the_cell",
        "",
        "from __future__ import annotations\ndef f(x: Undefined): return 1\nprint(f(0))",
    ),
    Case("global_statement_at_the_top", "g=1", "global g\ng = 2\nprint(g)", outputs={"g"}),
    # ------------------------------------------------ names in strings
    Case(
        "df_eval_at",
        "import pandas as pd\nd=pd.DataFrame({'a':[1,2]});k=10",
        "print(d.eval('a * @k').tolist())",
        inputs={"d", "k"},
    ),
    Case(
        "pd_eval",
        "import pandas as pd\nd=pd.Series([1,2]);k=10",
        "print(pd.eval('d * k').tolist())",
        inputs={"d", "k", "pd"},
    ),
    Case(
        "timeit_globals",
        "q=3",
        "import timeit\nprint(timeit.timeit('q + 1', globals=globals(), number=1) > 0)",
        inputs={"q"},
    ),
    Case(
        "exec_of_a_literal_that_calls",
        "def f(): return k\nk=2",
        "exec('y = f()')\nprint(y)",
        inputs={"f", "k"},
        outputs={"y"},
    ),
    Case(
        "getattr_by_name_in_a_string",
        "class C:\n    v=1\nname='C'",
        "print(globals()['C'].v, name)",
        inputs={"C", "name"},
    ),
    Case(
        "annotation_resolved_in_a_function",
        "class Node: pass\nimport typing\ndef f(x: 'Node'): return x",
        "print(typing.get_type_hints(f)['x'].__name__)",
        inputs={"Node", "f", "typing"},
    ),
    Case(
        "a_name_read_by_a_lambda_in_a_frame_call",
        "import pandas as pd\nd=pd.DataFrame({'a':[1,2,3]})\nlim=2",
        "print(d.pipe(lambda t: t.query('a > @lim')).a.tolist())",
        inputs={"d", "lim"},
    ),
    # ------------------------------------------------ IPython
    Case(
        "magic_prun",
        "def f(): return x\nx='abc'",
        "%prun -q f()\nprint(x)",
        inputs={"f", "x"},
        ipython=True,
    ),
    Case(
        "magic_cell_time",
        "x='abc'",
        "%%time\ny = x\nprint(y)",
        inputs={"x"},
        outputs={"y"},
        ipython=True,
    ),
    Case(
        "magic_cell_capture",
        "x='abc'",
        "%%capture out\nprint(x)\nz = x",
        inputs={"x"},
        outputs={"z"},
        ipython=True,
        compare_output=False,
    ),
    Case(
        "timeit_line_setup",
        "x=3",
        "%timeit -n1 -r1 x + 1",
        inputs={"x"},
        ipython=True,
        compare_output=False,
    ),
    Case(
        "bash_body_is_not_expanded",
        "name='abc'",
        "%%bash\necho abc $name",
        inputs=set(),
        ipython=True,
    ),
    Case(
        "help_of_an_attribute",
        "class K:\n    def m(self): 'doc'\nk=K()",
        "k.m?",
        inputs={"k"},
        ipython=True,
        compare_output=False,
    ),
    Case("nested_braces_expand", "d={'k':'abc'}", "!echo {d['k']}", inputs={"d"}, ipython=True),
    # ------------------------------------------------ values
    Case("history_value", "_3='abc'", "print(_3)", inputs={"_3"}),
    Case(
        "two_aliases_of_one_array",
        "import numpy as np\na=np.zeros(3);b=a;d={'a':a}",
        "b[0]=7\nprint(a is b, d['a'] is a, a.tolist())",
        inputs={"a", "b", "d"},
    ),
    Case(
        "object_with_slots_and_properties",
        "class P:\n    __slots__=('x','__weakref__')\n"
        "    def __init__(s,x): s.x=x\n    @property\n    def y(s): return s.x+K\nK=2\np=P(1)",
        "print(p.y)",
        inputs={"K", "p"},
    ),
    Case(
        "bound_method_as_a_value",
        "class P:\n    def m(s): return K\nK=2\nm=P().m",
        "print(m())",
        inputs={"K", "m"},
    ),
    Case(
        "partial_of_a_method_in_a_dict",
        "import functools\nclass P:\n    def m(s,a): return a+K\n"
        "K=1\nd={'f':functools.partial(P().m, 2)}",
        "print(d['f']())",
        inputs={"K", "d"},
    ),
    Case(
        "cached_property",
        "import functools\nclass P:\n    @functools.cached_property\n"
        "    def v(s): return K\nK=3\np=P()",
        "print(p.v)",
        inputs={"K", "p"},
    ),
    Case(
        "partialmethod_and_init_subclass",
        "import functools\nclass B:\n    subs=[]\n"
        "    def __init_subclass__(cls, **k): B.subs.append(cls.__name__)\n"
        "    def f(s,a): return a+K\n    g=functools.partialmethod(f, 2)\nK=1",
        "class D(B): pass\nprint(B.subs, D().g())",
        inputs={"B", "K"},
    ),
    Case(
        "function_attributes",
        "def f(): return f.n + K\nf.n=1\nK=2",
        "print(f())",
        inputs={"K", "f"},
    ),
    Case(
        "context_manager_class",
        "class M:\n    def __enter__(s): return K\n    def __exit__(s,*a): return True\nK=5",
        "with M() as v:\n    print(v)",
        inputs={"K", "M"},
        outputs={"v"},
    ),
    Case(
        "contextmanager_generator",
        "import contextlib\n@contextlib.contextmanager\ndef cm():\n    yield K\nK=6",
        "with cm() as v:\n    print(v)",
        inputs={"K", "cm"},
    ),
    Case(
        "iterator_class",
        "class I:\n    def __iter__(s): return iter(range(K))\nK=3",
        "print(list(I()))",
        inputs={"I", "K"},
    ),
    Case(
        "default_factory",
        "from collections import defaultdict\nd=defaultdict(lambda: K)\nK=4",
        "print(d['x'])",
        inputs={"K", "d"},
    ),
    Case(
        "deque_counter_chainmap",
        "from collections import *\nq=deque([1],maxlen=2);c=Counter('aab')\n"
        "m=ChainMap({'a':1},{'b':2})",
        "q.append(2);q.append(3)\nprint(q,c['a'],m['b'])",
        inputs={"c", "m", "q"},
    ),
    Case(
        "dates_and_decimals",
        "import datetime as dt, decimal, fractions, zoneinfo\n"
        "t=dt.datetime(2020,1,2,tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))\n"
        "d=decimal.Decimal('1.10');f=fractions.Fraction(1,3)",
        "print(t,d,f,t.tzinfo.key)",
        inputs={"d", "f", "t"},
    ),
    Case(
        "regex_path_uuid",
        "import re,pathlib,uuid\nr=re.compile('a+');p=pathlib.Path('x/y');u=uuid.UUID(int=5)",
        "print(r.match('aab').end(),p.name,u.int)",
        inputs={"p", "r", "u"},
    ),
    Case(
        "regex_matches",
        "import re\nm=re.match('(a)(?P<n>b)?','abab');s=re.search('b+','aab');"
        "f=re.fullmatch('a|ab','ab')\nlast=list(re.finditer('(?<=a)b','ab ab'))[-1]",
        "print(m['n'],m.groups(),m.re.pattern,s.span(),f[0],last.span(),last.string)",
        inputs={"f", "last", "m", "s"},
    ),
    Case(
        "exception_instances",
        "class E(Exception):\n    def __init__(s,a,*,k=1): "
        "super().__init__(a); s.k=k\ne=E('x',k=2)\ne.__notes__=['n']",
        "print(repr(e), e.k, e.__notes__)",
        inputs={"e"},
    ),
    Case(
        "mutual_classes",
        "class A:\n    def b(s): return B()\nclass B:\n    def a(s): return A()",
        "print(type(A().b().a()) is A)",
        inputs={"A", "B"},
    ),
    Case(
        "generic_alias_of_a_class",
        "class Box:\n    def __class_getitem__(cls,t): return (cls,t)",
        "print(Box[int][1])",
        inputs={"Box"},
    ),
    Case(
        "deep_enough_for_a_thread",
        "import sys\nd=[]\nfor _ in range(400 if sys.version_info[:2] == (3, 12) else 3000): d=[d]",
        "n=0\nwhile d: d=d[0];n+=1\nprint(n)",
        inputs={"d"},
    ),
    Case(
        "all_the_unpicklable_and_none_needed",
        "import threading,socket,weakref,sqlite3\n"
        "class A: pass\na=A();r=weakref.ref(a);l=threading.Lock();g=(i for i in [1])\n"
        "c=sqlite3.connect(':memory:');s=socket.socket();ok=1",
        "print(ok)",
        inputs={"ok"},
    ),
    Case(
        "socket_needed",
        "import socket\ns=socket.socket()",
        "s.fileno()",
        limit="sockets cannot be pickled: reported",
        shows="refused",
    ),
    Case(
        "coroutine_needed",
        "async def f(): return 1\nco=f()",
        "await co",
        limit="coroutines cannot be pickled: reported",
        shows="refused",
    ),
    Case(
        "file_for_writing_needed",
        "fh=open('/dev/null','w')",
        "fh.write('x')",
        limit="files open for writing stay: reported",
        shows="refused",
    ),
    Case(
        "binary_file_needed",
        "fh=open('/etc/hostname','rb')",
        "fh.read()",
        limit="binary files stay: reported",
        shows="refused",
    ),
    Case(
        "zip_archive_needed",
        "import zipfile,io\nb=io.BytesIO()\nz=zipfile.ZipFile(b,'w')\n"
        "z.writestr('a','b')\nf=open('/etc/hostname','rb');h={'deep':[f]}",
        "h",
        limit="handles inside containers are found and named",
        shows="refused",
    ),
    Case(
        "thread_needed",
        "import threading\nt=threading.Thread()",
        "t.is_alive()",
        limit="threads cannot be pickled: reported",
        shows="refused",
    ),
    Case(
        "set_order",
        "s={f'k{i}' for i in range(50)} - {'k3'}",
        "print(sorted(s)[:2], len(s))",
        inputs={"s"},
    ),
    Case(
        "environment_variable",
        "import os\nos.environ['GRIDX_CASE']='1'",
        "print(os.environ.get('GRIDX_CASE'))",
        limit="the environment is not a variable: not shipped",
        shows="differs",
    ),
)

# scikit-learn is no dependency of ours: its case joins where it is installed.
CASES: Final = tuple(
    case for case in _ALL if "sklearn" not in case.setup or find_spec("sklearn") is not None
)
