from __future__ import annotations

import pytest

from coordinator.rules.access import OPEN, Caller, Scope, acting_user, may_act_for, require
from gridx.errors import AuthError, Forbidden

ALICE = Caller(user="alice", scopes=frozenset({Scope.PUBLIC, Scope.JOBS_READ, Scope.JOBS_WRITE}))
READER = Caller(user="alice", scopes=frozenset({Scope.PUBLIC, Scope.JOBS_READ}))
ADMIN = Caller(user="root", scopes=frozenset({Scope.PUBLIC, Scope.ADMIN}))


@pytest.mark.parametrize("scope", list(Scope))
def test_open_mode_and_an_admin_may_use_every_route(scope: Scope) -> None:
    require(OPEN, scope)
    require(ADMIN, scope)


def test_nobody_may_use_public_routes_only() -> None:
    require(Caller(), Scope.PUBLIC)
    with pytest.raises(AuthError):
        require(Caller(), Scope.JOBS_READ)


def test_a_login_reaches_as_far_as_its_scopes() -> None:
    require(READER, Scope.JOBS_READ)
    with pytest.raises(Forbidden, match="jobs:write"):
        require(READER, Scope.JOBS_WRITE)


def test_open_mode_acts_in_the_name_that_the_request_says() -> None:
    assert acting_user(OPEN, "anybody") == "anybody"
    assert acting_user(OPEN, None) is None


def test_a_login_acts_in_its_own_name_only() -> None:
    assert acting_user(ALICE, None) == "alice"
    assert acting_user(ALICE, "alice") == "alice"
    with pytest.raises(Forbidden, match="alice"):
        acting_user(ALICE, "bob")


def test_an_admin_acts_for_anybody() -> None:
    assert may_act_for(ADMIN, "bob")
    assert acting_user(ADMIN, "bob") == "bob"
