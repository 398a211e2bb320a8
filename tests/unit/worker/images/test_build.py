"""A program that an image needs, and its last words."""

from __future__ import annotations

import pytest

from gridx.errors import SandboxError
from worker.images.build import run_logged


def test_a_program_that_fails_gives_its_last_words() -> None:
    with pytest.raises(SandboxError) as caught:
        run_logged(
            ["sh", "-c", "echo no matching wheel >&2; exit 4"], timeout_s=10, what="Fetching"
        )
    assert "Fetching failed with exit code 4" in caught.value.message
    assert "no matching wheel" in caught.value.message
