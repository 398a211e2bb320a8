"""``python -m coordinator.main`` and ``gridx-coordinator``: serve, openapi, check-ledger."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from gridx import __version__
from gridx.errors import GridXError, SettingsError
from gridx.extras import explain_missing
from gridx.logs import start_logging

from .settings import Settings, default_data_dir

# Tornado logs each refused or broken request of a peer by itself; our own lines say it better.
_QUIETER: Final = {"tornado.access": logging.ERROR, "alembic": logging.WARNING}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="gridx-coordinator",
        description="The coordinator of a grid: takes jobs in, gives them to workers, keeps the"
        " ledger. Without a command it serves.",
    )
    parser.add_argument("--version", action="version", version=f"gridx {__version__}")
    parser.add_argument("--http-port", type=int, default=8081, help="REST and clients (8081)")
    parser.add_argument("--ws-port", type=int, default=8080, help="workers (8080); 0 picks one")
    parser.add_argument("--host", default="127.0.0.1", help="loopback only, in this release")
    parser.add_argument(
        "--data-dir", type=Path, default=default_data_dir(), help="database and output"
    )
    parser.add_argument(
        "--auth", default="open", choices=("open", "accounts"), help="open: loopback, one user"
    )
    parser.add_argument("--behind-proxy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--heartbeat-s", type=float, default=5.0, help="seconds between signs of life of a worker"
    )
    parser.add_argument(
        "--grace-s", type=float, default=60.0, help="seconds that a lost worker may come back in"
    )
    parser.add_argument("--max-tries", type=int, default=3, help="attempts of a job at most")
    parser.add_argument(
        "--closed-registration", action="store_true", help="nobody can make an account"
    )
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error")
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve (the default)")
    openapi = commands.add_parser("openapi", help="write openapi.json and docs/api-reference.md")
    openapi.add_argument("--check", action="store_true", help="only say whether they are stale")
    commands.add_parser("check-ledger", help="check that every credit is accounted for")
    return parser


def settings_from(options: argparse.Namespace) -> Settings:
    """Return the settings that the command line asks for.

    Raises:
        SettingsError: a number is out of range.
    """
    for name in ("http_port", "ws_port"):
        if not 0 <= getattr(options, name) <= 65535:
            raise SettingsError(f"--{name.replace('_', '-')} has to be between 0 and 65535.")
    if options.http_port == options.ws_port != 0:
        raise SettingsError(
            f"--http-port and --ws-port are both {options.http_port}.",
            hint="They need two ports; 0 picks a free one.",
        )
    for name in ("heartbeat_s", "grace_s"):
        if not 0 < getattr(options, name) <= 86400:
            raise SettingsError(f"--{name.replace('_', '-')} has to be above 0 and at most 86400.")
    if options.max_tries < 1:
        raise SettingsError("--max-tries has to be at least 1.")
    return Settings(
        host=options.host,
        http_port=options.http_port,
        ws_port=options.ws_port,
        data_dir=options.data_dir.expanduser().absolute(),
        auth=options.auth,
        behind_proxy=options.behind_proxy,
        heartbeat_s=options.heartbeat_s,
        silence_s=3 * options.heartbeat_s,
        grace_s=options.grace_s,
        max_tries=options.max_tries,
        registration_open=not options.closed_registration,
    )


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; one line on stdout says where."""
    from .app import serving

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as coordinator:
        print(f"ready http={coordinator.http_url} ws={coordinator.ws_url}", flush=True)
        await stop.wait()
        logging.getLogger(__name__).info("Stopping", extra={"action": "coordinator.stopping"})


def write_openapi(root: Path, *, check: bool) -> int:
    """Write the generated files under ``root``, or only say which are stale; return the exit code."""
    from .web.openapi import generated_files

    if not check and not (root / "docs").is_dir():
        raise SettingsError(
            f"{root} is not the repository: it has no folder docs.",
            hint="Run `python -m coordinator.main openapi` at the root of the repository.",
        )
    stale = []
    for name, text in generated_files().items():
        path = root / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print(
            f"Stale: {', '.join(stale)}. Run `python -m coordinator.main openapi` and commit.",
            file=sys.stderr,
        )
        return 1
    return 0


async def check_ledger(settings: Settings) -> int:
    """Print what the audit finds; return 0 when every credit is accounted for."""
    from .services.audit import run_audit
    from .store.engine import Store

    if not (settings.data_dir / "gridx.db").exists():
        raise SettingsError(
            f"There is no ledger in {settings.data_dir}.", hint="Name its folder with --data-dir."
        )
    store = Store(settings.database_url)
    await store.open()
    try:
        findings = await store.read(run_audit)
    finally:
        await store.close()
    for finding in findings:
        print(finding)
    print("The ledger is clean." if not findings else f"{len(findings)} findings.")
    return 1 if findings else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = make_parser().parse_args(arguments)
    start_logging(options.log_level, quieter=_QUIETER)
    try:
        return _run(options)
    except GridXError as exc:
        print(f"{exc.message}\n{exc.hint}", file=sys.stderr)
        return 2
    except msgspec.ValidationError as exc:
        print(f"A setting does not fit: {exc}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        if options.command == "openapi":
            return write_openapi(Path.cwd(), check=options.check)
        settings = settings_from(options)
        if options.command == "check-ledger":
            return asyncio.run(check_ledger(settings))
        asyncio.run(serve(settings))
    except ModuleNotFoundError as exc:
        raise explain_missing(exc, "coordinator") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
