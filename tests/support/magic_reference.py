"""Writes docs/reference/magic.md from the tables: python -m tests.support.magic_reference"""

from __future__ import annotations

from pathlib import Path

from gridx_jupyter.magics.line import COMMANDS, Command
from gridx_jupyter.magics.line_help import TOPICS
from gridx_jupyter.magics.options import CELL_OPTIONS, EXCLUDING, NOT_BUILT, Option

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "magic.md"

_HEAD = """\
# The magic

```python
%load_ext gridx_jupyter
```

`%%gridx [options]` on the first line of a cell runs the cell on a worker of the grid; `%gridx`
looks after the grid. This page is written from the tables that the notebook itself uses
(`python -m tests.support.magic_reference`), and a test compares both.

## Options of `%%gridx`

Sizes are written `512M` or `8G`, times `90`, `10m` or `1h30m`. `{expression}` is expanded in the
values of options, never in the body of the cell. An unknown option, a wrong value or an empty
cell is refused in one line that names the nearest option, and nothing runs.
"""

_DEFAULTS = """\
### Defaults

An option of the cell goes first, then its `--profile`, then `%gridx set KEY VALUE`, `%config
GridX.key = value`, the environment, the table `[cell]` of `~/.config/gridx/config.toml`, and the
default of the option. A profile is a table of the same file:

```toml
[cell]
timeout = "10m"

[profile.big]
cpus = 8
mem = "32G"
```

What has a default of that kind:
"""


def _option_row(option: Option) -> str:
    return f"| `{option.title}` | {option.help} |"


def _command_row(row: tuple[str, Command]) -> str:
    name, command = row
    title = f"{name} {command.arguments}".rstrip().replace("|", "\\|")
    return f"| `{title}` | {command.help} |"


def _exclusions() -> str:
    names = {option.field: option.names[-1] for option in reversed(CELL_OPTIONS)}
    pairs = ", ".join(f"`{names[one]}` and `{names[other]}`" for one, other in EXCLUDING)
    return f"These exclude each other: {pairs}.\n"


def _plain(topic: str) -> str:
    return TOPICS[topic].replace("{{", "{").replace("}}", "}")


def render() -> str:
    """Return the page as the tables have it."""
    settable = [option for option in CELL_OPTIONS if option.settable]
    lines = [
        _HEAD,
        "| option | meaning |",
        "| --- | --- |",
        *map(_option_row, CELL_OPTIONS),
        "",
        _exclusions(),
        "Options of a later release are refused by name: "
        + ", ".join(f"`{name}` ({what})" for name, what in NOT_BUILT.items())
        + ".",
        "",
        _DEFAULTS,
        "| setting | environment | `%config` |",
        "| --- | --- | --- |",
        *(f"| `{o.key}` | `{o.variable}` | `GridX.{o.key.replace('-', '_')}` |" for o in settable),
        "",
        "## Subcommands of `%gridx`",
        "",
        "`{expression}` is expanded: `%gridx logs {run.job}`.",
        "",
        "| subcommand | does |",
        "| --- | --- |",
        *map(_command_row, COMMANDS.items()),
        "",
        "## What people ask about",
        "",
    ]
    for topic in TOPICS:
        if topic != "cell":
            lines += [f"### {topic}", "", _plain(topic), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
