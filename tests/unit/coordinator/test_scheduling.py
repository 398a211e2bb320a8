from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.rules.scheduling import CANDIDATES, QueuedJob, Scheduler
from coordinator.rules.shapes import Shape, class_of, is_feasible, needed_protocol
from coordinator.rules.waiting import explain, standing_still
from gridx.resources import (
    GIB,
    Accepts,
    Capability,
    Gpu,
    Image,
    Load,
    Pause,
    PauseReason,
    ResourceRequest,
    serving_image,
)
from gridx.schemas import CellSpec, FileSpec, JobRequest, Limits

SMALL = Shape(1.0, GIB, 0, "python", "")


def capability(
    cores: float = 2,
    memory_gib: int = 8,
    slots: int = 4,
    *,
    sandbox: str = "docker",
    python: str = "3.11",
    gpus: int = 0,
    models: tuple[str, ...] = (),
    images: tuple[Image, ...] = (),
    environments: bool = False,
    accepts: Accepts = Accepts.ANYONE,
    users: tuple[str, ...] = (),
    paused: PauseReason | None = None,
) -> Capability:
    return Capability(
        cores=cores,
        memory_bytes=memory_gib * GIB,
        slots=slots,
        sandbox=sandbox,
        images=(image(python=python), *images),
        gpus=tuple(
            Gpu(uuid=str(n), name=name, memory_bytes=GIB)
            for n, name in enumerate(("g",) * gpus + models)
        ),
        environments=environments,
        accepts=accepts,
        users=users,
        pause=None if paused is None else Pause(reason=paused),
    )


def image(family: str = "python", *, language: str = "python", python: str = "") -> Image:
    return Image(name=f"gridx/{family}:1", digest="d", language=language, python=python)


def scheduler(**workers: Capability) -> Scheduler:
    made = Scheduler()
    for name, offered in workers.items():
        made.add_worker(name, f"owner-of-{name}", offered, ())
    return made


def job(number: int, *, user: str = "alice", shape: Shape = SMALL, tag: float = 0) -> QueuedJob:
    return QueuedJob(f"job_{number}", user, shape, tag or number)


def test_the_smallest_tag_is_next_whatever_the_order_of_arrival() -> None:
    queue = scheduler(w=capability())
    for number in (3, 1, 2):
        queue.enqueue(job(number))
    found = []
    while (head := queue.next_for("w")) is not None:
        found.append(head.job_id)
        queue.dequeue(head.job_id)
    assert found == ["job_1", "job_2", "job_3"]


def test_a_worker_never_holds_more_than_its_capability() -> None:
    queue = scheduler(w=capability(cores=2))
    for number in range(3):
        worker = queue.place(SMALL, "alice")
        if number < 2:
            assert worker is not None
            queue.take("w", f"job_{number}", SMALL)
        else:
            assert worker is None
    queue.give_back("w", "job_0")
    assert queue.place(SMALL, "alice") is not None


@pytest.mark.parametrize(
    "shape",
    [
        Shape(3.0, GIB, 0, "python", ""),
        Shape(1.0, 9 * GIB, 0, "python", ""),
        Shape(1.0, GIB, 1, "python", ""),
        Shape(1.0, GIB, 0, "bash", ""),
        Shape(1.0, GIB, 0, "python", "3.12"),
    ],
)
def test_a_job_that_no_worker_can_run_waits(shape: Shape) -> None:
    queue = scheduler(w=capability())
    queue.enqueue(job(1, shape=shape))
    assert queue.place(shape, "alice") is None
    assert queue.next_for("w") is None


def test_a_large_job_at_the_head_does_not_hold_up_a_small_one() -> None:
    queue = scheduler(w=capability(cores=2))
    queue.enqueue(job(1, shape=Shape(8.0, GIB, 0, "python", "")))
    queue.enqueue(job(2))
    head = queue.next_for("w")
    assert head is not None
    assert head.job_id == "job_2"


def test_a_process_sandbox_takes_only_its_owners_jobs() -> None:
    queue = scheduler(w=capability(sandbox="process"))
    assert queue.place(SMALL, "stranger") is None
    assert queue.place(SMALL, "owner-of-w") is not None
    queue.enqueue(job(1, user="stranger"))
    queue.enqueue(job(2, user="owner-of-w"))
    head = queue.next_for("w")
    assert head is not None
    assert head.job_id == "job_2"


