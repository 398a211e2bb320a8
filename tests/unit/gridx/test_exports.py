from __future__ import annotations

import subprocess
import sys

import pytest

import gridx


@pytest.mark.parametrize("name", gridx.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(gridx, name) is not None


def test_every_public_class_says_what_it_is() -> None:
    for name in gridx.__all__:
        if name != "__version__":
            assert getattr(gridx, name).__doc__, name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Executer'"):
        gridx.Executer  # noqa: B018  # asking is the test
    assert dir(gridx) == sorted(gridx.__all__)


def test_importing_the_package_costs_neither_tornado_nor_asyncio() -> None:
    code = (
        "import sys, gridx, gridx.cli; gridx.cli.parser();"
        "heavy = {'tornado', 'asyncio', 'IPython', 'numpy', 'cloudpickle', 'ssl'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
