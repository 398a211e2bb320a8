"""Where blobs are, as seen from a worker."""

from __future__ import annotations

import pytest

from worker.transfers import blob_address


@pytest.mark.parametrize(
    ("told", "dialled", "address"),
    [
        ("http://localhost:8081", "ws://localhost:8080/ws/worker", "http://localhost:8081"),
        ("http://127.0.0.1:8081/", "ws://localhost:8080/ws/worker", "http://127.0.0.1:8081"),
        ("http://0.0.0.0:8081", "ws://lab.example:8080/ws/worker", "http://lab.example:8081"),
        ("http://localhost:8081", "ws://10.0.0.7:8080/ws/worker", "http://10.0.0.7:8081"),
        ("http://[::]:8081", "ws://[fd00::7]:8080/ws/worker", "http://[fd00::7]:8081"),
        ("https://grid.example", "wss://workers.example/ws/worker", "https://grid.example"),
        ("https://grid.example/grid", "wss://x.example/ws", "https://grid.example/grid"),
    ],
)
def test_an_address_that_means_this_machine_is_the_one_that_was_dialled(
    told: str, dialled: str, address: str
) -> None:
    assert blob_address(told, dialled) == address