def test_a_job_avoids_the_worker_that_handed_it_back() -> None:
    queue = scheduler(w=capability(), other=capability())
    avoided = job(1)
    avoided.avoid = frozenset({"w"})
    queue.enqueue(avoided)
    queue.enqueue(job(2))
    head, elsewhere = queue.next_for("w"), queue.next_for("other")
    assert head is not None
    assert elsewhere is not None
    assert (head.job_id, elsewhere.job_id) == ("job_2", "job_1")
    placed = queue.place(SMALL, "alice", avoid={"w"})
    assert placed is not None
    assert placed.worker_id == "other"


def test_a_warm_worker_is_preferred_and_then_the_less_busy_one() -> None:
    queue = scheduler(cold=capability(), warm=capability())
    queue.note_load("warm", Load(warm_sandboxes=1))
    first = queue.place(SMALL, "alice")
    assert first is not None
    assert first.worker_id == "warm"
    queue.take("warm", "job_1", SMALL)
    second = queue.place(SMALL, "alice")
    assert second is not None
    assert second.worker_id == "cold"


def test_a_worker_that_comes_back_is_counted_with_what_it_runs() -> None:
    queue = Scheduler()
    queue.add_worker("w", "bob", capability(cores=2), [("job_1", SMALL), ("job_2", SMALL)])
    assert queue.place(SMALL, "alice") is None
    queue.remove_worker("w")
    assert queue.find_worker("w") is None
    assert queue.place(SMALL, "alice") is None


def test_a_worker_that_offers_less_keeps_what_it_runs_and_gets_no_more() -> None:
    queue = scheduler(w=capability(cores=2))
    queue.take("w", "job_1", SMALL)
    queue.change_worker("w", capability(slots=0))
    assert queue.place(SMALL, "alice") is None
    room = queue.find_worker("w")
    assert room is not None
    assert room.held == {"job_1": SMALL}


def test_every_worker_with_room_gets_its_turn_in_a_large_grid() -> None:
    queue = scheduler(**{f"w{number}": capability() for number in range(100)})
    for number in range(100):
        worker = queue.place(SMALL, "alice")
        assert worker is not None
        queue.take(worker.worker_id, f"job_{number}", SMALL)
    assert sum(1 for worker in queue.workers() if worker.held) > 50


def test_fair_tags_give_a_newcomer_its_turn() -> None:
    queue = scheduler(w=capability())
    for number in range(100):
        queue.enqueue(job(number, user="flood", tag=float(number + 1)))
    queue.enqueue(job(1000, user="newcomer", tag=queue.virtual_time + 1.5))
    order = []
    for _ in range(3):
        head = queue.next_for("w")
        assert head is not None
        order.append(head.user)
        queue.dequeue(head.job_id)
    assert order == ["flood", "newcomer", "flood"]


def test_dead_entries_do_not_pile_up() -> None:
    queue = scheduler(w=capability(slots=0))
    queue.enqueue(job(1_000_000))
    for number in range(10_000):
        queue.enqueue(job(number))
        queue.dequeue(f"job_{number}")
    assert queue.queued == 1
    assert len(queue._lines[SMALL].heap) < 200
    assert len(queue._lines_by_user["alice"][SMALL].heap) < 200


