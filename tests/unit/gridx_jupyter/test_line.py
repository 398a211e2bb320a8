"""What ``%gridx`` prints."""

from __future__ import annotations

import msgspec

from gridx.schemas import AccountView
from gridx_jupyter.magics.line_grid import balance_text
from gridx_jupyter.magics.line_jobs import jobs_text

from .test_render import view


def test_a_cost_is_shown_as_everywhere_else() -> None:
    small = msgspec.structs.replace(view(), cost=0.00009)
    assert "  0.000090  " in jobs_text([small])
    assert "  0.10  " in jobs_text([msgspec.structs.replace(view(), cost=0.100446)])


def test_a_worker_cannot_name_itself_over_the_table() -> None:
    named = msgspec.structs.replace(view(), worker_name="a\x1b[2Jb\nc")
    assert "\x1b" not in jobs_text([named])
    assert len(jobs_text([named]).splitlines()) == 2


def test_a_balance_shows_what_a_small_cell_cost() -> None:
    account = AccountView(user_id="bob", balance=99.999766, available=88.9, held=11.1)
    assert balance_text(account) == "bob: 99.999766 credits (11.10 held for jobs)"
