from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridx.errors import InvalidRequest
from gridx.requirements import MAX_REQUIREMENT_CHARS, parse_requirements
from gridx.schemas import MAX_REQUIREMENTS


def test_equal_lists_are_equal_however_they_were_written() -> None:
    asked = parse_requirements([" Tqdm <5, >= 4 ", "scikit_learn", "polars == 1.20"])
    assert asked == ("polars==1.20", "scikit-learn", "tqdm<5,>=4")
    assert parse_requirements(reversed(asked)) == asked


def test_extras_are_allowed_and_a_repetition_counts_once() -> None:
    assert parse_requirements(["dask[Array, dataframe]>=2024", "dask[dataframe,array]>=2024"]) == (
        "dask[array,dataframe]>=2024",
    )


def test_a_version_of_a_certain_build_is_a_version() -> None:
    assert parse_requirements(["torch==2.5.1+cpu", "a~=1.4", "b!=2.*"]) == (
        "a~=1.4",
        "b!=2.*",
        "torch==2.5.1+cpu",
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-r requirements.txt", "option"),
        ("--index-url=elsewhere", "option"),
        ("-e .", "option"),
        ("https://host/a.whl", "address"),
        ("git+ssh://host/a", "address"),
        ("a @ file:///etc", "address"),
        ("a@b", "address"),
        ("./a", "path"),
        ("/root/a.whl", "path"),
        ("..", "path"),
        ("~/a", "path"),
        ("a/b", "path"),
        (".\\a", "path"),
        ("a; python_version > '3'", "condition"),
        ("a===1", "==="),
        ("a b", "no name"),
        ("a==", "no name"),
        ("a[", "no name"),
        ("$(id)", "no name"),
        ("", "no name"),
        ("   ", "no name"),
        ("a==1\n-r b", "characters"),
        ("a\x00", "characters"),
        ("pólars", "characters"),
        ("a" * (MAX_REQUIREMENT_CHARS + 1), "more than"),
    ],
)
def test_what_is_no_name_with_versions_is_refused_and_named(line: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_requirements(["tqdm", line])
    assert why in refused.value.message
    assert ascii(line.strip()[:80]) in refused.value.message
    assert "polars==1.20" in refused.value.hint


def test_two_versions_of_one_package_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        parse_requirements(["Tqdm==4.1", "tqdm==4.2"])


def test_a_list_has_an_end() -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_REQUIREMENTS}"):
        parse_requirements(f"a{n}" for n in range(MAX_REQUIREMENTS + 1))


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_is_a_clean_list_or_a_refusal(lines: list[str]) -> None:
    try:
        asked = parse_requirements(lines)
    except InvalidRequest:
        return
    assert parse_requirements(asked) == asked
    for line in asked:
        assert line[0].isalnum()
        assert not set(line) & set(" \n\r\t/\\@;'\"$&|<>-") - set("<>-")
