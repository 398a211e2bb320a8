"""HTML of a worker can be looked at and does nothing."""

from __future__ import annotations

import base64
import io
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gridx.display.hypertext import clean_html, clean_style, is_active
from gridx.display.tangle import tangle_refusal


def picture(kind: str = "png", size: tuple[int, int] = (2, 2)) -> str:
    target = io.BytesIO()
    Image.new("RGB", size).save(target, kind)
    return f"data:image/{kind};base64,{base64.b64encode(target.getvalue()).decode()}"


ATTACKS = {
    "script": "<script>pwn()</script>",
    "handler": "<img src=x onerror=pwn()>",
    "handler in a table": "<table><tr onclick=pwn()><td onmouseover='pwn()'>1</table>",
    "javascript link": '<a href="javascript:pwn()">x</a>',
    "javascript link, spelt oddly": '<a href=" j&#97;va&#x0a;script:pwn()">x</a>',
    "data link": '<a href="data:text/html,<script>pwn()</script>">x</a>',
    "style sheet": "<style>body{display:none}</style>",
    "imported style": "<link rel=stylesheet href=https://e.example/x.css>",
    "covering": '<div style="position:fixed;top:0;left:0;width:100%;z-index:9999">x</div>',
    "style that loads": '<b style="background:url(https://e.example/x)">x</b>',
    "relative picture": '<img src="/api/contents">',
    "remote picture": '<img src="https://e.example/x.png">',
    "picture set": '<img srcset="https://e.example/x.png 1x">',
    "svg picture in html": '<img src="data:image/svg+xml;base64,PHN2Zz4=">',
    "command linker": '<button data-commandlinker-command="x" data-commandlinker-args="{}">x</button>',
    "command linker on a link": '<a data-commandlinker-command="x" href="#">x</a>',
    "class of the page": '<div class="jp-Dialog" id="main">x</div>',
    "frame": '<iframe srcdoc="<script>pwn()</script>"></iframe>',
    "object": '<object data="/lab"></object><embed src="/lab">',
    "form": '<form action="/api/x" method=post><input name=a><button>go</button></form>',
    "base": '<base href="https://e.example/">',
    "refresh": '<meta http-equiv=refresh content="0;url=https://e.example">',
    "svg inline": "<svg onload=pwn()><script>pwn()</script></svg>",
    "math and style": "<math><mtext><table><mglyph><style><img src=x onerror=pwn()>",
    "template": "<template><script>pwn()</script></template>",
    "noscript": '<noscript><p title="</noscript><img src=x onerror=pwn()>">',
    "comment": "<!--><img src=x onerror=pwn()>-->",
    "formula": r"$\href{javascript:pwn()}{x}$",
    "map": '<map name=m><area href="javascript:pwn()"></map>',
    "turned text": '<bdo dir=rtl>abc</bdo>',
    "ping": '<a href="https://e.example" ping="https://e.example/p">x</a>',
    "video": '<video src="/x" onerror=pwn() poster=/y></video>',
    "null in the name": "<img src=x on\x00error=pwn()><scr\x00ipt></scr\x00ipt>",
}  # fmt: skip
LEFT_BEHIND = re.compile(
    r"<(?!/?(?:a|b|br|code|div|em|h\d|hr|i|img|li|mark|ol|p|pre|small|span|strong|sub|sup"
    r"|table|tbody|td|th|thead|tr|u|ul)\b)"
    r"|<[^>]*\s(?!href=\"https?:|href=\"mailto:|src=\"data:image/(?:png|jpeg|gif|webp);|style=\""
    r"|title=\"|alt=\"|width=\"\d|height=\"\d|border=\"\d|colspan=\"\d|rowspan=\"\d|rel=\"noopener"
    r"|target=\"_blank|align=\")[a-z-]+=\"",
)


