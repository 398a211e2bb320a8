"""Where the value of an option comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from traitlets import TraitError

from gridx_jupyter.magics.defaults import Defaults, GridX
from gridx_jupyter.magics.options import SETTABLE, CellOptions, parse_cell_options


class Layers:
    """A kernel's layers, with a settings file of its own."""

    def __init__(self, folder: Path) -> None:
        self.environ = {"XDG_CONFIG_HOME": str(folder)}
        self.file = folder / "gridx" / "config.toml"
        self.file.parent.mkdir()
        self.config: Any = GridX()
        self.defaults = Defaults(self.config, self.environ)

    def options(self, line: str = "") -> CellOptions:
        return parse_cell_options(line, str, self.defaults.of)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def test_each_layer_goes_before_the_one_below(layers: Layers) -> None:
    assert layers.options().cpus == 1
    layers.file.write_text("[cell]\ncpus = 2\ntimeout = '10m'\n")
    assert layers.options().cpus == 2
    layers.environ["GRIDX_CPUS"] = "3"
    assert layers.options().cpus == 3
    layers.config.cpus = 4
    assert layers.options().cpus == 4
    layers.defaults.set("cpus", "5")
    assert layers.options().cpus == 5
    assert layers.options("--cpus 6").cpus == 6
    assert layers.options().timeout_s == 600
    layers.defaults.unset("cpus")
    assert layers.options().cpus == 4


def test_a_profile_stands_below_the_layer_that_names_it(layers: Layers) -> None:
    layers.file.write_text("[cell]\ncpus = 2\n[profile.big]\ncpus = 8\nmem = '16G'\n")
    options = layers.options("--profile big --mem 4G")
    assert (options.cpus, options.mem_bytes >> 30) == (8, 4)
    layers.defaults.set("profile", "big")
    layers.defaults.set("cpus", "3")
    options = layers.options()
    assert (options.cpus, options.mem_bytes >> 30) == (3, 16)


def test_a_list_of_packages_is_a_list_in_the_file_and_words_elsewhere(layers: Layers) -> None:
    layers.file.write_text("[profile.p]\npip = ['polars >= 1.20', 'tqdm']\nimage = 'torch'\n")
    options = layers.options("--profile p")
    assert (options.pip, options.image) == (("polars>=1.20", "tqdm"), "torch")
    layers.environ["GRIDX_PIP"] = "duckdb tqdm==4.66"
    assert layers.options().pip == ("duckdb", "tqdm==4.66")
    layers.config.pip = ["httpx"]
    assert layers.options().pip == ("httpx",)
    layers.defaults.set("pip", "a b")
    assert layers.options().pip == ("a", "b")
    assert layers.options("--pip c").pip == ("c",)
    with pytest.raises(UsageError, match="is an option of pip"):
        layers.defaults.set("pip", "--index-url x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cell]\ncpu = 2\n", "Did you mean cpus?"),
        ("[cell]\ncpus = 'many'\n", "is not a number"),
        ("[cell]\nprofile = 'big'\n", "There is no profile 'big'"),
        ("[cell\n", "is not TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_with_its_place(
    layers: Layers, text: str, words: str
) -> None:
    layers.file.write_text(text)
    with pytest.raises(UsageError) as caught:
        layers.options()
    assert words in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_a_profile_that_is_not_there_is_named_with_the_nearest(layers: Layers) -> None:
    layers.file.write_text("[profile.large]\ncpus = 8\n")
    with pytest.raises(UsageError, match="Did you mean large"):
        layers.options("--profile larg")
    assert layers.defaults.profiles() == ["large"]


def test_a_wrong_value_is_refused_where_it_is_set(layers: Layers) -> None:
    with pytest.raises(UsageError, match="above 0"):
        layers.defaults.set("cpus", "0")
    with pytest.raises(UsageError, match="Did you mean timeout"):
        layers.defaults.set("timeot", "5")
    with pytest.raises(TraitError, match="above 0"):
        layers.config.cpus = 0


def test_a_switch_is_on_or_off(layers: Layers) -> None:
    layers.file.write_text("[cell]\nquiet = true\n")
    assert layers.options().quiet is True
    layers.defaults.set("quiet", "off")
    assert layers.options().quiet is False


def test_an_option_of_the_cell_drops_the_default_that_it_excludes(layers: Layers) -> None:
    layers.defaults.set("session", "work")
    assert layers.options().session == "work"
    assert layers.options("--cache").session is None
    assert layers.options("--retries 2").session is None


def test_every_setting_says_where_it_comes_from(layers: Layers) -> None:
    layers.environ["GRIDX_MAX_UPLOAD"] = "1G"
    layers.defaults.set("cpus", "2")
    rows = {key: (text, source) for key, text, source in layers.defaults.rows()}
    assert rows.keys() == SETTABLE.keys()
    assert rows["max-upload"] == ("1G", "environment")
    assert rows["cpus"] == ("2", "%gridx set")
    assert rows["mem"] == ("", "")
