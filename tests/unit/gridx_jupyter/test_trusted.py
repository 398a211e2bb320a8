"""Trust names a worker by its key and widens display alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridx.errors import GridXError, NotFound
from gridx.identity import encode_key, fingerprint
from gridx.resources import GIB, Capability
from gridx.schemas import WorkerView
from gridx.settings import config_file
from gridx.trust import pinned_workers
from gridx_jupyter.magics.progress import prepare_display
from gridx_jupyter.magics.publish import Publisher
from gridx_jupyter.magics.render import StatusLine
from gridx_jupyter.magics.trusted import show_for, trust, trusted_text, untrust

from .test_publish import RecordingScreen
from .test_render import view

KEYS = [encode_key(bytes([number]) * 32) for number in range(3)]


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def worker(name: str, key: str, owner: str = "lender") -> WorkerView:
    offer = Capability(cores=1, memory_bytes=GIB, slots=1, sandbox="docker")
    return WorkerView(
        worker_id=f"wrk_{name}{key[:3]}", name=name, owner=owner, status="online",
        capability=offer, public_key=key,
    )  # fmt: skip


class Grid:
    """Stands for a client whose grid has these workers."""

    def __init__(self, *workers: WorkerView) -> None:
        self._workers = workers

    def workers(self) -> tuple[WorkerView, ...]:
        return self._workers


def test_trust_pins_the_key_and_says_what_it_means() -> None:
    grid: Any = Grid(worker("anna\x1b[2J", KEYS[0]), worker("bert", KEYS[1]))
    text = trust(grid, fingerprint(KEYS[0]))
    assert f"anna of lender, key {fingerprint(KEYS[0])}" in text
    assert "nothing of it is unpickled" in text
    assert "\x1b" not in text
    assert [pin.public_key for pin in pinned_workers()] == [KEYS[0]]
    assert "anna" in trusted_text()
    assert "anna" in untrust("anna")
    assert trusted_text().startswith("No worker is trusted.")


def test_a_name_that_two_workers_have_trusts_neither() -> None:
    grid: Any = Grid(worker("anna", KEYS[0]), worker("anna", KEYS[1], owner="mallory"))
    with pytest.raises(GridXError, match="2 workers") as raised:
        trust(grid, "anna")
    assert f"{fingerprint(KEYS[1])} of mallory" in raised.value.hint
    assert pinned_workers() == ()


@pytest.mark.parametrize("name", ["carl", "old", ""])
def test_a_worker_that_is_unknown_or_has_no_key_is_not_trusted(name: str) -> None:
    grid: Any = Grid(worker("anna", KEYS[0]), worker("old", ""))
    with pytest.raises(NotFound):
        trust(grid, name)


def test_a_pinned_worker_is_shown_in_a_frame_unless_the_cell_says_otherwise() -> None:
    grid: Any = Grid(worker("anna", KEYS[0]))
    trust(grid, "anna")
    assert show_for(None, view(worker_key=KEYS[0])) == "interactive"
    assert show_for("clean", view(worker_key=KEYS[0])) == "clean"
    assert show_for("text", view(worker_key=KEYS[0])) == "text"
    assert show_for(None, view(worker_key=KEYS[1], worker_name="anna")) == "clean"
    assert show_for(None, view()) == "clean"
    assert show_for("interactive", view()) == "interactive"


def test_a_settings_file_that_cannot_be_read_pins_nothing() -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text("[[trust")
    assert show_for(None, view(worker_key=KEYS[0])) == "clean"


def test_who_runs_another_attempt_is_not_known_before_it_is_said() -> None:
    grid: Any = Grid(worker("anna", KEYS[0]))
    trust(grid, "anna")
    screen = RecordingScreen()
    publisher = Publisher(screen, StatusLine(screen, quiet=True), "job_1")  # type: ignore[arg-type]
    order: Any = SimpleNamespace(options=SimpleNamespace(show=None))
    trusted = view(worker_key=KEYS[0], worker_name="anna", attempt=1)
    for attempt, shown in ((1, "interactive"), (2, "clean"), (None, "interactive")):
        prepare_display(publisher, order, trusted, attempt)
        assert publisher.show == shown
    prepare_display(publisher, order, view(worker_name="anna", attempt=2), 2)
    assert publisher.show == "clean"
