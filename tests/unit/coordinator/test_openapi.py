from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

import coordinator
from coordinator.main import write_openapi
from coordinator.web.base import STATUS, status_of
from coordinator.web.openapi import build_openapi, generated_files, reference_text
from coordinator.web.routes import ROUTES, find_routes
from gridx.errors import SettingsError, error_classes

ROOT = Path(coordinator.__file__).parents[1]


def test_the_committed_description_and_reference_are_made_from_the_table() -> None:
    for name, text in generated_files().items():
        stale = "stale: run `python -m coordinator.main openapi`"
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} is {stale}"


def test_check_says_when_a_generated_file_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_openapi(tmp_path, check=True) == 1
    assert "openapi.json" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="not the repository"):
        write_openapi(tmp_path, check=False)
    (tmp_path / "docs").mkdir()
    assert write_openapi(tmp_path, check=False) == 0
    assert write_openapi(tmp_path, check=True) == 0
    (tmp_path / "openapi.json").write_text("{}", encoding="utf-8")
    assert write_openapi(tmp_path, check=True) == 1


def test_every_reference_in_the_description_leads_somewhere() -> None:
    described = build_openapi()
    text = json.dumps(described)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names == set(described["components"]["schemas"])


def test_every_route_and_every_error_code_is_in_the_reference() -> None:
    text = reference_text()
    for route in ROUTES:
        assert f"### `{route.method} {route.path}`" in text
    for cls in STATUS:
        assert f"`{cls.code}`" in text


def test_operation_names_are_unique() -> None:
    names = [route.endpoint.__name__ for route in ROUTES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_found_by_its_path(route: object) -> None:
    from coordinator.web.routes import Route

    assert isinstance(route, Route)
    path = route.path.replace("{job_id}", "job_1").replace("{user_id}", "alice")
    found, _ = find_routes(path)
    assert found[route.method] is route


def test_a_path_part_does_not_swallow_a_slash() -> None:
    assert find_routes("/credits/a/b") == ({}, {})


def test_a_path_part_is_percent_decoded() -> None:
    assert find_routes("/credits/a%40b")[1] == {"user_id": "a@b"}


def test_every_error_has_a_status_of_a_refusal() -> None:
    for cls in error_classes().values():
        assert 400 <= status_of(cls("")) < 600


def test_no_module_of_ours_is_named_like_another_one() -> None:
    # `cd coordinator && python -m coordinator.main` puts that folder first on sys.path.
    others = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    others -= {"coordinator", "gridx", "gridx_jupyter", "worker"}
    folder = Path(coordinator.__file__).parent
    ours = {path.stem for path in folder.iterdir() if not path.name.startswith("__")}
    assert not ours & others
