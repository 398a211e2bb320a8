"""Pinned workers, in the user's own file, beside everything else in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridx import settings
from gridx.errors import NotFound, SettingsError
from gridx.identity import encode_key
from gridx.trust import PinnedWorker, pin_worker, pinned_workers, unpin_worker


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}


def pin(name: str, number: int = 1) -> PinnedWorker:
    key = encode_key(bytes([number]) * 32)
    return PinnedWorker(name=name, worker_id=f"wrk_{number}", public_key=key)


def test_a_pin_is_kept_and_forgotten_by_each_of_its_names(environ: dict[str, str]) -> None:
    assert pinned_workers(environ) == ()
    for name in ("anna", "wrk_1", pin("anna").fingerprint, pin("anna").public_key):
        pin_worker(pin("anna"), environ)
        pin_worker(pin("bert", 2), environ)
        assert {p.name for p in pinned_workers(environ)} == {"anna", "bert"}
        assert unpin_worker(name, environ) == (pin("anna"),)
        assert pinned_workers(environ) == (pin("bert", 2),)


def test_the_same_key_under_a_new_name_is_one_pin(environ: dict[str, str]) -> None:
    pin_worker(pin("anna"), environ)
    pin_worker(pin('an"na\x7f\n[cell]'), environ)
    assert pinned_workers(environ) == (pin('an"na\x7f\n[cell]'),)


def test_everything_else_in_the_file_stays(environ: dict[str, str]) -> None:
    path = settings.save(url="http://a:1", user="ada", token="t", environ=environ)
    path.write_text(
        path.read_text() + "\n# mine\n[cell]\ncpus = 2  # two\n\n[profile.big]\nmem = '8G'\n"
    )
    before = path.read_text()
    pin_worker(pin("anna"), environ)
    assert path.read_text().startswith(before)
    assert path.stat().st_mode & 0o777 == 0o600
    settings.save(url="http://b:1", user="ada", environ=environ)
    assert pinned_workers(environ) == (pin("anna"),)
    assert settings.load(environ=environ).url == "http://b:1"
    unpin_worker("anna", environ)
    assert "trust" not in path.read_text()
    assert "cpus = 2  # two" in path.read_text()


def test_who_is_not_trusted_cannot_be_forgotten(environ: dict[str, str]) -> None:
    pin_worker(pin("anna"), environ)
    with pytest.raises(NotFound) as raised:
        unpin_worker("bert", environ)
    assert "anna" in raised.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "[trust]\nworkers = 3\n",
        "[[trust.workers]]\nname = 'x'\n",
        "[[trust.workers]]\nname = 'x'\nworker_id = 'y'\npublic_key = 'short'\n",
        "[[trust.workers\n",
    ],
)
def test_a_wrong_table_is_named(environ: dict[str, str], text: str) -> None:
    path = settings.config_file(environ)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"config\.toml"):
        pinned_workers(environ)


def test_a_file_that_cannot_be_changed_in_part_is_left_as_it_is(environ: dict[str, str]) -> None:
    path = settings.config_file(environ)
    path.parent.mkdir(parents=True)
    text = '[cell]\nnote = """\n[trust]\n"""\n'
    path.write_text(text)
    with pytest.raises(SettingsError, match="by hand"):
        pin_worker(pin("anna"), environ)
    assert path.read_text() == text
