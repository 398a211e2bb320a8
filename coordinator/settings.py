"""Every setting of the coordinator, in one frozen struct, with its unit in its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from gridx.credits import UCR_PER_CREDIT, Rates
from gridx.resources import KIB, MIB


def default_data_dir() -> Path:
    """Return ``$XDG_DATA_HOME/gridx/coordinator``, by default under ``~/.local/share``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "gridx" / "coordinator"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a coordinator can be told. Port 0 picks a free one."""

    # addresses
    host: str = "127.0.0.1"
    http_port: int = 8081
    ws_port: int = 8080
    behind_proxy: bool = False

    # where the truth is kept
    data_dir: Path = msgspec.field(default_factory=default_data_dir)

    # who may come in
    auth: Literal["open", "accounts"] = "open"
    registration_open: bool = True
    token_days: int = 90

    # leases
    heartbeat_s: float = 5.0
    silence_s: float = 15.0  # a worker that says nothing for so long is disconnected
    grace_s: float = 60.0  # a disconnected worker may come back and go on for so long
    starting_limit_s: float = 120.0  # an attempt that has not started by then is lost
    preparing_limit_s: float = 900.0  # the same, of a job that lists packages
    overrun_s: float = 60.0  # an attempt this far past its own timeout is lost
    transfer_limit_s: float = 3600.0  # that its worker may take longer to move large data
    cancel_limit_s: float = 20.0  # a cancelled attempt that has not reported by then is closed
    max_tries: int = 3  # of a job that does not say how many retries it wants
    most_tries: int = 10  # of one that does
    max_attempts: int = 20  # a job that so many workers took and gave back ends as worker_lost
    most_attempts: int = 200  # the same, with those counted whose lender paused
    max_frozen_s: float = 3600.0  # an attempt whose lender pauses may stand still for so long

    # credits
    rates: Rates = Rates()
    worker_share_percent: int = 85
    signup_grant_ucr: int = 100 * UCR_PER_CREDIT

    # output
    max_log_bytes: int = 72 * MIB  # of one attempt; workers stop at 64 MiB by themselves
    inline_stream_bytes: int = 64 * KIB  # output up to this size is stored with the report

    @property
    def database_url(self) -> str:
        """Where the database is, as SQLAlchemy writes it."""
        return f"sqlite:///{self.data_dir / 'gridx.db'}"

    @property
    def log_dir(self) -> Path:
        """Where the output of attempts lies."""
        return self.data_dir / "streams"

    @property
    def blobs_dir(self) -> Path:
        """Where blobs lie."""
        return self.data_dir / "blobs"

    @property
    def is_open(self) -> bool:
        """True where a user name is enough: on loopback only."""
        return self.auth == "open"
