"""A hostile or broken offer is refused with a sentence; what is only shown is made fit for it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from coordinator.rules.offers import (
    MAX_CHECKS,
    MAX_GPUS,
    MAX_IMAGES,
    MAX_PACKAGES,
    MAX_USERS,
    checked_capability,
    checked_load,
)
from gridx.errors import InvalidRequest
from gridx.resources import (
    GIB,
    Accepts,
    Capability,
    Check,
    Gpu,
    Image,
    Isolation,
    Load,
    Pause,
    PauseReason,
)

IMAGE = Image(name="gridx/python:3.11", digest="sha256:0", language="python", python="3.11")
GPU = Gpu(uuid="GPU-1", name="A100", memory_bytes=80 * GIB)
OFFER = Capability(
    cores=4,
    memory_bytes=8 * GIB,
    slots=4,
    sandbox="docker",
    images=(IMAGE,),
    gpus=(GPU,),
    accepts=Accepts.USERS,
    users=("ada", "bob"),
    isolation=Isolation(runtime="runc", checks=(Check(name="pids", kept=True),)),
)


def image(**changes: Any) -> tuple[Image, ...]:
    return (msgspec.structs.replace(IMAGE, **changes),)


def test_an_honest_offer_is_taken_as_it_is() -> None:
    assert checked_capability(OFFER) == OFFER


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cores": math.nan}, "cores"),
        ({"memory_bytes": 1 << 60}, "memory"),
        ({"slots": -1}, "slots"),
        ({"sandbox": "none"}, "kind of sandbox"),
        ({"images": (IMAGE,) * (MAX_IMAGES + 1)}, f"at most {MAX_IMAGES} images"),
        ({"gpus": (GPU,) * (MAX_GPUS + 1)}, f"at most {MAX_GPUS} GPUs"),
        ({"users": ("ada",) * (MAX_USERS + 1)}, f"at most {MAX_USERS} named users"),
        ({"users": ("ada", "b\n")}, "user"),
        ({"users": ("a" * 201,)}, "user"),
        ({"images": image(name="x" * 201)}, "name"),
        ({"images": image(name="a\x1b[31m")}, "name"),
        ({"images": image(language="\n")}, "name"),
        ({"images": image(python="four")}, "not a Python version"),
        (
            {"images": image(packages={f"p{n}": "1" for n in range(MAX_PACKAGES + 1)})},
            "packages",
        ),
        ({"images": image(packages={"a": "1\x00"})}, "package"),
        ({"gpus": (msgspec.structs.replace(GPU, uuid="\n"),)}, "GPU"),
        ({"gpus": (msgspec.structs.replace(GPU, memory_bytes=-1),)}, "GPU"),
        (
            {"isolation": Isolation(runtime="", checks=(Check(name="", kept=True),) * 65)},
            f"at most {MAX_CHECKS} checks",
        ),
        ({"isolation": Isolation(runtime="r" * 201)}, "isolation"),
    ],
)
def test_what_no_machine_offers_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as refused:
        checked_capability(msgspec.structs.replace(OFFER, **changes))
    assert refused.value.message.endswith(".")
    assert len(refused.value.message) < 300


def test_sentences_are_shown_without_what_a_terminal_would_obey() -> None:
    offered = msgspec.structs.replace(
        OFFER,
        users=("ada", "ada"),
        cpu_model="Chip\x1b[2J" + "x" * 999,
        pause=Pause(reason=PauseReason.ASKED, message="\x1b]0;t\x07Back\nsoon." + "y" * 999),
        isolation=Isolation(
            runtime="runc", checks=(Check(name="a\nb", kept=False, detail="z" * 9999),)
        ),
    )
    shown = checked_capability(offered)
    assert shown.users == ("ada",)
    assert shown.cpu_model.startswith("Chipx")
    assert len(shown.cpu_model) == 200
    assert shown.pause is not None
    assert shown.pause.message.startswith("Back soon.y")
    assert len(shown.pause.message) == 200
    assert shown.isolation is not None
    (check,) = shown.isolation.checks
    assert (check.name, len(check.detail)) == ("a b", 500)


def test_a_load_is_kept_inside_what_can_be() -> None:
    load = checked_load(
        Load(
            cpu=math.nan,
            memory_used_bytes=-1,
            memory_total_bytes=1 << 62,
            gpu=(2.0, -1.0) * 100,
            gpu_temperature_c=(math.inf, 65.0),
            warm_sandboxes=10**9,
        )
    )
    assert load == Load(
        cpu=0.0,
        memory_used_bytes=0,
        memory_total_bytes=1 << 50,
        gpu=(1.0, 0.0) * 32,
        gpu_temperature_c=(0.0, 65.0),
        warm_sandboxes=4096,
    )
    honest = Load(cpu=0.5, memory_used_bytes=1, memory_total_bytes=2, gpu=(0.1,), warm_sandboxes=2)
    assert checked_load(honest) == honest