@pytest.mark.parametrize("html", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_leaves_nothing_that_acts(html: str) -> None:
    cleaned = clean_html(html).html
    for word in ("pwn", "url(", "javascript", "commandlinker", "class=", "id=", "src=", "position"):
        assert word not in cleaned.replace("\\&#8288;href{javascript:pwn()}", "")
    assert not LEFT_BEHIND.search(cleaned)


@pytest.mark.parametrize(
    "html",
    [
        ATTACKS[name]
        for name in (
            "script",
            "handler",
            "javascript link",
            "frame",
            "object",
            "form",
            "svg inline",
        )
    ],
)
def test_what_acts_is_noticed(html: str) -> None:
    assert is_active(html)


def test_a_pandas_table_stays_a_table() -> None:
    frame = pd.DataFrame({"a<b": [1, 2], "c": ["<script>pwn()</script>", None]})
    html = clean_html(frame._repr_html_()).html
    assert html.count("<tr") == 3
    assert '<table border="1">' in html
    assert 'style="text-align: right"' in html
    assert "a&lt;b" in html
    assert "&lt;script&gt;" in html
    assert not is_active(frame[["a<b"]]._repr_html_())


def test_text_links_and_pictures_that_are_in_it_stay() -> None:
    html = clean_html(
        f'<p lang=de title=t>ä <b>x</b> <a href="https://e.example/a?b=1">l</a>'
        f'<img alt=p width=20 src="{picture()}"><img src="{picture("jpeg")}"></p>'
    ).html
    assert html.count("<img") == html.count('src="data:image/') == 2
    assert 'href="https://e.example/a?b=1"' in html
    assert 'target="_blank"' in html
    assert 'rel="noopener noreferrer"' in html


def test_a_picture_inside_is_looked_at() -> None:
    broken = f"data:image/png;base64,{base64.b64encode(b'x').decode()}"
    cleaned = clean_html(f'<img src="{broken}"><img src="{picture("png", (20_001, 1))}">')
    assert cleaned.html == "[picture][picture]"
    assert cleaned.dropped_pictures == 2


def test_a_picture_that_is_left_out_leaves_its_name() -> None:
    html = clean_html('a <img src="/x" alt="<b onclick=1>"> <img src=x onerror=pwn() alt=> b').html
    assert html == "a [&lt;b onclick=1&gt;] [picture] b"


@pytest.mark.parametrize(
    ("style", "kept"),
    [
        ("color: red; background-color:#ff0000", "color: red; background-color: #ff0000"),
        ("COLOR: RGB(1, 2, 3) !important", "color: rgb(1, 2, 3)"),
        ("padding: 0.45em 0.6em; margin: 0 0.25em; border-radius: 0.35em",
         "padding: 0.45em 0.6em; margin: 0 0.25em; border-radius: 0.35em"),
        ("background: url(x); color: expression(1)", ""),
        ("background-image: url(https://e.example)", ""),
        ("position: fixed; z-index: 9; opacity: 0; transform: scale(99)", ""),
        ("margin: -999px; margin-left: -1px", ""),
        ("font-size: 900px; width: 99999px", ""),
        ("color: var(--jp-x); --x: 1", ""),
        ("color: re/**/d; color: \\72 ed", ""),
        ("display: flex; display: none", "display: none"),
        ("color: red\"; onclick=x", ""),
    ],
)  # fmt: skip
def test_of_a_style_only_checked_values_stay(style: str, kept: str) -> None:
    assert clean_style(style) == kept


SIZES = {
    "nested": "<div>" * 400_000,
    "nested in tables": "<table>" * 280_000,
    "nested where closings are ignored": "<div><table></div></table>" * 70_000,
    "nested where a comment hides the closing": "<div><!--</div>-->" * 100_000,
    "nested where an attribute hides the closing": '<div a="</div>">' * 100_000,
    "nested where raw text hides the closing": "<div><xmp></div></xmp>" * 80_000,
    "nested in a drawing": "<svg>" + "<td>" * 400_000,
    "multiplied": "<p>" + "".join(f"<b title={n}>" for n in range(50_000)) + "</p><p>x" * 50_000,
    "formatting": "<p><b><i><u>" * 100_000,
    "attributes": "<b " + " ".join(f"a{n}=1" for n in range(100_000)) + ">",
    "unclosed tags": "<img " * 300_000,
    "too large": "x" * 3_000_000,
}


@pytest.mark.parametrize("html", SIZES.values(), ids=SIZES)
def test_html_that_would_keep_a_parser_busy_is_not_parsed(html: str) -> None:
    cleaned = clean_html(html)
    assert cleaned.refusal or len(cleaned.html) < 1000


def test_large_html_whose_elements_close_in_order_is_parsed() -> None:
    row = "<tr>" + "<td>1</td>" * 10 + "</tr>"
    assert clean_html("<table>" + row * 5_000 + "</table>").html.count("<tr>") == 5_000
    assert clean_html("<ul>" + "<li>x" * 20_000 + "</ul>").html.count("<li>") == 20_000
    assert not tangle_refusal("<table>" + "<tr><td>1<td>2" * 10_000 + "</table>")


TAGS = ["<div>", "</div>", "<table>", "</table>", "<td>", "<b>", "</b>", "<p>", "<a href=x>", "<!--",
        "-->", "<style>", "</style>", "<svg>", "<math>", "<title>", "</title>", "x", "<img src=x ",
        "onerror=pwn()", ">", "'", '"', "`", "<script>", "</script>", "<template>", "</template>",
        "<noscript>", "<select>", "<mglyph>", "<![CDATA[", "]]>", "<desc>", "<form>", "</form>",
        "&lt;", "javascript:", "=", "/", "<", "\x00", "<textarea>", "</textarea>"]  # fmt: skip


@given(st.lists(st.sampled_from(TAGS), max_size=40))
def test_nothing_acts_in_whatever_is_put_together(parts: list[str]) -> None:
    assert not LEFT_BEHIND.search(re.sub(r">[^<]*", ">", clean_html("".join(parts)).html))
