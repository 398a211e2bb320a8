"""Which part of a MIME bundle leaves the sandbox."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter

from gridx.events import MAX_EVENT_BYTES, DisplayData, encode_event
from worker.runtime.display import MAX_RICH_BYTES, MAX_TEXT_CHARS, Formats, to_bundle

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_type_that_may_be_shown_goes_out() -> None:
    bundle = to_bundle(
        {
            "text/plain": "x",
            "text/html": "<b>",
            "text/markdown": "*x*",
            "text/latex": "$x$",
            "image/svg+xml": b"<svg/>",
            "application/json": {"a": [1]},
            "image/png": PNG,
            "image/gif": b"GIF89a",
        }
    )
    assert bundle.data == {
        "text/plain": "x",
        "text/html": "<b>",
        "text/markdown": "*x*",
        "text/latex": "$x$",
        "image/svg+xml": "<svg/>",
        "application/json": '{"a": [1]}',
    }
    assert bundle.binary == {"image/png": PNG, "image/gif": b"GIF89a"}


def test_of_every_other_type_the_name_goes_out() -> None:
    bundle = to_bundle(
        {
            "application/javascript": "alert(1)",
            "text/plain": "x",
            **{f"a/{n}": "" for n in range(9)},
        }
    )
    assert bundle.data["application/javascript"] == ""
    assert bundle.data["text/plain"] == "x"
    assert len(bundle.data) == 6


def test_an_image_comes_as_bytes_or_as_jupyter_writes_it() -> None:
    as_text = base64.b64encode(PNG).decode()
    assert to_bundle({"image/jpeg": as_text}).binary == {"image/jpeg": PNG}
    assert to_bundle({"image/png": "not base64!"}).binary == {}


def test_a_value_that_is_no_json_is_left_out() -> None:
    assert to_bundle({"application/json": {1, 2}, "text/plain": "x"}).data == {"text/plain": "x"}
    assert to_bundle({}).data == {}


def test_metadata_is_kept_only_for_what_is_kept_and_only_plain_values() -> None:
    bundle = to_bundle(
        {"image/png": PNG},
        {"image/png": {"width": 10, "deep": {"a": 1}, "big": 1 << 60}, "other": 1},
    )
    assert bundle.metadata == {"image/png": {"width": 10}}


def test_an_image_above_the_limit_becomes_a_sentence() -> None:
    bundle = to_bundle({"image/png": b"x" * (MAX_RICH_BYTES + 1), "text/plain": "figure"})
    assert bundle.binary == {}
    assert bundle.data["text/plain"].startswith("figure\n[image/png of 6.0 MiB")


def test_the_largest_bundle_fits_an_event() -> None:
    bundle = to_bundle(
        {"text/plain": "\U0001f600" * (2 * MAX_TEXT_CHARS), "image/png": b"x" * MAX_RICH_BYTES}
    )
    assert len(encode_event(DisplayData(data=bundle.data, binary=bundle.binary))) < MAX_EVENT_BYTES
    assert "more characters" in bundle.data["text/plain"]


def test_markup_above_the_limit_becomes_a_sentence() -> None:
    bundle = to_bundle({"text/html": "é" * MAX_RICH_BYTES, "text/plain": "frame"})
    assert bundle.data == {"text/plain": "frame\n[text/html of 12 MiB: too large to show]"}


def test_half_a_surrogate_pair_is_escaped() -> None:
    assert to_bundle({"text/plain": "\ud800"}).data == {"text/plain": "\\ud800"}
    assert to_bundle({"text/html": "\ud800"}).data == {"text/html": "\\ud800"}


class Shown:
    """Has two forms."""

    def __repr__(self) -> str:
        return "plain"

    def _repr_html_(self) -> str:
        return "<b>rich</b>"


class Javascript:
    def __repr__(self) -> str:
        return "plain"

    def _repr_javascript_(self) -> str:
        return "alert(1)"

    def _repr_pdf_(self) -> bytes:
        raise AssertionError("nobody shows it")


def test_an_object_is_asked_for_each_form_that_can_be_shown() -> None:
    assert Formats().format(Shown()) == ({"text/plain": "plain", "text/html": "<b>rich</b>"}, {})
    assert "application/javascript" in Formats().format(Javascript())[0]


@pytest.mark.parametrize("value", [1, 1.5, "x", [1], {"a": 1}, None, np.arange(3), np.float64(1)])
def test_what_has_only_its_text_is_asked_for_its_text_alone(value: object) -> None:
    formats = Formats()
    stock = DisplayFormatter().format(value)
    assert formats.format(value) == stock
    assert formats._is_text_alone(type(value))


def test_a_form_that_the_user_has_registered_is_asked_for() -> None:
    formats = Formats()
    formats.formatters["text/html"].for_type(int, lambda value: f"<b>{value}</b>")
    assert formats.format(3)[0]["text/html"] == "<b>3</b>"
    assert formats.format(True)[0]["text/html"] == "<b>True</b>"
    assert formats.format("x")[0] == {"text/plain": "'x'"}
