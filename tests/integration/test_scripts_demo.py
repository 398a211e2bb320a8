"""`make demo`, as a newcomer types it: the real programs, the real first example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_demo(**environment: str) -> str:
    """Return what the demo printed; it must end well."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def moved(said: str, user: str) -> float:
    """Return the last column of the user's line in the table of balances."""
    found = re.search(rf"^  {user} +[\d.]+ +[\d.]+ +([+-][\d.]+)$", said, re.MULTILINE)
    assert found, said
    return float(found[1])


@pytest.mark.docker
@pytest.mark.slow
def test_the_demo_runs_the_first_example_in_a_container_and_moves_credits_by_its_cost() -> None:
    said = run_demo()
    assert "sandbox: docker" in said
    paid, earned = moved(said, "scientist"), moved(said, "lender")
    assert paid < 0 < earned < -paid
    assert "demo: everything is stopped" in said


@pytest.mark.slow
def test_without_docker_the_demo_says_so_and_runs_in_a_process_for_nothing() -> None:
    said = run_demo(DOCKER_HOST="unix:///nowhere/docker.sock", GRIDX_NO_INSTALL="1")
    assert "no container for this demo" in said
    assert "sudo apt-get install" in said or "Docker" in said
    assert "sandbox: process" in said
    assert moved(said, "scientist") == 0
    assert "demo: everything is stopped" in said
