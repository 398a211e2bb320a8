"""``%gridx help``: the list of subcommands, and short pages on what people ask about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .line import COMMANDS, commands_help
from .options import nearest, options_help, usage_error

if TYPE_CHECKING:
    from .notebook import Notebook

TOPICS: Final = {
    "cell": "%%gridx [options] on the first line of a cell runs it on a worker.\n{options}\n"
    "Sizes are 512M or 8G, times 90, 10m or 1h30m. {{expression}} is expanded in values.",
    "settings": "An option of the cell goes first, then its --profile, then `%gridx set`,\n"
    "`%config GridX.cpus = 2`, the environment (GRIDX_CPUS=2), [cell] in config.toml, and\n"
    "the default. A profile is a table [profile.NAME] in config.toml with the same keys.",
    "secrets": "Variables that look like secrets (key, token, password) and os.environ never "
    "travel unasked.\n--needs NAME sends one; whoever owns the worker can read it.",
    "credits": "A cell holds its price for its whole --timeout and pays for the time that it "
    "ran;\nthe rest comes back at once. Lending a machine earns credits: `gridx up`.\n"
    "A session is charged while it is open, used or not.",
    "results": "Names that the cell binds come home as data. What is not plain data (sockets,\n"
    "models of libraries) comes home unopened, as an Opaque. --out a,b brings only these.\n"
    "A name that you have bound again meanwhile stays yours: the result has the other value.",
    "sessions": "--session NAME keeps the sandbox and its variables: later cells of that name\n"
    "send only what has changed, and values that cannot come home stay usable there. It ends\n"
    "after 10 idle minutes, with `%gridx session stop NAME`, or when its worker is lost; the\n"
    "next cell of that name then begins a new one and says so.",
    "files": "--files data/*.csv sends files from below the notebook's folder; the cell finds\n"
    "them under the same path. --fetch out/*.png brings files home. Your own files are never\n"
    "overwritten: only what the same cell sent or an earlier fetch wrote, unless you have\n"
    "changed it since; else the fetched file stands beside yours.",
    "packages": "A cell runs in an image with the usual scientific packages; --image NAME takes\n"
    "another one that `%gridx workers` shows. --pip polars==1.20 tqdm installs packages for the\n"
    "cell, without network where the cell itself runs: names and versions alone, no addresses.\n"
    "What was installed before is there at once. What no image has is said before anything is\n"
    "sent, with the --pip that helps. `%gridx set pip PKG PKG` installs them for every cell.",
    "languages": "%%gridx --language bash (or node) runs the cell's text as a script of that\n"
    "language: no variables travel or come home, an exit code other than 0 is an error, and line\n"
    "numbers count from the line below %%gridx. Its folder is empty and has no network.",
    "cache": "--cache reuses the result of the same code, inputs, prelude and image, kept on\n"
    "this machine for you alone (1 GiB, the oldest go first). --cache=KEY: KEY stands for the\n"
    "inputs. --fresh runs the cell again. `%gridx cache clear` drops all.",
    "interrupt": "The stop button stops the cell on the worker; the time it ran is charged.\n"
    "A second press leaves at once and names the job. --on-interrupt detach lets it go on,\n"
    "ask puts the question. In a session it stops the cell and keeps the session.",
    "restart": "Jobs go on when the kernel is restarted or the notebook is closed. `%gridx jobs`\n"
    "finds them, `%gridx attach JOB` shows the output and brings the values home, `%gridx\n"
    "result JOB` the values alone. Variables that exist here stay, unless you say --replace.",
    "on": "%gridx on makes every following cell remote; cells stay plain Python for the editor.\n"
    "A first line `# gridx: --cpus 2` gives options, `# gridx: local` or %%local runs that cell\n"
    "here. Lines with %gridx, %load_ext, %config and the like always run here.",
    "local": "--local runs the cell here, in a fresh process that holds only what was captured,\n"
    "and brings the results home as from a worker: for finding out what a cell needs. Nothing\n"
    "isolates it, and --mem does not bind it.",
}


def show_help(notebook: Notebook, rest: str) -> None:
    """Print the list, or one topic."""
    topic = rest.partition(" ")[0]
    if topic in TOPICS:
        print(topic_text(topic))
    if topic in COMMANDS:
        row = COMMANDS[topic]
        print(f"%gridx {topic} {row.arguments}".rstrip() + f": {row.help}")
    elif not topic:
        print(commands_help())
        print("Topics: " + ", ".join(TOPICS) + ". %gridx help TOPIC shows one.")
    elif topic not in TOPICS:
        raise usage_error(
            f"There is no help on {topic!r}.{nearest(topic, [*TOPICS, *COMMANDS])}",
            "Topics: " + ", ".join(TOPICS) + ".",
            "",
        )


def topic_text(topic: str) -> str:
    """Return one page."""
    return TOPICS[topic].format(options=options_help())
