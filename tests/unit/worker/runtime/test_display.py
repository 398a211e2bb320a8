"""Which part of a MIME bundle leaves the sandbox."""

from __future__ import annotations

import base64

from gridx.events import MAX_EVENT_BYTES, DisplayData, encode_event
from worker.runtime.display import MAX_IMAGES_BYTES, MAX_TEXT_CHARS, to_bundle

PNG = b"\x89PNG\r\n\x1a\n"


def test_only_text_and_two_kinds_of_image_go_out() -> None:
    bundle = to_bundle(
        {"text/plain": "x", "text/html": "<b>", "image/png": PNG, "image/svg+xml": "<svg/>"}
    )
    assert bundle.data == {"text/plain": "x"}
    assert bundle.binary == {"image/png": PNG}


def test_an_image_comes_as_bytes_or_as_jupyter_writes_it() -> None:
    as_text = base64.b64encode(PNG).decode()
    assert to_bundle({"image/jpeg": as_text}).binary == {"image/jpeg": PNG}
    assert to_bundle({"image/png": "not base64!"}).binary == {}


def test_a_bundle_that_cannot_be_shown_says_so() -> None:
    assert to_bundle({"text/html": "<b>"}).data == {
        "text/plain": "[text/html: not shown in this release]"
    }
    assert to_bundle({}).data == {}


def test_metadata_is_kept_only_for_what_is_kept_and_only_plain_values() -> None:
    bundle = to_bundle(
        {"image/png": PNG},
        {"image/png": {"width": 10, "deep": {"a": 1}, "big": 1 << 60}, "other": 1},
    )
    assert bundle.metadata == {"image/png": {"width": 10}}


def test_an_image_above_the_limit_becomes_a_sentence() -> None:
    bundle = to_bundle({"image/png": b"x" * (MAX_IMAGES_BYTES + 1), "text/plain": "figure"})
    assert bundle.binary == {}
    assert bundle.data["text/plain"].startswith("figure\n[image/png of 6.0 MiB")


def test_the_largest_bundle_fits_an_event() -> None:
    bundle = to_bundle(
        {"text/plain": "\U0001f600" * (2 * MAX_TEXT_CHARS), "image/png": b"x" * MAX_IMAGES_BYTES}
    )
    assert len(encode_event(DisplayData(data=bundle.data, binary=bundle.binary))) < MAX_EVENT_BYTES
    assert "more characters" in bundle.data["text/plain"]


def test_half_a_surrogate_pair_is_escaped() -> None:
    assert to_bundle({"text/plain": "\ud800"}).data == {"text/plain": "\\ud800"}
