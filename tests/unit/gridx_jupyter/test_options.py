"""Every option of ``%%gridx``, right and wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from IPython.core.error import UsageError

from gridx.errors import NotBuilt
from gridx.quantities import Gpus
from gridx.resources import GIB, MIB
from gridx_jupyter.magics.options import (
    CELL_OPTIONS,
    NOT_BUILT,
    NOT_OF_SCRIPTS,
    CellOptions,
    option_names,
    options_help,
    parse_cell_options,
    parse_setting,
)


def parse(line: str, **names: Any) -> CellOptions:
    return parse_cell_options(line, lambda expression: eval(expression, names))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", CellOptions()),
        ("--cpus 2", CellOptions(cpus=2.0)),
        ("--cpus=0.5", CellOptions(cpus=0.5)),
        ("--mem 8G", CellOptions(mem_bytes=8 * GIB)),
        ("--mem 512M", CellOptions(mem_bytes=512 * MIB)),
        ("--gpu", CellOptions(gpus=1)),
        ("--gpu 2", CellOptions(gpus=2)),
        ("--gpu=2", CellOptions(gpus=2)),
        ("--gpu --bg", CellOptions(gpus=1, background=True)),
        ("--gpu A100", CellOptions(gpus=1, gpu_model="A100")),
        ("--gpu=A100", CellOptions(gpus=1, gpu_model="A100")),
        ("--gpu 2:A100", CellOptions(gpus=2, gpu_model="A100")),
        ("--gpu=2:A100 --quiet", CellOptions(gpus=2, gpu_model="A100", quiet=True)),
        ("--gpu 1:4090", CellOptions(gpus=1, gpu_model="4090")),
        ("--gpu 'RTX 4090'", CellOptions(gpus=1, gpu_model="RTX 4090")),
        ("--disk 256M", CellOptions(disk_bytes=256 * MIB)),
        ("--mem 8G --disk=6G", CellOptions(mem_bytes=8 * GIB, disk_bytes=6 * GIB)),
        ("--image torch", CellOptions(image="torch")),
        ("--image=torch", CellOptions(image="torch")),
        ("--pip polars", CellOptions(pip=("polars",))),
        (
            "--pip tqdm>=4 'Polars == 1.20' --quiet",
            CellOptions(pip=("polars==1.20", "tqdm>=4"), quiet=True),
        ),
        ("--pip=polars==1.20", CellOptions(pip=("polars==1.20",))),
        ("--language bash", CellOptions(language="bash")),
        ("--language=js", CellOptions(language="node")),
        ("--language python --needs a", CellOptions(needs=("a",))),
        ("--language sh --bg --as r", CellOptions(language="bash", background=True, store_as="r")),
        ("--timeout 90", CellOptions(timeout_s=90.0)),
        ("--timeout 1h30m", CellOptions(timeout_s=5400.0)),
        ("--needs a,b", CellOptions(needs=("a", "b"))),
        ("--needs 'a, b'", CellOptions(needs=("a", "b"))),
        ("--without c", CellOptions(without=("c",))),
        ("--all", CellOptions(everything=True)),
        ("--out a", CellOptions(out=("a",))),
        ("-o a,b", CellOptions(out=("a", "b"))),
        ("--no-out", CellOptions(out=())),
        ("--bg --as run", CellOptions(background=True, store_as="run")),
        ("--quiet", CellOptions(quiet=True)),
        ("--dry-run", CellOptions(dry_run=True)),
        ("--retries 3", CellOptions(retries=3)),
        ("--max-upload 1G", CellOptions(max_upload_bytes=GIB)),
        (
            "--files a.csv data/*.csv --bg",
            CellOptions(files=("a.csv", "data/*.csv"), background=True),
        ),
        ("--fetch 'out put/*.png'", CellOptions(fetch=("out put/*.png",))),
        ("--cache", CellOptions(cache="")),
        ("--cache --quiet", CellOptions(cache="", quiet=True)),
        ("--cache=v1", CellOptions(cache="v1")),
        ("--fresh", CellOptions(cache="", fresh=True)),
        ("--cache=v1 --fresh", CellOptions(cache="v1", fresh=True)),
        ("--session work --session-time 2h", CellOptions(session="work", session_time_s=7200.0)),
        ("--local", CellOptions(local=True)),
        ("--on-interrupt detach", CellOptions(on_interrupt="detach")),
        ("--progress off", CellOptions(progress="off")),
    ],
)
def test_an_option_is_read(line: str, expected: CellOptions) -> None:
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--cpu 2", "Did you mean --cpus?"),
        ("--memory 2G", "Unknown option --memory."),
        ("--timeot 5", "Did you mean --timeout?"),
        ("--sesion x", "Did you mean --session"),
        ("--cpus", "--cpus needs a value"),
        ("--cpus --bg", "--cpus needs a value"),
        ("--cpus many", "is not a number"),
        ("--cpus 0", "above 0"),
        ("--cpus nan", "above 0"),
        ("--mem big", "is not a size"),
        ("--mem 1M", "at least 64M"),
        ("--gpu=", "Write a number, a model, or both: 2, A100, 2:A100."),
        ("--gpu 65", "more than 64 GPUs"),
        ("--gpu two:A100", "asks for no GPU"),
        ("--gpu 0:A100", "or none of a model"),
        ("--gpu 2:", "asks for no GPU"),
        ("--gpu f(x)", "asks for no GPU"),
        ("--disk", "--disk needs a value"),
        ("--disk 1K", "at least 1M"),
        ("--disk 1G", "does not fit into 1 GiB of memory"),
        ("--image", "--image needs a value"),
        ("--image docker.io/library/x", "no registry, no tag"),
        ("--image Torch", "is not an image's name"),
        ("--pip", "--pip needs a value"),
        ("--pip git+https://x/y", "is an address"),
        ("--pip ./x", "is a path"),
        ("--pip polars==1 polars==2", "list polars twice"),
        ("--pip polars --pip tqdm", "given twice"),
        ("--language ruby", "must be one of python, bash, node"),
        ("--language bash --needs a", "--needs and --language bash: no variables travel"),
        ("--language bash --out a", "no variables travel"),
        ("--language bash --no-out", "no variables travel"),
        ("--language node --files a", "no files travel to a node script"),
        ("--language bash --session s", "a session is a Python process"),
        ("--language bash --local", "%%bash in a cell of its own"),
        ("--language bash --pip polars", "installs Python packages"),
        ("--timeout never", "is not a time"),
        ("--timeout 48h", "at most"),
        ("--needs a.b", "not a variable's name"),
        ("--needs a,class", "not a variable's name"),
        ("--needs ,", "names no variable"),
        ("--as 1x", "not a variable's name"),
        ("--as _x", "not a name that can be given"),
        ("--as print", "not a name that can be given"),
        ("--bg=yes", "takes no value"),
        ("--retries 11", "from 0 to 10"),
        ("--retries -1", "--retries needs a value"),
        ("--files", "--files needs a value"),
        ("--files /etc/passwd", "is not relative"),
        ("--files ~/x", "is not relative"),
        ("--files ../x", "leaves the notebook's folder"),
        ("--fetch a/../../x", "leaves the notebook's folder"),
        ("--cache v1", "the code stands on the lines below"),
        ("--session 'a b'", "is not a name"),
        ("--on-interrupt stop", "must be one of cancel, detach, ask"),
        ("--progress bar", "must be one of"),
        ("--max-upload 0", "is not a size"),
        ("--session a --cache", "exclude each other"),
        ("--session a --local", "exclude each other"),
        ("--bg --local", "exclude each other"),
        ("--out a --no-out", "given twice"),
        ("--all --needs a", "exclude each other"),
        ("--bg --dry-run", "exclude each other"),
        ("print(1)", "the code stands on the lines below"),
        ("--needs 'a", "cannot be read"),
        ("--cpus {1/0}", "ZeroDivisionError"),
    ],
)
def test_a_wrong_option_says_what_is_wrong_and_runs_nothing(line: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line)
    text = str(caught.value)
    assert sentence in text
    assert "Nothing was run." in text
    assert "%%gridx" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_an_option_of_a_later_release_is_refused_by_name(name: str) -> None:
    with pytest.raises(NotBuilt, match="not in this release") as caught:
        parse(f"{name} x")
    assert name in str(caught.value)


def test_braces_are_expanded_in_values() -> None:
    assert parse("--cpus {n} --needs {','.join(names)}", n=3, names=["a", "b"]) == CellOptions(
        cpus=3.0, needs=("a", "b")
    )


def test_every_option_stands_in_the_help_and_in_the_completion() -> None:
    for option in CELL_OPTIONS:
        assert option.names[-1] in options_help()
        assert option.names[-1] in option_names()


def test_every_field_has_an_option() -> None:
    fields = {option.field for option in CELL_OPTIONS} | {"gpu_model"}  # --gpu sets two
    assert fields == set(CellOptions.__dataclass_fields__)


def test_the_limits_say_only_what_was_asked_for() -> None:
    # A coordinator of the release before refuses the words.
    assert b"gpu_model" not in msgspec.json.encode(CellOptions().limits())
    assert b"disk" not in msgspec.json.encode(CellOptions().limits())
    asked = CellOptions(gpus=2, gpu_model="A100", disk_bytes=GIB).limits()
    assert (asked.gpu_model, asked.disk_bytes) == ("A100", GIB)


def test_what_makes_no_sense_for_a_script_is_an_option() -> None:
    assert set(NOT_OF_SCRIPTS) <= set(CellOptions.__dataclass_fields__)


def test_defaults_that_make_no_sense_for_a_script_are_left_out() -> None:
    defaults = {"session": "work", "pip": ("polars",), "cpus": 2.0}
    options = parse_cell_options("--language bash", eval, lambda _profile: defaults)
    assert options == CellOptions(language="bash", cpus=2.0)


def test_a_model_may_be_a_default() -> None:
    assert parse_setting("gpu", "2:A100") == ("gpus", Gpus(2, "A100"))
    options = parse_cell_options("", eval, lambda _profile: {"gpus": Gpus(2, "A100")})
    assert options == CellOptions(gpus=2, gpu_model="A100")
