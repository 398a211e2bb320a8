"""Whatever a worker puts into a bundle, it is shown or left out: nothing is raised."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from gridx.display import Show, safe_bundle
from gridx.display.raster import RASTER_TYPES

TYPES = [
    "text/plain", "text/html", "text/markdown", "text/latex", "image/svg+xml",
    "application/json", "application/javascript", "application/vnd.plotly.v1+json", "",
]  # fmt: skip
PARTS = [
    "<svg>", "</svg>", '<svg xmlns="http://www.w3.org/2000/svg">', "<g id='a'>", "</g>",
    "<use href='#a'/>", "<image href='data:image/png;base64,iVBORw0KGgo='/>", "<!DOCTYPE svg [",
    "<!ENTITY a 'b'>", "]>", "&a;", "<?xml version='1.0' encoding='utf-16'?>", "\x00", "\ufeff",
    "{", "}", "[", "]", ",", ":", '"', "1e999", "-0", "9" * 30, "null", "NaN", "\\ud800",
    "$", "$$", "\\href", "\\def", "*", "_", "`", "```", "|", "|-|-|\n", "\n", "> ", "- ", "# ",
    "![", "](", ")", "<", ">", "<b", "<td colspan='99999999999'>", "<td colspan='٣'>",
    "<img src='data:image/gif;base64,R0lGODlh'>", "<p style='color:red;x:y'>", "\x1b[31m",
    "\U0010ffff", "é", "</", "<!--", "-->", "<a href='http://[::1'>",
]  # fmt: skip
text = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
heads = st.sampled_from(
    [b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ",
     b"RIFF\0\0\0\0WEBPVP8X", b"RIFF\0\0\0\0WEBPVP8L"]
)  # fmt: skip
images = st.builds(lambda head, rest: head + rest, heads, st.binary(max_size=80))
metadata = st.dictionaries(
    st.sampled_from([*TYPES, *RASTER_TYPES, "isolated"]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.dictionaries(st.sampled_from(["width", "height"]), st.integers()),
    ),
    max_size=4,
)


@settings(max_examples=400)
@given(
    st.dictionaries(st.sampled_from(TYPES), text, max_size=4),
    st.dictionaries(st.sampled_from([*RASTER_TYPES, "image/x"]), images, max_size=2),
    metadata,
    st.sampled_from(get_args(Show)),
)
def test_a_bundle_of_anything_is_shown_or_left_out(
    data: dict[str, str], binary: dict[str, bytes], metadata: dict[str, Any], show: Any
) -> None:
    bundle = safe_bundle(data, binary, metadata, show=show, caption="c")
    assert bundle.data.keys() <= {
        "text/plain", "text/html", "text/latex", "application/json", *RASTER_TYPES
    }  # fmt: skip
    assert bundle.metadata.keys() <= RASTER_TYPES.keys()
    for size in bundle.metadata.values():
        assert all(type(value) is int and 0 < value <= 10_000 for value in size.values())
    html = bundle.data.get("text/html", "")
    assert "<script" not in html.lower()
    assert not html.lower().count("<iframe") or show == "interactive"
