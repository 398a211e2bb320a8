"""A document in a frame has its scripts and reaches nothing."""

from __future__ import annotations

import html
import re

from gridx.display.frame import POLICY, sandboxed_frame


def frames_of(document: str) -> tuple[str, str]:
    """Return the sources of the outer and of the inner frame."""
    markup = sandboxed_frame(document, "of <anna>")
    outer = html.unescape(markup.partition('srcdoc="')[2].removesuffix('"></iframe>'))
    found = re.search(r'srcdoc="([^"]*)"></iframe></body>', outer)
    assert found is not None
    return outer, html.unescape(found[1])


def test_both_frames_are_sandboxed_and_their_policy_comes_first() -> None:
    markup = sandboxed_frame("x", "of <anna>")
    outer, inner = frames_of("x")
    for source in (markup, outer):
        assert re.findall(r'sandbox="([^"]*)"', source) == ["allow-scripts"]
        assert 'referrerpolicy="no-referrer"' in source
    for source in (outer, inner):
        assert source.index(POLICY) < 200
    assert "of &lt;anna&gt;" in markup


def test_the_policy_allows_no_load_no_frame_and_no_form() -> None:
    for word in ("default-src 'none'", "connect-src 'none'", "frame-src 'none'",
                 "form-action 'none'", "base-uri 'none'"):  # fmt: skip
        assert word in POLICY
    assert "http" not in POLICY


def test_the_document_stands_in_the_inner_frame_as_it_came() -> None:
    document = '<b title="&quot;>">\'&amp; ü</b>SRCDOC</iframe></body><script>1</script>'
    outer, inner = frames_of(document)
    assert inner.endswith(document)
    assert "<script" not in outer


def test_the_address_of_the_page_is_not_told() -> None:
    assert '<base href="http://frame.invalid/">' in frames_of("x")[0]


def test_a_height_stays_in_bounds() -> None:
    for asked, given in ((None, 480), (1, 40), (300, 300), (10**9, 2_000)):
        assert f'height="{given}"' in sandboxed_frame("x", "", asked)
