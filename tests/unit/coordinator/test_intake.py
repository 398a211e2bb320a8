from __future__ import annotations

import pytest

from coordinator.rules.access import OPEN, Caller, Scope
from coordinator.web.intake import check_job, take_order
from gridx.blobs import MAX_BLOBS
from gridx.errors import Forbidden, InvalidRequest, PayloadTooLarge, UnknownLanguage
from gridx.ids import new_job_id, parse_job_id
from gridx.protocol import MAX_PAYLOAD_BYTES
from gridx.resources import GIB, MIB
from gridx.schemas import MAX_CODE_BYTES, BlobRef, CellSpec, FileSpec, JobRequest, Limits

ALICE = Caller(user="alice", scopes=frozenset({Scope.PUBLIC, Scope.JOBS_WRITE}))


def test_a_job_without_an_id_gets_one() -> None:
    checked = check_job(JobRequest(code="1"))
    assert checked.job_id is not None
    parse_job_id(checked.job_id)


def test_a_job_keeps_its_id() -> None:
    job_id = new_job_id()
    assert check_job(JobRequest(code="1", job_id=job_id)).job_id == job_id


def test_the_socket_asks_for_an_id() -> None:
    with pytest.raises(InvalidRequest, match="no job_id"):
        check_job(JobRequest(code="1"), must_have_id=True)


def test_an_unknown_language_lists_the_known_ones() -> None:
    with pytest.raises(UnknownLanguage, match="python, bash, node, javascript") as refused:
        check_job(JobRequest(code="1", language="cobol"))
    assert refused.value.details["languages"] == ["python", "bash", "node"]


@pytest.mark.parametrize(
    ("said", "meant"), [("bash", "bash"), ("sh", "bash"), ("javascript", "node"), ("js", "node")]
)
def test_a_language_has_one_name_from_here_on(said: str, meant: str) -> None:
    assert check_job(JobRequest(code="1", language=said)).language == meant


def test_a_cell_is_python() -> None:
    with pytest.raises(InvalidRequest, match="this one says bash"):
        take_order(ALICE, JobRequest(code="ls", language="bash"), cell=CellSpec(python="3.11"))


def test_packages_are_kept_in_one_form_and_refused_by_name() -> None:
    asked = check_job(JobRequest(code="1", pip=("tqdm >= 4", "Polars==1.20")))
    assert asked.pip == ("polars==1.20", "tqdm>=4")
    with pytest.raises(InvalidRequest, match="git"):
        check_job(JobRequest(code="1", pip=("git+https://host/a",)))
    with pytest.raises(InvalidRequest, match="Python's packages"):
        check_job(JobRequest(code="1", language="bash", pip=("tqdm",)))


def test_a_disk_lies_inside_the_memory() -> None:
    check_job(JobRequest(code="1", limits=Limits(memory_bytes=GIB, disk_bytes=768 * MIB)))
    with pytest.raises(InvalidRequest, match="does not fit into 1 GiB of memory"):
        check_job(JobRequest(code="1", limits=Limits(memory_bytes=GIB, disk_bytes=GIB)))


def test_a_model_of_no_gpu_is_refused() -> None:
    check_job(JobRequest(code="1", limits=Limits(gpus=1, gpu_model="A100")))
    with pytest.raises(InvalidRequest, match="for no GPU"):
        check_job(JobRequest(code="1", limits=Limits(gpu_model="A100")))
    with pytest.raises(InvalidRequest, match="characters"):
        check_job(JobRequest(code="1", limits=Limits(gpus=1, gpu_model="A\n")))


def test_the_limit_of_code_is_in_bytes_not_characters() -> None:
    check_job(JobRequest(code="x" * MAX_CODE_BYTES))
    with pytest.raises(PayloadTooLarge, match="1,048,578 bytes; the limit is 1 MiB"):
        check_job(JobRequest(code="é" * (MAX_CODE_BYTES // 2 + 1)))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout_s"):
        check_job(JobRequest(code="1", limits=Limits(timeout_s=number)))
    with pytest.raises(InvalidRequest, match="cpus"):
        check_job(JobRequest(code="1", limits=Limits(cpus=number)))


def test_the_name_comes_from_the_body_or_from_the_login() -> None:
    assert take_order(OPEN, JobRequest(code="1", user_id="bob")).user == "bob"
    assert take_order(ALICE, JobRequest(code="1")).user == "alice"
    with pytest.raises(InvalidRequest, match="user_id"):
        take_order(OPEN, JobRequest(code="1"))
    with pytest.raises(Forbidden):
        take_order(ALICE, JobRequest(code="1", user_id="bob"))


def test_code_and_variables_share_one_limit() -> None:
    job = JobRequest(code="1" * 1000, user_id="a")
    take_order(OPEN, job, inputs=b"x" * (MAX_PAYLOAD_BYTES - 1000))
    with pytest.raises(PayloadTooLarge, match="15 MiB"):
        take_order(OPEN, job, inputs=b"x" * (MAX_PAYLOAD_BYTES - 999))


@pytest.mark.parametrize("python", ["", "3", "2.7", "3.11.2", "3.x", "latest"])
def test_a_cell_names_a_minor_version_of_python(python: str) -> None:
    with pytest.raises(InvalidRequest, match="Python"):
        take_order(OPEN, JobRequest(code="1", user_id="a"), cell=CellSpec(python=python))


ONE = BlobRef(digest="1" * 64, size=8)
TWO = BlobRef(digest="2" * 64, size=9)
JOB = JobRequest(code="1", user_id="a")


def test_each_blob_is_named_once() -> None:
    assert take_order(OPEN, JOB, blobs=(TWO, ONE, TWO)).blobs == (TWO, ONE)


def test_a_job_names_a_bounded_number_of_blobs() -> None:
    with pytest.raises(PayloadTooLarge, match="4,097 blobs; the limit is 4,096"):
        take_order(OPEN, JOB, blobs=(ONE,) * (MAX_BLOBS + 1))


def test_the_blobs_of_files_are_among_those_of_the_job() -> None:
    cell = CellSpec(python="3.11", files=(FileSpec(path="data/big.bin", blobs=(ONE, TWO)),))
    take_order(OPEN, JOB, cell=cell, blobs=(ONE, TWO))
    with pytest.raises(InvalidRequest, match=r"data/big\.bin"):
        take_order(OPEN, JOB, cell=cell, blobs=(ONE,))


def test_the_same_job_with_other_blobs_is_another_body() -> None:
    job = JobRequest(code="1", user_id="a", job_id=new_job_id())
    digests = {take_order(OPEN, job, blobs=blobs).body_digest for blobs in ((), (ONE,), (TWO,))}
    assert len(digests) == 3
