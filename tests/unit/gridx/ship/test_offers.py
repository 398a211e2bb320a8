"""Which images could serve a job, and what is said where none does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gridx.errors import InvalidRequest
from gridx.resources import GIB, Accepts, Capability, Image, Pause, PauseReason
from gridx.schemas import WorkerView
from gridx.ship.offers import Wish, digests, families, is_paused, offers, pythons


def image(name: str, language: str = "python") -> Image:
    tag = name.partition(":")[2].partition("-")[0]
    return Image(name=name, digest=f"sha256:{name}", language=language, python=tag)


def worker(name: str, *images: Image, owner: str = "lender", status: str = "online",
           **more: Any) -> WorkerView:  # fmt: skip
    offer = Capability(cores=4, memory_bytes=8 * GIB, slots=4, sandbox="docker", images=images)
    return WorkerView(
        worker_id=f"w_{name}",
        name=name,
        owner=owner,
        status=status,
        capability=msgspec.structs.replace(offer, **more),
    )


PY311, PY312 = image("gridx/python:3.11-a"), image("gridx/python:3.12-b")
TORCH = image("gridx/torch:3.12-c")
BASH = image("gridx/bash", "bash")
PAUSED = Pause(reason=PauseReason.ACTIVE, message="The owner is using the machine.")


def test_only_the_family_and_the_python_that_are_asked_for_serve() -> None:
    both = worker("a", PY311, TORCH, PY312)
    assert offers([both], "u", Wish(python="3.12")).images == (PY312,)
    assert offers([both], "u", Wish(python="3.12", family="torch")).images == (TORCH,)
    assert offers([both], "u", Wish(python="3.12")).others == (TORCH,)


def test_a_worker_that_does_not_take_my_jobs_says_nothing() -> None:
    mine = worker("a", PY312, owner="u", accepts=Accepts.MINE)
    other = worker("b", TORCH, accepts=Accepts.MINE)
    process = worker("c", PY312, sandbox="process")
    found = offers([mine, other, process], "u", Wish(python="3.12"))
    assert (found.images, found.workers, found.others) == ((PY312,), ("a",), ())
    assert pythons([mine, other, process], "v") == set()


def test_workers_that_are_offline_say_nothing() -> None:
    assert offers([worker("a", PY312, status="offline")], "u", Wish()).images == ()


def test_a_paused_worker_counts_only_where_there_is_no_other() -> None:
    away = worker("a", PY311, status="paused", pause=PAUSED)
    here = worker("b", PY311)
    assert is_paused(away)
    assert offers([away, here], "u", Wish(python="3.11")).workers == ("b",)
    found = offers([away], "u", Wish(python="3.11"))
    assert found.images == (PY311,)
    assert found.notice == (
        "a, the only worker with Python 3.11, is paused: The owner is using the machine; "
        "the job waits"
    )
    two = offers([away, worker("c", PY311, pause=PAUSED)], "u", Wish(python="3.11"))
    assert two.notice.startswith("all 2 workers with Python 3.11 are paused (a: The owner")


def test_why_the_only_worker_does_not_take_the_job_is_said() -> None:
    mine = worker("a", BASH, accepts=Accepts.MINE)
    notice = offers([mine], "u", Wish(language="bash")).notice
    assert notice == "a, the only worker with bash, takes jobs of its owner alone; the job waits"
    named = worker("a", BASH, accepts=Accepts.USERS, users=("v",))
    assert "users that its owner names" in offers([named], "u", Wish(language="bash")).notice
    assert offers([named], "v", Wish(language="bash")).notice == ""
    hidden = worker("a", BASH, accepts=Accepts.USERS)  # as those see it who do not own it
    assert offers([hidden], "u", Wish(language="bash")).images == (BASH,)


def test_a_language_that_nobody_has_waits_for_a_worker() -> None:
    notice = offers([worker("a", PY311)], "u", Wish(language="node")).notice
    assert notice == "no worker online has node; the job waits for one"


def test_without_any_worker_nothing_is_refused_or_said() -> None:
    assert offers([], "u", Wish(family="torch", installs=True)) == offers([], "u", Wish())


def test_an_unknown_image_names_those_that_exist() -> None:
    with pytest.raises(InvalidRequest) as caught:
        offers([worker("a", PY312, TORCH, BASH)], "u", Wish(python="3.12", family="troch"))
    assert caught.value.message == (
        "No worker has an image 'troch' for python. There is: python, torch."
    )
    assert "--image torch" in caught.value.hint


def test_an_image_of_another_python_is_named_with_its_python() -> None:
    with pytest.raises(
        InvalidRequest, match=r"torch is there for Python 3\.12, and this cell needs"
    ):
        offers([worker("a", PY311, TORCH)], "u", Wish(python="3.11", family="torch"))


def test_packages_need_a_worker_that_installs_them() -> None:
    plain = worker("a", PY312)
    with pytest.raises(InvalidRequest, match=r"No worker with Python 3.12 .* installs packages"):
        offers([plain], "u", Wish(python="3.12", installs=True))
    builds = worker("b", PY312, environments=True)
    found = offers([plain, builds], "u", Wish(python="3.12", installs=True))
    assert (found.workers, found.builds) == (("b",), True)
    assert offers([plain, builds], "u", Wish(python="3.12")).builds


def test_families_and_digests_are_of_connected_workers() -> None:
    workers = [worker("a", PY312, TORCH), worker("b", PY311, status="offline")]
    assert families(workers) == ["python", "torch"]
    assert digests(workers, Wish(python="3.12")) == {"w_a": PY312.digest}
    assert pythons([worker("a", PY312, PY311, TORCH)], "u") == {"3.11", "3.12"}
    assert pythons([worker("a", PY311, TORCH)], "u", "torch") == {"3.12"}
