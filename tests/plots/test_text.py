"""Labels show every character of a name, whatever plotly or a browser would make of it."""

from __future__ import annotations

import html

import pytest

from interp.plots.style import label, wrapped
from interp.showing import number, visible

TOKENS = ["<b>x</b>", "&lt;", "%{z}", "$x$", "<a href='javascript:1'>", "a&b", "שלום", "🦜"]


@pytest.mark.parametrize("token", TOKENS)
def test_label_decodes_to_the_token_and_holds_no_markup(token: str) -> None:
    shown = label(token)
    assert html.unescape(shown) == token
    assert not set("<>{}") & set(shown)


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert visible(" the") == "␣the"
    assert visible("a\x00\n\ud800") == "a␀␊\ufffd"
    assert visible("\u202eevil") == "\\u202eevil"


def test_label_is_cut_before_it_is_escaped() -> None:
    assert html.unescape(label("<" * 30, 10)) == "<" * 9 + "…"


def test_wrapped_keeps_only_its_own_breaks() -> None:
    assert wrapped("one <br> two", 6) == "one<br>&lt;br&gt;<br>two"


def test_number_never_makes_nan_look_like_a_value() -> None:
    assert number(float("nan")) == "undefined"
    assert number(None) == "undefined"
    assert [number(v) for v in (0.0, 0.3, 1234.5, 1e-7)] == ["0.00", "0.300", "1234", "1.00e-07"]
