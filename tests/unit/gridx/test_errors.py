from __future__ import annotations

import msgspec
import pytest

from gridx.errors import (
    ErrorBody,
    GridXError,
    InsufficientCredits,
    NotFound,
    error_classes,
    from_body,
)
from tests.support.error_reference import PAGE, all_error_classes, section


def every_class() -> list[type[GridXError]]:
    all_error_classes()
    found, todo = [], [GridXError]
    while todo:
        cls = todo.pop()
        found.append(cls)
        todo += cls.__subclasses__()
    return sorted(found, key=lambda cls: cls.code)


CLASSES = every_class()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
class TestEachClass:
    def test_has_a_code_of_its_own(self, cls: type[GridXError]) -> None:
        assert "code" in vars(cls), "inherits its code"
        assert [other for other in CLASSES if other.code == cls.code] == [cls]
        assert cls.code.isidentifier()
        assert cls.code.islower()

    def test_has_a_hint_that_is_a_sentence(self, cls: type[GridXError]) -> None:
        assert cls.default_hint[0].isupper()
        assert cls.default_hint.endswith(".")

    def test_says_what_it_means(self, cls: type[GridXError]) -> None:
        assert cls.__doc__

    def test_travels_and_comes_back(self, cls: type[GridXError]) -> None:
        sent = cls.__new__(cls)
        GridXError.__init__(sent, "It is so.", hint="Do that.", limit=3)
        body = msgspec.json.decode(msgspec.json.encode(sent.to_body()), type=ErrorBody)
        came = from_body(body)
        assert type(came) is cls
        assert (came.message, came.hint, came.details) == ("It is so.", "Do that.", {"limit": 3})
        assert str(came) == "It is so. Do that."

    def test_is_in_the_reference_as_the_class_has_it(self, cls: type[GridXError]) -> None:
        page = PAGE.read_text(encoding="utf-8")
        assert section(cls) in page, "run: python -m tests.support.error_reference"


def test_the_reference_names_no_error_that_is_gone() -> None:
    page = PAGE.read_text(encoding="utf-8")
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings == sorted(error_classes())


def test_an_unknown_code_becomes_a_plain_error_that_keeps_its_words() -> None:
    error = from_body(ErrorBody(code="from_the_future", message="New.", hint="Upgrade."))
    assert type(error) is GridXError
    assert str(error) == "New. Upgrade."


def test_a_hint_can_be_given_for_the_place_and_left_out() -> None:
    assert NotFound("No job.").hint == NotFound.default_hint
    assert str(NotFound("No job.", hint="Look there.")) == "No job. Look there."
    assert str(NotFound("No job.", hint="")) == "No job."


def test_details_are_for_programs() -> None:
    error = InsufficientCredits("Too little.", missing_ucr=5)
    assert error.details == {"missing_ucr": 5}
    assert error.to_body().code == "insufficient_credits"