@pytest.mark.parametrize(
    ("shape", "user", "workers", "expected"),
    [
        (SMALL, "a", {}, "No worker is online: it starts as soon as one joins."),
        (
            Shape(1.0, 8 * GIB, 0, "python", ""),
            "a",
            {
                "x": capability(memory_gib=4),
                "y": capability(memory_gib=2),
                "z": capability(slots=0),
            },
            "3 workers online: 2 lack 8 GiB, 1 busy",
        ),
        (
            SMALL,
            "a",
            {"x": capability(sandbox="process")},
            "1 worker online: 1 takes only its owner's jobs",
        ),
        (
            Shape(1.0, GIB, 2, "python", "3.12"),
            "a",
            {"x": capability(), "y": capability(python="3.12", gpus=1)},
            "2 workers online: 1 lacks Python 3.12, 1 lacks 2 GPUs",
        ),
        (
            Shape(16.0, GIB, 0, "python", ""),
            "a",
            {"x": capability()},
            "1 worker online: 1 lacks 16 cores",
        ),
        (
            SMALL,
            "a",
            {
                "x": capability(paused=PauseReason.ACTIVE),
                "y": capability(slots=0),
            },
            "2 workers online: 1 paused (its owner is using it), 1 busy",
        ),
        (
            SMALL,
            "a",
            {
                "x": capability(paused=PauseReason.HOURS),
                "y": capability(paused=PauseReason.HOURS),
                "z": capability(paused=PauseReason.BATTERY),
                "v": capability(python="3.11", accepts=Accepts.USERS, users=("b",)),
                "w": capability(accepts=Accepts.MINE),
            },
            "5 workers online: 1 takes only its owner's jobs, 1 takes only named users' jobs,"
            " 1 paused (on battery), 2 paused (outside their hours)",
        ),
        (
            SMALL._replace(language="bash"),
            "a",
            {"x": capability()},
            "1 worker online: 1 lacks bash",
        ),
        (
            SMALL._replace(python="3.12", family="torch"),
            "a",
            {"x": capability(), "y": capability(images=(image("torch", python="3.11"),))},
            "2 workers online: 1 lacks Python 3.12, 1 lacks an image called torch",
        ),
        (
            SMALL._replace(needs_environment=True),
            "a",
            {"x": capability(paused=PauseReason.ASKED)},
            "1 worker online: 1 installs no packages",
        ),
        (
            SMALL._replace(gpus=1, gpu_model="a100"),
            "a",
            {"x": capability(gpus=1), "y": capability()},
            "2 workers online: 2 lack a GPU called A100",
        ),
    ],
)
def test_a_waiting_job_says_why(
    shape: Shape, user: str, workers: dict[str, Capability], expected: str
) -> None:
    assert explain(shape, user, scheduler(**workers).workers()) == expected


