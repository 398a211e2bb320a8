from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gridx.errors import SettingsError
from gridx.settings import (
    ANOTHER_ADDRESS,
    config_file,
    load,
    normalise_url,
    read_file,
    read_tables,
    save,
)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/nowhere"}


def write(environ: dict[str, str], text: str, mode: int = 0o600) -> Path:
    path = config_file(environ)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("file", "environment", "argument", "url", "source"),
    [
        (None, None, None, "http://localhost:8081", "default"),
        ("http://f:1", None, None, "http://f:1", "file"),
        ("http://f:1", "http://e:2", None, "http://e:2", "environment (GRIDX_URL)"),
        ("http://f:1", "http://e:2", "http://a:3", "http://a:3", "arguments"),
        (None, "", None, "http://localhost:8081", "default"),
    ],
)
def test_arguments_go_before_environment_before_file_before_defaults(
    environ: dict[str, str],
    file: str | None,
    environment: str | None,
    argument: str | None,
    url: str,
    source: str,
) -> None:
    if file is not None:
        write(environ, f'url = "{file}"\n')
    if environment is not None:
        environ["GRIDX_URL"] = environment
    settings = load(argument, environ=environ)
    assert settings.url == url
    assert settings.sources["url"].startswith(source)


def test_what_is_saved_is_loaded_again_and_private(environ: dict[str, str]) -> None:
    path = save(url="grid.example:9000", user="ada", token='t"\\\x7fé', environ=environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    settings = load(environ=environ)
    assert (settings.url, settings.user) == ("http://grid.example:9000", "ada")
    assert settings.token == 't"\\\x7fé'
    assert "é" not in repr(settings)
    save(url="http://localhost:8081", user="bob", environ=environ)
    assert load(environ=environ).token is None
    assert [entry.name for entry in path.parent.iterdir()] == ["config.toml"]


def test_a_token_is_not_sent_to_another_address(environ: dict[str, str]) -> None:
    save(url="http://mine:1", user="ada", token="secret", environ=environ)
    assert load(environ=environ).token == "secret"
    assert load("mine:1", environ=environ).token == "secret"
    elsewhere = load("http://theirs:1", environ=environ)
    assert (elsewhere.token, elsewhere.sources["token"]) == (None, ANOTHER_ADDRESS)
    environ["GRIDX_TOKEN"] = "given"
    assert load("http://theirs:1", environ=environ).token == "given"


def test_without_a_name_the_login_name_is_taken(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "grace")
    assert load(environ=environ).user == "grace"

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    with pytest.raises(SettingsError, match="GRIDX_USER"):
        load(environ=environ)


def test_a_bad_name_says_where_it_came_from(environ: dict[str, str]) -> None:
    environ["GRIDX_USER"] = "no spaces"
    with pytest.raises(SettingsError, match=r"environment \(GRIDX_USER\)"):
        load(environ=environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('usr = "ada"', "unknown setting, 'usr'.*Did you mean 'user'"),
        ('zzz = "ada"', "unknown setting, 'zzz'.*The settings are url, user, token"),
        ("user = 3", "user must be text, not int"),
        ("user = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(environ: dict[str, str], text: str, message: str) -> None:
    path = write(environ, text)
    with pytest.raises(SettingsError, match=message) as caught:
        load(environ=environ)
    assert str(path) in str(caught.value)


def test_a_token_that_others_can_read_is_refused(environ: dict[str, str]) -> None:
    path = write(environ, 'token = "secret"', 0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load(environ=environ)
    path.chmod(0o600)
    assert read_file(path) == {"token": "secret"}
    write(environ, 'user = "ada"', 0o644)  # no secret in it
    assert load(environ=environ).user == "ada"


def test_a_file_that_cannot_be_read_is_named(environ: dict[str, str]) -> None:
    config_file(environ).mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"config\.toml cannot be read: Is a directory"):
        load(environ=environ)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost", "http://localhost:8081"),
        ("localhost:9", "http://localhost:9"),
        (" http://10.0.0.1:8081/ ", "http://10.0.0.1:8081"),
        ("https://grid.example", "https://grid.example"),
        ("https://grid.example/lab/", "https://grid.example/lab"),
        ("http://[::1]:8081", "http://[::1]:8081"),
        ("HTTP://Grid.Example:1", "http://grid.example:1"),
    ],
)
def test_addresses_are_written_in_one_way(text: str, url: str) -> None:
    assert normalise_url(text) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ws://localhost:8080/ws/worker", "HTTP address"),
        ("ftp://localhost", "begins with ftp://"),
        ("http://", "names no host"),
        ("http://a b", "names no host"),
        ("http://host:port", "is not an address"),
        ("http://host:99999", "is not an address"),
        ("http://ada:pw@host", "gridx login URL --user NAME"),
        ("http://host/?x=1", "goes on after its path"),
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        normalise_url(text)
    assert caught.value.hint


def test_the_socket_address_follows_from_the_url() -> None:
    assert load("localhost:1", "ada").websocket_url == "ws://localhost:1/ws/client"
    assert load("https://grid.example", "ada").websocket_url == "wss://grid.example/ws/client"


def test_tables_of_the_notebook_are_read_apart_and_outlive_a_login(
    environ: dict[str, str],
) -> None:
    path = write(environ, 'url = "http://f:1"\n\n[cell]\ncpus = 2\n\n[profile.big]\nmem = "8G"\n')
    assert load(environ=environ).url == "http://f:1"
    save(url="http://g:2", user="ada", environ=environ)
    assert load(environ=environ).url == "http://g:2"
    assert read_tables(path) == {
        "cell": {"cpus": 2},
        "profile": {"big": {"mem": "8G"}},
        "trust": {},
    }


def test_a_file_without_tables_has_empty_ones(environ: dict[str, str]) -> None:
    assert read_tables(config_file(environ)) == {"cell": {}, "profile": {}, "trust": {}}
    path = write(environ, 'cell = "x"\n')
    assert read_tables(path)["cell"] == {}
    with pytest.raises(SettingsError, match="unknown setting"):
        load(environ=environ)
