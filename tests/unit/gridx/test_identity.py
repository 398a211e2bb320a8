"""What stands for a worker's key, without any cryptography."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gridx.errors import InvalidRequest
from gridx.identity import decode_key, encode_key, fingerprint, hello_text

KEY = encode_key(bytes(range(32)))


def test_a_fingerprint_is_short_and_of_this_key() -> None:
    assert fingerprint(KEY) == "7671-ccc1-62d4-42cf-7db9"
    assert fingerprint(encode_key(bytes(32))) != fingerprint(KEY)


@pytest.mark.parametrize("text", ["", "x", KEY[:-4], KEY + "AAAA", "é" * 44, KEY.replace("A", "-")])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        fingerprint(text)


def test_each_part_of_a_hello_changes_what_is_signed() -> None:
    texts = {hello_text("w", "u", 1), hello_text("w", "u", 2), hello_text("w", "v", 1),
             hello_text("x", "u", 1), hello_text("w\nu", "", 1)}  # fmt: skip
    assert len(texts) == 5
    assert decode_key(KEY) == bytes(range(32))


def test_a_notebook_needs_no_cryptography_for_it() -> None:
    code = "import sys, gridx.identity; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
