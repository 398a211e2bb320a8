"""Results that are kept for ``--cache``."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from gridx.events import Stream, encode_event
from gridx.ship.capture import capture
from gridx.updates import EventArrived, Finished
from gridx_jupyter.magics.cache import Cache, CachedJob, Kept, key_of
from gridx_jupyter.magics.options import CellOptions
from gridx_jupyter.magics.order import Order

from .test_cell import order
from .test_render import view


def kept(result: bytes = b"result") -> Kept:
    stream = encode_event(Stream(name="stdout", text="hi\n"))
    return Kept(view=view(status="completed"), stream=stream, result=result)


def marked(body: str = "y = x", key: str = "", **names: Any) -> Order:
    made = order("pass")
    return replace(
        made,
        body=body,
        options=CellOptions(cache=key),
        captured=capture(body, names),
    )


def test_the_key_is_of_code_inputs_and_image() -> None:
    plain = key_of(marked(x=1), "image")
    assert key_of(marked(x=1), "image") == plain
    assert key_of(marked(x=2), "image") != plain
    assert key_of(marked("y = x  # other", x=1), "image") != plain
    assert key_of(marked(x=1), "other image") != plain


def test_a_key_of_the_users_own_stands_for_the_inputs() -> None:
    assert key_of(marked(x=1, key="v1"), "i") == key_of(marked(x=2, key="v1"), "i")
    assert key_of(marked(x=1, key="v1"), "i") != key_of(marked(x=1, key="v2"), "i")
    assert key_of(marked(x=1, key="v1"), "i") != key_of(marked(x=1), "i")


def test_a_result_is_private_and_found_by_its_user_alone(tmp_path: Path) -> None:
    Cache(tmp_path, "http://a", "ada").keep("k", kept())
    found = Cache(tmp_path, "http://a", "ada").find("k")
    assert found == kept()
    assert Cache(tmp_path, "http://a", "bob").find("k") is None
    assert Cache(tmp_path, "http://b", "ada").find("k") is None
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]


def test_the_results_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "u", "ada", max_bytes=5_000)
    for n, key in enumerate("abc"):
        cache.keep(key, kept(bytes(1_200)))
        path = next(tmp_path.rglob(f"{key}.result"))
        os.utime(path, ns=(n * 10**9, n * 10**9))
    assert cache.find("a") is not None  # used now: b is the oldest
    cache.keep("d", kept(bytes(1_200)))
    assert cache.find("b") is None
    assert cache.find("a") is not None
    assert cache.keep("e", kept(bytes(6_000))) is False


def test_clearing_says_how_much_there_was(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "u", "ada")
    cache.keep("a", kept())
    count, size = cache.clear()
    assert count == 1
    assert size > 0
    assert cache.size() == (0, 0)


def test_a_broken_file_is_no_result(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "u", "ada")
    cache.keep("a", kept())
    next(tmp_path.rglob("a.result")).write_bytes(b"\xc1")
    assert cache.find("a") is None


def test_a_kept_cell_shows_its_output_and_ends_at_no_cost() -> None:
    job = CachedJob(kept())
    first, last = list(job.updates(idle_s=0.1))
    assert isinstance(first, EventArrived)
    assert isinstance(last, Finished)
    assert (last.cost_ucr, last.result, job.stdout) == (0, b"result", "hi\n")
    assert job.footer(last).startswith("from cache")
    assert job.id in job.footer(last)
