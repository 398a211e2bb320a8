"""Of a worker's MIME bundle each type has its treatment, and everything else is left out."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any

import pytest
from PIL import Image

from gridx.display import SafeBundle, safe_bundle
from gridx.display.raster import MAX_IMAGE_BYTES

FORBIDDEN = [
    "application/javascript",
    "application/pdf",
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.vegalite.v5+json",
    "application/vnd.plotly.v1+json",
    "application/geo+json",
    "application/vnd.made-up",
    "application/vnd.gridx.untrusted.v1+json",
    "TEXT/HTML",
    "text/html; charset=utf-8",
    "text/plain; charset=utf-8",
]


def image(kind: str, size: tuple[int, int] = (3, 2), **options: Any) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, "red").save(target, kind, **options)
    return target.getvalue()


def shown(mime: str, text: str, plain: str = "<object>", **options: Any) -> SafeBundle:
    return safe_bundle({mime: text, "text/plain": plain}, {}, {}, **options)


@pytest.mark.parametrize("mime", FORBIDDEN)
@pytest.mark.parametrize("show", ["clean", "interactive", "text"])
def test_a_type_outside_the_list_is_left_out_and_named(mime: str, show: Any) -> None:
    bundle = shown(mime, "<script>1</script>", show=show)
    assert bundle.data == {"text/plain": "<object>"}
    assert bundle.left_out == (mime,)
    assert bundle.notes[0].startswith(f"{mime} left out: ")


@pytest.mark.parametrize("mime", [*FORBIDDEN, "text/html", "text/plain", "image/svg+xml"])
def test_bytes_of_a_type_outside_the_list_are_left_out(mime: str) -> None:
    assert safe_bundle({}, {mime: b"<script>"}, {}).data == {}


# --- pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp"])
def test_a_picture_passes_as_base64(kind: str) -> None:
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
        ("image/gif", image("webp")),
        ("image/webp", image("gif")),
        ("image/png", b""),
        ("image/png", b"\x89PNG\r\n\x1a\n"),
        ("image/jpeg", b"\xff\xd8\xff"),
        ("image/jpeg", b"\xff\xd8\xff\xe0\x00\x00" * 20),
        ("image/gif", b"GIF89a" + b"\0" * 20),
        ("image/gif", image("gif")[:13] + b"<script>"),
        ("image/webp", b"RIFF0000WEBPVP8 " + b"\0" * 40),
    ],
)
def test_bytes_that_are_not_that_picture_are_refused(mime: str, raw: bytes) -> None:
    bundle = safe_bundle({"text/plain": "<Figure>"}, {mime: raw}, {})
    assert bundle.data == {"text/plain": "<Figure>"}
    assert "not that kind of image" in bundle.notes[0]


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused() -> None:
    png = bytearray(image("png"))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    gif = bytearray(image("gif"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    webp = bytearray(image("webp", lossless=True))
    webp[21:25] = b"\xff\xff\xff\x0f"
    for kind, raw in (("png", png), ("gif", gif), ("webp", webp)):
        assert "too large" in safe_bundle({}, {f"image/{kind}": bytes(raw)}, {}).notes[0]


def test_a_frame_that_is_larger_than_its_gif_counts() -> None:
    raw = bytearray(image("gif"))
    at = raw.rindex(b"\x2c\x00\x00\x00\x00\x03\x00\x02\x00")
    raw[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    assert "too large" in safe_bundle({}, {"image/gif": bytes(raw)}, {}).notes[0]


def test_a_picture_of_too_many_bytes_is_refused() -> None:
    raw = image("png") + b"\0" * MAX_IMAGE_BYTES
    assert "at most 8 MiB" in safe_bundle({}, {"image/png": raw}, {}).notes[0]


def test_a_picture_as_text_is_left_out() -> None:
    assert safe_bundle({"image/png": "aGk="}, {}, {}).data == {}


def test_of_the_metadata_only_integer_sizes_stay() -> None:
    metadata = {
        "image/png": {"width": 640, "height": "1px", "unconfined": True},
        "isolated": True,
        "text/html": {"isolated": True},
        "text/plain": {"width": 3},
    }
    bundle = safe_bundle({"text/html": "<b>x</b>"}, {"image/png": image("png")}, metadata)
    assert bundle.metadata == {"image/png": {"width": 640}}
    for wrong in (True, -1, 10**9, 1.5):
        bundle = safe_bundle({}, {"image/png": image("png")}, {"image/png": {"width": wrong}})
        assert bundle.metadata == {}


# --- text -----------------------------------------------------------------------------------


def test_escapes_in_the_text_and_in_the_name_of_a_type_are_removed() -> None:
    bundle = safe_bundle({"text/plain": "\x1b]0;t\x07x", "a\x1b[2J\nb": ""}, {}, {})
    assert bundle.data == {"text/plain": "x"}
    assert bundle.left_out == ("a b",)


def test_a_text_above_the_limit_is_cut_and_says_so() -> None:
    text = safe_bundle({"text/plain": "x" * 3_000_000}, {}, {}).data["text/plain"]
    assert len(text) < 1_100_000
    assert text.endswith("more characters]")


def test_names_of_many_types_are_bounded() -> None:
    bundle = safe_bundle({f"application/x{n}{'y' * 500}": "" for n in range(1000)}, {}, {})
    assert len(bundle.left_out) == len(bundle.notes) == 10
    assert all(len(note) < 200 for note in bundle.notes)


# --- markdown, formulas, drawings, trees ------------------------------------------------------


def test_markdown_becomes_clean_html_and_its_formulas_stay() -> None:
    text = "# Title\n*one* `code` $a_1 b_1 < c$ and\n\n$$\\sum_{i} x_i$$\n\n|a|b|\n|-|-|\n|1|2|\n"
    html = shown("text/markdown", text).data["text/html"]
    assert "<h1>Title</h1>" in html
    assert "<em>one</em>" in html
    assert "$a_1 b_1 &lt; c$" in html
    assert "$$\\sum_{i} x_i$$" in html
    assert "<td>1</td>" in html


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "<javascript:alert(1)>",
        "[x]: javascript:alert(1)\n\n[x]",
        "![x](/api/contents)",
        "![x](https://elsewhere.example/x.png)",
        "[x](/api/shutdown)",
        "<script>alert(1)</script>",
        '<a href="jav&#x09;ascript:alert(1)">x</a>',
        "$\\href{javascript:alert(1)}{x}$",
        '<div style="position:fixed;top:0">x</div>',
    ],
)
def test_markdown_that_would_act_or_load_does_not(text: str) -> None:
    html = shown("text/markdown", text).data.get("text/html", "")
    for word in ("onerror", 'href="java', "/api", "src=", "<script", "\\href", "position"):
        assert word not in html


def test_markdown_above_the_limit_is_shown_as_its_text() -> None:
    bundle = shown("text/markdown", "*x* " * 20_000)
    assert bundle.data.keys() == {"text/plain"}
    assert bundle.data["text/plain"].startswith("*x*")


def test_a_formula_passes_and_holds_no_tag() -> None:
    bundle = shown("text/latex", r"$\displaystyle a<b \text{<img onerror=1>} x^{2}$")
    assert bundle.data["text/latex"] == r"$\displaystyle a< b \text{< img onerror=1>} x^{2}$"


@pytest.mark.parametrize(
    "text",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\style{position:fixed}{x}",
        r"\class{jp-mod-x}{x}",
        r"\cssId{main}{x}",
        r"\def\alpha{beta}",
        r"\newcommand{\a}{\a\a}",
        r"\require{html}",
        r"\bbox[border:9999px solid]{x}",
        r"\htmlData{commandlinker-command=x}{y}",
        r"\includegraphics{/api/contents}",
        "{" * 200,
        "x" * 200_000,
    ],
)
def test_a_formula_that_reaches_beyond_itself_is_left_out(text: str) -> None:
    bundle = shown("text/latex", text)
    assert "text/latex" not in bundle.data
    assert bundle.notes[0].startswith("text/latex left out: ")


def test_a_drawing_is_shown_by_an_image_element() -> None:
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="9"><script>1</script></svg>'
    bundle = safe_bundle(
        {"image/svg+xml": drawing}, {}, {"image/svg+xml": {"width": 90, "style": "x"}}
    )
    assert bundle.data.keys() == {"text/html"}
    head, _, tail = bundle.data["text/html"].partition("base64,")
    assert head == '<img alt="drawing" width="90" src="data:image/svg+xml;'
    assert base64.b64decode(tail.removesuffix('">')).decode() == drawing


def test_a_drawing_without_its_namespace_gets_it_and_loses_its_encoding() -> None:
    html = shown("image/svg+xml", '<?xml version="1.0" encoding="x"?><svg/>').data["text/html"]
    drawing = base64.b64decode(html.partition("base64,")[2].removesuffix('">')).decode()
    assert drawing == '<svg xmlns="http://www.w3.org/2000/svg"/>'


def _tenfold(levels: int) -> str:
    groups = "".join(
        f'<g id="a{n}">' + f'<use href="#a{n - 1}"/>' * 10 + "</g>" for n in range(1, levels)
    )
    return f'<svg><g id="a0"><rect/></g>{groups}<use href="#a{levels - 1}"/></svg>'


@pytest.mark.parametrize(
    ("drawing", "reason"),
    [
        (_tenfold(10), "draw too much"),
        ('<svg><g id="a"><use href="#a"/></g></svg>', "refers to itself"),
        ('<svg><mask id="a"><g mask="url(#a)"/></mask></svg>', "refers to itself"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]><svg>&a;</svg>', "entities"),
        ("<svg>" + "<g>" * 500, "too many elements"),
        ("<svg>" + "<g/>" * 300_000 + "</svg>", "too many elements"),
        ("<svg>" + "<feTurbulence/>" * 60 + "</svg>", "filters"),
        ("<html><script>1</script></html>", "not that kind"),
        ("<svg", "not that kind"),
        ("", "not sent"),
        ("<svg>" + "x" * 5_000_000 + "</svg>", "at most"),
        ('<svg><image href="data:image/png;base64,aGk="/></svg>', "not that kind"),
        ('<svg><image href="data:image/svg+xml;base64,aGk="/></svg>', "holds image/svg"),
    ],
)
def test_a_drawing_that_is_none_or_makes_too_much_work_is_left_out(
    drawing: str, reason: str
) -> None:
    bundle = shown("image/svg+xml", drawing)
    assert bundle.data == {"text/plain": "<object>"}
    assert reason in bundle.notes[0]


def test_a_drawing_of_ordinary_references_passes() -> None:
    assert "text/html" in shown("image/svg+xml", _tenfold(5)).data


def test_a_tree_is_built_anew() -> None:
    bundle = shown(
        "application/json", '{"a\\u001b]0;t\\u0007": [1, 1.5, null, true, 1e999, "\\u202e"]}'
    )
    assert bundle.data["application/json"] == {"a": [1, 1.5, None, True, "inf", "<U+202E>"]}


def test_a_number_that_a_page_would_round_becomes_text() -> None:
    tree = shown("application/json", f"[{2**53}, {'9' * 9_000}]").data["application/json"]
    assert tree == [str(2**53), "9" * 9_000]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100 + "]" * 100, "deeply"),
        ("[" * 100_000 + "]" * 100_000, "deeply"),
        ("[" + "1," * 60_000 + "1]", "parts"),
        ('"' + "x" * 2_000_000 + '"', "at most"),
        ("{'a': 1}", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_tree_that_is_too_much_is_left_out(text: str, reason: str) -> None:
    bundle = shown("application/json", text)
    assert bundle.data == {"text/plain": "<object>"}
    assert reason in bundle.notes[0]


# --- on the user's word -----------------------------------------------------------------------

PLOT = '<div id="p"></div><script>draw("p")</script>'


def test_html_that_acts_stands_in_a_frame_on_the_users_word() -> None:
    bundle = safe_bundle(
        {"text/html": PLOT, "text/plain": "Figure", "application/vnd.plotly.v1+json": ""},
        {},
        {"text/html": {"height": 300, "isolated": True}},
        show="interactive",
        caption="output of <anna>",
    )
    html = bundle.data["text/html"]
    assert html.count("<iframe") == 1
    assert 'sandbox="allow-scripts"' in html
    assert 'height="300"' in html
    assert "&lt;anna&gt;" in html
    assert "<script" not in html
    assert bundle.data["text/plain"] == "Figure"
    assert bundle.notes == ()
    for word in ("allow-same-origin", "allow-popups", "allow-top-navigation", "allow-forms"):
        assert word not in html


def test_without_that_word_it_is_cleaned_and_the_note_says_how() -> None:
    bundle = shown("text/html", PLOT)
    assert bundle.data == {"text/html": "<div></div>", "text/plain": "<object>"}
    assert bundle.notes == (
        "script in text/html left out; --show interactive shows it in a sandboxed frame",
    )


def test_a_table_is_cleaned_even_then() -> None:
    bundle = shown("text/html", "<table><tr><td>1</table>", show="interactive")
    assert bundle.data["text/html"].startswith("<table>")


def test_a_document_cannot_end_its_frame() -> None:
    html = shown(
        "text/html", '"></iframe></body><script>parent.x</script>', show="interactive"
    ).data["text/html"]
    assert html.count("</iframe>") == 1
    assert "<script" not in html


def test_a_plot_without_its_html_is_named_with_the_way_to_see_it() -> None:
    note = shown("application/vnd.plotly.v1+json", "").notes[0]
    assert "as HTML --show interactive shows it" in note


def test_text_alone_shows_text_alone_and_says_nothing_of_it() -> None:
    bundle = safe_bundle(
        {"text/html": "<b>x</b>", "text/latex": "$x$", "text/plain": "x"},
        {"image/png": image("png")},
        {},
        show="text",
    )
    assert bundle == ({"text/plain": "x"}, {}, (), ())
