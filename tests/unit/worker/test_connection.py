"""When a worker comes back, and which refusals other credentials could change."""

from __future__ import annotations

import pytest

from gridx.errors import AuthError, Forbidden, ProtocolError
from worker.connection import is_about_login, reconnect_wait_s


@pytest.mark.parametrize(
    ("failures", "longest_s"), [(0, 0.5), (1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (1000, 5.0)]
)
def test_the_wait_is_spread_from_a_tenth_of_a_second_to_a_growing_bound(
    failures: int, longest_s: float
) -> None:
    assert reconnect_wait_s(failures, lambda low, high: low) == 0.1
    assert reconnect_wait_s(failures, lambda low, high: high) == longest_s


def test_only_a_refused_login_is_worth_another_password() -> None:
    assert is_about_login(AuthError("Expired."))
    assert is_about_login(Forbidden("Not yours."))
    assert not is_about_login(ProtocolError("Too old."))
