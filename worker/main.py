"""`python -m worker.main`, `gridx-worker`: run, check, image, and the lender's word to a worker.

Heavy modules are imported where a command needs them: `--help` answers at once, and the daemon
holds no more than it uses.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from gridx.errors import GridXError, SandboxError, SettingsError
from gridx.extras import explain_missing
from gridx.logs import start_logging

from .settings import (
    WorkerSettings,
    ask_password,
    from_arguments,
    process_notice,
)

_QUIETER = ("urllib3", "docker", "tornado.general")
LENDING = ("status", "pause", "resume", "drain", "snooze", "wake")
REFUSED = 2  # exit code: the coordinator refuses this worker; no use in trying again


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names; the daemon when it names none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "run"
    try:
        if command == "image":
            from .images import command as image_command

            return image_command.main(arguments[1:])
        if command == "check":
            from . import check

            return check.main(arguments[1:])
        if command == "service":
            from .lending import service

            return service.main(arguments[1:])
        if command in LENDING:
            from .lending import command as lending_command

            return lending_command.main(command, arguments[1:])
        if command == "run":
            return _run(arguments[1:] if arguments[:1] == ["run"] else arguments)
    except ModuleNotFoundError as error:
        return _failed(explain_missing(error, "worker"), REFUSED)
    print(
        f"gridx-worker has no command {command!r}: run, check, image, service, "
        f"{', '.join(LENDING[:-1])} or {LENDING[-1]}.",
        file=sys.stderr,
    )
    return REFUSED


def _run(arguments: Sequence[str]) -> int:
    from .connection import LoginRefused

    try:
        settings = from_arguments(arguments)
        start_logging(quieter=dict.fromkeys(_QUIETER, logging.WARNING))
        asyncio.run(_serve(settings))
    except LoginRefused as error:
        return _failed(error, REFUSED)
    except GridXError as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


async def _serve(settings: WorkerSettings) -> None:
    from .daemon import serve
    from .home import Home
    from .sandbox.base import SandboxEngine

    home = Home(settings.data_dir)
    try:
        if home.token_for(settings.user, settings.coordinator) is None and not settings.password:
            settings = _with_password(settings)
        engine: SandboxEngine
        if settings.sandbox == "process":
            from .sandbox.process import ProcessEngine

            processes = ProcessEngine(
                folder=settings.data_dir / "process", hide=_hidden(settings.data_dir)
            )
            print(process_notice(await processes.measure()), file=sys.stderr, flush=True)
            engine = processes
        else:
            from .sandbox.docker import DockerEngine

            engine = DockerEngine(
                worker_id=home.identity.worker_id,
                python_minor=settings.python,
                runtime=settings.runtime,
                slots=home.slots,
                self_test=home.folder / "self-test.json",
                pythons=settings.pythons,
                languages=settings.languages,
                families=settings.families,
                environments=settings.pip,
                environments_bytes=settings.environments_bytes,
                packages=settings.pip_allowed,
            )
        try:
            await serve(settings, home, engine, version=_version(), say=_say)
        except SandboxError as error:
            if settings.sandbox == "docker":
                error.hint += (
                    " Or try the grid without Docker, for your own jobs only: --sandbox process."
                )
            raise
    finally:
        home.close()


def _hidden(data_dir: Path) -> list[Path]:
    """Return the folders with tokens, keys and other jobs' data, which no job has to see."""
    from gridx.settings import config_file
    from gridx.up import data_home

    folders = [data_dir, data_home(), config_file().parent]
    if (data_dir.parent / "up-passwords.json").exists():
        folders.append(data_dir.parent)  # of `gridx up --data-dir`
    return folders


def _with_password(settings: WorkerSettings) -> WorkerSettings:
    import msgspec

    password = ask_password(settings.user)
    if password is None:
        raise SettingsError(
            f"The password of {settings.user} is missing.",
            hint="Set GRIDX_PASSWORD, add --password, or start the worker at a terminal.",
        )
    return msgspec.structs.replace(settings, password=password)


def _say(line: str) -> None:
    print(line, flush=True)


def _failed(error: GridXError, code: int) -> int:
    print(f"{error.message}\n{error.hint}", file=sys.stderr)
    return code


def _version() -> str:
    try:
        return metadata.version("gridx-jupyter")
    except metadata.PackageNotFoundError:
        return "0+source"


if __name__ == "__main__":
    sys.exit(main())