_events = st.lists(
    st.tuples(st.sampled_from(["enqueue", "pull", "end", "leave", "join"]), st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(_events)
def test_any_order_of_events_keeps_the_room_right(events: list[tuple[str, int]]) -> None:
    queue = scheduler(w0=capability(), w1=capability(cores=1))
    running: dict[str, str] = {}
    for number, (event, which) in enumerate(events):
        worker_id = f"w{which % 2}"
        if event == "enqueue":
            queue.enqueue(job(number))
        elif event == "pull" and (head := queue.next_for(worker_id)):
            queue.dequeue(head.job_id)
            queue.take(worker_id, head.job_id, head.shape)
            running[head.job_id] = worker_id
        elif event == "end" and running:
            job_id = sorted(running)[which % len(running)]
            queue.give_back(running.pop(job_id), job_id)
        elif event == "leave":
            queue.remove_worker(worker_id)
            running = {j: w for j, w in running.items() if w != worker_id}
        elif event == "join" and queue.find_worker(worker_id) is None:
            queue.add_worker(worker_id, "bob", capability(), ())
        for room in queue.workers():
            assert set(room.held) == {j for j, w in running.items() if w == room.worker_id}
            assert room.free_cores >= 0
            assert room.is_listed == (room.free_cores > 0 and room.free_slots > 0)


CELL = CellSpec(python="3.11")
NEEDS_NEWER = Shape(1.0, GIB, 0, "python", "3.11", protocol=2)


def test_what_an_older_worker_would_leave_out_it_is_not_given() -> None:
    queue = Scheduler()
    queue.add_worker("old", "lender", capability(), (), protocol=1)
    assert queue.place(NEEDS_NEWER, "alice") is None
    queue.enqueue(job(1, shape=NEEDS_NEWER))
    queue.enqueue(job(2, shape=Shape(1.0, GIB, 0, "python", "3.11")))
    head = queue.next_for("old")
    assert head is not None
    assert head.job_id == "job_2"
    assert queue.explain("job_1") == (
        "1 worker online: 1 is of an older release, without large data and sessions"
    )
    queue.change_worker("old", capability(cores=8))  # it says what it offers, not what it speaks
    assert queue.place(NEEDS_NEWER, "alice") is None
    queue.add_worker("new", "lender", capability(), (), protocol=2)
    assert (placed := queue.place(NEEDS_NEWER, "alice")) is not None
    assert placed.worker_id == "new"


def test_only_what_is_new_needs_a_newer_worker() -> None:
    script = JobRequest(code="1")
    assert needed_protocol(script) == 1
    assert needed_protocol(script, CELL) == 1
    assert needed_protocol(script, CELL, has_blobs=True) == 2
    assert needed_protocol(script, CELL, is_session=True) == 2
    for newer in (
        CellSpec(python="3.11", files=(FileSpec(path="a.txt"),)),
        CellSpec(python="3.11", fetch=("*.png",)),
        CellSpec(python="3.11", prelude="import numpy as np"),
    ):
        assert needed_protocol(script, newer) == 2
    for newest in (
        JobRequest(code="1", image="torch"),
        JobRequest(code="1", pip=("tqdm",)),
        JobRequest(code="1", language="bash"),
        JobRequest(code="1", limits=Limits(gpus=1, gpu_model="A100")),
        JobRequest(code="1", limits=Limits(disk_bytes=GIB // 4)),
    ):
        assert needed_protocol(newest, CELL, has_blobs=True) == 3
    assert needed_protocol(JobRequest(code="1", limits=Limits(gpus=1))) == 1


# --- images, packages, models of GPUs ----------------------------------------------------------


def test_the_shape_of_a_job_has_all_that_a_worker_is_chosen_by() -> None:
    asked = JobRequest(
        code="1", image="torch", pip=("tqdm",), limits=Limits(cpus=2, gpus=1, gpu_model="A100")
    )
    assert Shape.of_job(asked, CELL) == Shape(
        2.0, GIB, 1, "python", "3.11", 3, "a100", "torch", True
    )
    request = ResourceRequest(gpus=2, gpu_model="H100")
    assert Shape.of_request(request) == Shape(1.0, GIB, 2, "", "", gpu_model="h100")


_images = st.lists(
    st.builds(
        image,
        st.sampled_from(["python", "torch", "bash", "node"]),
        language=st.sampled_from(["python", "bash", "node"]),
        python=st.sampled_from(["", "3.11", "3.12"]),
    ),
    max_size=5,
)


@given(
    _images,
    st.sampled_from(["python", "bash", "node"]),
    st.sampled_from(["", "3.11", "3.12"]),
    st.sampled_from(["", "torch", "python", "bash"]),
)
def test_the_dispatcher_and_the_worker_agree_on_the_image(
    images: list[Image], language: str, python: str, family: str
) -> None:
    offered = Capability(cores=1, memory_bytes=GIB, slots=1, sandbox="docker", images=tuple(images))
    shape = Shape(1.0, GIB, 0, language, python, family=family)
    serving = serving_image(images, language=language, python=python, family=family)
    assert is_feasible(shape, class_of(offered)) == (serving is not None)


def test_packages_are_installed_only_where_the_lender_allows_it() -> None:
    shape = SMALL._replace(needs_environment=True)
    assert not is_feasible(shape, class_of(capability()))
    assert is_feasible(shape, class_of(capability(environments=True)))


def gpu_shape(count: int = 1, model: str = "") -> Shape:
    return SMALL._replace(gpus=count, gpu_model=model, cores=0.1)


def test_a_model_is_part_of_the_name_in_any_letters() -> None:
    kind = class_of(capability(models=("NVIDIA A100-SXM4-80GB", "Tesla T4", "Tesla T4")))
    assert is_feasible(gpu_shape(1, "a100"), kind)
    assert is_feasible(gpu_shape(2, "t4"), kind)
    assert not is_feasible(gpu_shape(2, "a100"), kind)
    assert not is_feasible(gpu_shape(1, "h100"), kind)
    assert is_feasible(gpu_shape(3), kind)


def test_a_card_that_another_job_may_have_is_not_promised_again() -> None:
    queue = scheduler(w=capability(models=("A100", "T4", "T4")))
    room = queue.find_worker("w")
    assert room is not None
    queue.take("w", "any", gpu_shape())
    assert not room.has_room(gpu_shape(1, "a100"))  # the worker may have given it the A100
    assert room.has_room(gpu_shape(1, "t4"))
    assert not room.has_room(gpu_shape(2, "t4"))
    queue.give_back("w", "any")
    queue.take("w", "small", gpu_shape(1, "t4"))
    assert room.has_room(gpu_shape(1, "a100"))
    assert room.has_room(gpu_shape(2))
    assert not room.has_room(gpu_shape(3))


@given(
    st.lists(st.sampled_from(["A100", "A100-80", "T4"]), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.integers(1, 2), st.sampled_from(["", "a100", "a100-80", "t4"])), max_size=6
    ),
    st.randoms(use_true_random=False),
)
def test_whatever_cards_the_worker_gives_each_promise_can_be_kept(
    models: list[str], asks: list[tuple[int, str]], chance: random.Random
) -> None:
    queue = scheduler(w=capability(models=tuple(models), slots=10))
    free = list(models)
    for number, (count, model) in enumerate(asks):
        shape = gpu_shape(count, model)
        room = queue.find_worker("w")
        assert room is not None
        if not (is_feasible(shape, room.worker_class) and room.has_room(shape)):
            continue
        queue.take("w", f"job_{number}", shape)
        fitting = [card for card in free if model in card.casefold()]
        assert len(fitting) >= count
        for card in chance.sample(fitting, count):
            free.remove(card)


# --- whose jobs, and pauses -------------------------------------------------------------------


def test_a_worker_for_named_users_takes_theirs_and_its_owners() -> None:
    queue = scheduler(w=capability(accepts=Accepts.USERS, users=("ada", "bob")))
    assert queue.place(SMALL, "eve") is None
    for user in ("ada", "bob", "owner-of-w"):
        assert queue.place(SMALL, user) is not None
    queue.enqueue(job(1, user="eve", tag=0.1))
    queue.enqueue(job(2, user="bob", tag=3))
    queue.enqueue(job(3, user="ada", tag=2))
    order = []
    while (head := queue.next_for("w")) is not None:
        order.append(head.job_id)
        queue.dequeue(head.job_id)
    assert order == ["job_3", "job_2"]
    assert queue.queued == 1


def test_workers_of_others_are_no_candidates() -> None:
    offered = capability(accepts=Accepts.USERS, users=("bob",))
    queue = scheduler(**{f"w{n}": offered for n in range(5 * CANDIDATES)}, open=capability())
    assert [room.worker_id for room in queue._candidates("alice")] == ["open"]
    assert len(list(queue._candidates("bob"))) == CANDIDATES + 1
    placed = queue.place(SMALL, "alice")
    assert placed is not None
    assert placed.worker_id == "open"


def test_every_worker_that_names_a_user_gets_its_turn() -> None:
    offered = capability(accepts=Accepts.USERS, users=("bob", "ada"))
    queue = scheduler(**{f"w{n}": offered for n in range(50)})
    for number in range(100):
        worker = queue.place(SMALL, "bob")
        assert worker is not None
        queue.take(worker.worker_id, f"job_{number}", SMALL)
    assert not queue.place(SMALL, "ada")
    for number in range(0, 100, 2):
        room = next(room for room in queue.workers() if f"job_{number}" in room.held)
        queue.give_back(room.worker_id, f"job_{number}")
        assert queue.place(SMALL, "ada") is room
        queue.take(room.worker_id, f"job_{number}", SMALL)
    queue.remove_worker("w7")
    assert queue.place(SMALL, "bob") is None


def test_a_worker_that_changes_whose_jobs_it_takes_changes_the_lists() -> None:
    queue = scheduler(w=capability())
    assert queue.place(SMALL, "alice") is not None
    queue.change_worker("w", capability(accepts=Accepts.USERS, users=("bob",)))
    assert queue.place(SMALL, "alice") is None
    assert queue.place(SMALL, "bob") is not None
    queue.change_worker("w", capability(accepts=Accepts.MINE))
    assert queue.place(SMALL, "bob") is None
    queue.change_worker("w", capability())
    assert queue.place(SMALL, "alice") is not None


def test_a_paused_worker_has_no_room_and_keeps_what_it_runs() -> None:
    queue = scheduler(w=capability())
    queue.take("w", "job_1", SMALL)
    queue.change_worker("w", capability(paused=PauseReason.HOURS))
    queue.enqueue(job(2))
    assert queue.place(SMALL, "alice") is None
    assert queue.next_for("w") is None
    queue.change_worker("w", capability())
    head = queue.next_for("w")
    assert head is not None
    assert head.job_id == "job_2"
    room = queue.find_worker("w")
    assert room is not None
    assert room.held == {"job_1": SMALL}


def test_a_job_that_stands_still_says_why_and_that_nothing_is_paid() -> None:
    assert standing_still(PauseReason.ACTIVE, "The owner is using the machine.") == (
        "Paused by its lender: the owner is using the machine. Time and cost stand still."
    )
    assert standing_still(PauseReason.BATTERY) == (
        "Paused by its lender: on battery. Time and cost stand still."
    )
    assert standing_still() == "Paused by its lender. Time and cost stand still."
    hostile = standing_still(PauseReason.ASKED, "\x1b[2J\nmoved\x07" + "x" * 5000)
    assert hostile.startswith("Paused by its lender: movedx")
    assert len(hostile) < 300


@pytest.mark.parametrize("reason", PauseReason)
def test_every_reason_of_a_pause_has_words(reason: PauseReason) -> None:
    told = explain(SMALL, "a", scheduler(w=capability(paused=reason)).workers())
    assert told.startswith("1 worker online: 1 paused (")
    assert standing_still(reason) != standing_still()
