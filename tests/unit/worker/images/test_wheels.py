"""What of the wheels an image gets, and for which machines they are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.images.names import RUNTIME_DIR
from worker.images.wheels import is_left_out, packages_in, wheel_platforms

ROOT = Path(__file__).resolve().parents[4]


def test_both_ends_of_a_pickle_have_the_same_releases() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = path.read_text().splitlines()
        return dict(line.split("==") for line in lines if "==" in line and line[0] != "#")

    here, there = pins(ROOT / "constraints.txt"), pins(RUNTIME_DIR / "requirements.txt")
    assert {"cloudpickle", "msgspec", "ipython", "numpy"} <= set(there)
    assert {name: here.get(name) for name in there} == there


def test_the_manifest_names_distributions_as_pep_503_does(tmp_path: Path) -> None:
    for name, version in (("IPython", "9.18.1"), ("matplotlib_inline", "0.2.2")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")
    assert packages_in(tmp_path) == {"ipython": "9.18.1", "matplotlib-inline": "0.2.2"}


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("numpy/_core/tests/test_api.py", True),
        ("pandas/tests/frame/test_api.py", True),
        ("pyarrow/include/arrow/api.h", True),
        ("sympy/core/tests/test_expr.py", True),
        ("sklearn/linear_model/tests/test_ridge.py", True),
        ("bin/f2py", True),
        ("numpy/testing/__init__.py", False),
        ("scipy/stats/_stats.py", False),
        ("pyarrow/lib.so", False),
        ("jedi/third_party/tests/x.pyi", False),
    ],
)
def test_tests_and_headers_of_the_big_wheels_are_left_out(name: str, left_out: bool) -> None:
    assert bool(is_left_out(name)) is left_out


def test_wheels_are_looked_for_from_the_newest_glibc_to_the_oldest() -> None:
    names = wheel_platforms("amd64")
    assert names[0] == "manylinux_2_36_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_5_x86_64"} <= set(names)
    assert "manylinux_2_5_aarch64" not in wheel_platforms("arm64")
    assert "manylinux_2_17_aarch64" in wheel_platforms("arm64")
