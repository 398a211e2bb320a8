"""Of a worker's MIME bundle only inert types pass, and images are looked at."""

from __future__ import annotations

import base64
import io
import struct

import pytest
from PIL import Image

from gridx.display import safe_bundle
from gridx.display.bundle import MAX_IMAGE_BYTES


def image(kind: str, size: tuple[int, int] = (3, 2)) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, "red").save(target, kind)
    return target.getvalue()


HOSTILE = [
    "text/html",
    "text/markdown",
    "text/latex",
    "image/svg+xml",
    "application/javascript",
    "application/json",
    "application/pdf",
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.vegalite.v5+json",
    "application/vnd.plotly.v1+json",
    "application/vnd.made-up",
    "TEXT/HTML",
    "text/plain; charset=utf-8",
]


@pytest.mark.parametrize("mime", HOSTILE)
def test_a_type_outside_the_list_is_left_out_and_named(mime: str) -> None:
    bundle = safe_bundle({mime: "<script>1</script>", "text/plain": "x"}, {}, {})
    assert bundle.data == {"text/plain": "x"}
    assert bundle.left_out == (mime,)


@pytest.mark.parametrize("mime", HOSTILE)
def test_bytes_of_a_type_outside_the_list_are_left_out(mime: str) -> None:
    assert safe_bundle({}, {mime: b"<script>"}, {}).data == {}


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_an_image_passes_as_base64(kind: str) -> None:
    raw = image(kind)
    bundle = safe_bundle({}, {f"image/{kind}": raw}, {})
    assert base64.b64decode(bundle.data[f"image/{kind}"]) == raw
    assert bundle.notes == ()


@pytest.mark.parametrize(
    ("mime", "raw"),
    [
        ("image/png", b"<svg onload=alert(1)>"),
        ("image/png", image("jpeg")),
        ("image/jpeg", image("png")),
        ("image/png", b""),
        ("image/png", b"\x89PNG\r\n\x1a\n"),
        ("image/jpeg", b"\xff\xd8\xff"),
        ("image/jpeg", b"\xff\xd8\xff\xe0\x00\x00" * 20),
    ],
)
def test_bytes_that_are_not_that_image_are_refused(mime: str, raw: bytes) -> None:
    bundle = safe_bundle({"text/plain": "<Figure>"}, {mime: raw}, {})
    assert bundle.data == {"text/plain": "<Figure>"}
    assert "not that kind of image" in bundle.notes[0]


def test_an_image_that_unpacks_to_too_many_pixels_is_refused() -> None:
    raw = bytearray(image("png"))
    raw[16:24] = struct.pack(">II", 60_000, 60_000)
    assert "too large" in safe_bundle({}, {"image/png": bytes(raw)}, {}).notes[0]


def test_an_image_of_too_many_bytes_is_refused() -> None:
    raw = image("png") + b"\0" * MAX_IMAGE_BYTES
    assert "at most 8 MiB" in safe_bundle({}, {"image/png": raw}, {}).notes[0]


def test_an_image_as_text_is_left_out() -> None:
    assert safe_bundle({"image/png": "aGk="}, {}, {}).data == {}


def test_of_the_metadata_only_integer_sizes_stay() -> None:
    metadata = {
        "image/png": {"width": 640, "height": "1px", "unconfined": True},
        "isolated": True,
        "text/html": {"isolated": True},
    }
    bundle = safe_bundle({"text/plain": "x"}, {"image/png": image("png")}, metadata)
    assert bundle.metadata == {"image/png": {"width": 640}}
    for wrong in (True, -1, 10**9, 1.5):
        bundle = safe_bundle({}, {"image/png": image("png")}, {"image/png": {"width": wrong}})
        assert bundle.metadata == {}


def test_escapes_in_the_text_and_in_the_name_of_a_type_are_removed() -> None:
    bundle = safe_bundle({"text/plain": "\x1b]0;t\x07x", "a\x1b[2J\nb": ""}, {}, {})
    assert bundle.data == {"text/plain": "x"}
    assert bundle.left_out == ("a b",)
