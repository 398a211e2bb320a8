"""What the lender can say, and what is refused with a way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gridx.errors import SettingsError
from gridx.resources import GIB, MIB, Capability, Gpu, Image, Isolation
from worker.blob_cache import default_limit_bytes
from worker.daemon import capability_of, warm_most, warm_target
from worker.probe import MachineFacts, NoGpus
from worker.sandbox.limits import WARM_BYTES
from worker.settings import (
    DEFAULT_COORDINATOR,
    default_data_dir,
    from_arguments,
)

FACTS = MachineFacts(cores=8, memory_bytes=32 * GIB, cpu_model="A CPU", platform="linux/x86_64")


class OneImage:
    """An engine of which only the kind and the image are asked."""

    kind = "docker"
    environments = True
    isolation = Isolation(runtime="runc")
    images = (
        Image(name="gridx/python:3.11-1", digest="sha256:1", language="python", python="3.11"),
    )


def capability(*arguments: str) -> Capability:
    settings = from_arguments(["--user", "alice", *arguments], {})
    return capability_of(settings, FACTS, OneImage(), NoGpus())  # type: ignore[arg-type]


def test_the_oldest_command_line_works() -> None:
    settings = from_arguments(["--user", "alice", "--password", "secret123"], {"HOME": "/h"})
    assert settings.user == "alice"
    assert settings.password == "secret123"
    assert settings.coordinator == DEFAULT_COORDINATOR == "ws://localhost:8080/ws/worker"
    assert settings.sandbox == "docker"


@pytest.mark.parametrize("given", ["ws://grid:9", "ws://grid:9/", "ws://grid:9/ws/worker"])
def test_an_address_without_a_path_means_the_one_that_workers_have(given: str) -> None:
    settings = from_arguments(["--user", "alice", "--coordinator", given], {})
    assert settings.coordinator == "ws://grid:9/ws/worker"


def test_the_password_comes_from_the_environment_too() -> None:
    assert from_arguments(["--user", "a"], {"GRIDX_PASSWORD": "p"}).password == "p"
    assert from_arguments(["--user", "a"], {}).password is None


def test_the_data_folder_follows_the_desktop_convention() -> None:
    assert default_data_dir({"XDG_DATA_HOME": "/data"}) == Path("/data/gridx/worker")
    assert default_data_dir({}) == Path.home() / ".local/share/gridx/worker"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Whose worker"),
        (["--user", "a b"], "--user"),
        (["--user", "a", "--coordinator", "http://x"], "--coordinator"),
        (["--user", "a", "--cores", "0"], "--cores"),
        (["--user", "a", "--memory", "512M"], "--memory"),
        (["--user", "a", "--slots", "0"], "--slots"),
        (["--user", "a", "--warm", "0"], "--warm"),
        (["--user", "a", "--max-result", "10K"], "--max-result"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(arguments: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        from_arguments(arguments, {})
    assert refused.value.hint


def test_the_disk_for_inputs_and_the_size_of_results_are_the_lenders_to_say() -> None:
    settings = from_arguments(["--user", "a"], {})
    assert (settings.cache_bytes, settings.max_result_bytes) == (None, 2 * GIB)
    settings = from_arguments(["--user", "a", "--cache", "64M", "--max-result", "8G"], {})
    assert (settings.cache_bytes, settings.max_result_bytes) == (64 * MIB, 8 * GIB)


def test_the_cache_takes_a_share_of_what_is_free_and_no_more_than_4_gib(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    limit = default_limit_bytes(tmp_path / "not" / "there" / "yet")
    assert 0 < limit <= min(4 * GIB, usage.total // 10)


def test_all_cores_and_three_quarters_of_the_memory_are_lent_less_the_pool() -> None:
    offered = capability()
    assert offered.cores == 8
    assert offered.memory_bytes == 24 * GIB - 4 * WARM_BYTES
    assert offered.slots == 16
    assert offered.images == OneImage.images
    assert (offered.cpu_model, offered.platform) == ("A CPU", "linux/x86_64")


def test_the_lenders_limits_hold() -> None:
    offered = capability("--cores", "2", "--memory", "4G", "--slots", "3", "--warm", "1")
    assert offered.cores == 2
    assert offered.memory_bytes == 4 * GIB - WARM_BYTES
    assert offered.slots == 3


def test_no_more_is_offered_than_there_is() -> None:
    offered = capability("--cores", "100", "--memory", "1T")
    assert offered.cores == 8
    assert offered.memory_bytes < 32 * GIB


def test_one_job_of_the_default_size_always_fits() -> None:
    assert capability("--cores", "1", "--memory", "1G").memory_bytes == GIB


@pytest.mark.parametrize(
    ("arguments", "warm"),
    [
        ([], (4, 32)),
        (["--cores", "1"], (2, 4)),
        (["--cores", "0.4"], (1, 2)),
        (["--warm", "9"], (4, 9)),
        (["--warm", "1"], (1, 1)),
        (["--memory", "2G"], (4, 7)),  # an eighth of it
    ],
)
def test_the_pool_follows_the_cores_and_the_memory_up_to_what_is_set(
    arguments: list[str], warm: tuple[int, int]
) -> None:
    settings = from_arguments(["--user", "a", *arguments], {})
    assert (warm_target(settings, FACTS), warm_most(settings, FACTS)) == warm


def test_gpus_are_announced() -> None:
    class OneGpu(NoGpus):
        gpus = (Gpu(uuid="GPU-1", name="card", memory_bytes=GIB),)

    settings = from_arguments(["--user", "a"], {})
    assert capability_of(settings, FACTS, OneImage(), OneGpu()).gpus == OneGpu.gpus  # type: ignore[arg-type]


def test_pythons_languages_and_images_are_lists_and_the_first_python_is_the_default() -> None:
    given = from_arguments(
        ["--user", "ann", "--python", "3.12,3.11", "--languages", "python,js", "--images", "torch"]
    )
    assert (given.pythons, given.python) == (("3.12", "3.11"), "3.12")
    assert (given.languages, given.families) == (("python", "node"), ("torch",))
    plain = from_arguments(["--user", "ann"])
    assert (plain.pythons, plain.python, plain.languages) == ((), None, ("python", "bash"))
    assert plain.pip and plain.pip_allowed is None


def test_a_list_of_allowed_packages_is_kept_by_their_normalised_names() -> None:
    given = from_arguments(["--user", "ann", "--pip-allow", "Typing_Extensions,tqdm"])
    assert given.pip_allowed == frozenset({"typing-extensions", "tqdm"})


def test_environments_have_a_limit_of_their_own_or_half_of_the_lent_disk() -> None:
    half = from_arguments(["--user", "ann", "--disk", "8G"])
    assert half.environments_bytes == 4 << 30
    own = from_arguments(["--user", "ann", "--disk", "8G", "--environments-max", "1G"])
    assert own.environments_bytes == 1 << 30


@pytest.mark.parametrize(
    "wrong", [["--python", "3.11.2"], ["--languages", "cobol"], ["--languages", ","]]
)
def test_a_python_or_language_that_is_none_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        from_arguments(["--user", "ann", *wrong])
