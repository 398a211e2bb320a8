"""The page on the magic says what the tables say."""

from __future__ import annotations

import importlib

from gridx_jupyter.magics.line import COMMANDS, action_of
from gridx_jupyter.magics.line_help import TOPICS, topic_text
from gridx_jupyter.magics.options import CELL_OPTIONS, EXCLUDING, CellOptions
from tests.support.magic_reference import PAGE, render


def test_the_page_is_what_the_tables_make_of_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(), "run: python -m tests.support.magic_reference"


def test_every_subcommand_has_its_function() -> None:
    for command in COMMANDS:
        assert callable(action_of(command))


def test_every_function_of_a_subcommand_stands_in_the_table() -> None:
    for home in {row.home for row in COMMANDS.values()}:
        module = importlib.import_module(f"gridx_jupyter.magics.{home}")
        shown = {name.removeprefix("show_") for name in vars(module) if name.startswith("show_")}
        assert shown == {name for name, row in COMMANDS.items() if row.home == home}


def test_every_topic_can_be_shown_and_is_short() -> None:
    for topic in TOPICS:
        text = topic_text(topic)
        assert text.count("\n") <= len(CELL_OPTIONS) + 3
        assert all(len(line) <= 110 for line in text.splitlines())


def test_what_excludes_each_other_are_fields() -> None:
    fields = set(CellOptions.__dataclass_fields__)
    assert {name for pair in EXCLUDING for name in pair} <= fields
