"""What of this machine goes into an image, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.images import copied
from worker.images.names import current_python_minor


def test_libraries_are_copied_and_the_c_library_is_the_bases_own() -> None:
    said = (
        "\tlinux-vdso.so.1 (0x00007fe7)\n"
        "\tlibssl.so.3 => /lib/x86_64-linux-gnu/libssl.so.3 (0x0000)\n"
        "\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x0000)\n"
        "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x0000)\n"
        "\tlibcrypt.so.1 => not found\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x0000)\n"
    )
    assert copied.linked(said) == {"libssl.so.3": Path("/lib/x86_64-linux-gnu/libssl.so.3")}


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("test/test_os.py", True),
        ("unittest/test/x.py", True),
        ("idlelib/idle.py", True),
        ("site-packages/secret/key.py", True),
        ("json/__pycache__/decoder.cpython-312.pyc", True),
        ("config-3.12-x86_64-linux-gnu/libpython3.12.a", True),
        ("lib-dynload/_tkinter.cpython-312-x86_64-linux-gnu.so", True),
        ("lib-dynload/_ssl.cpython-312-x86_64-linux-gnu.so", False),
        ("unittest/mock.py", False),
        ("json/decoder.py", False),
    ],
)
def test_of_an_interpreter_only_its_library_is_copied(name: str, left_out: bool) -> None:
    assert bool(copied._LEFT_OUT_OF_LIBRARY.search(name)) is left_out


def test_a_python_that_is_not_there_is_not_found() -> None:
    assert copied.find_interpreter("3.97") is None


def test_this_python_describes_itself() -> None:
    import sys

    minor = current_python_minor()
    found = copied._ask(Path(sys.executable), minor)
    assert found is not None
    assert found.version.startswith(minor + ".")
    assert {"zlib", "ctypes"} <= set(found.modules)
    assert copied._ask(Path(sys.executable), "3.97") is None
