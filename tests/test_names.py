"""Sites and heads: parsed and printed in one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import ConfigError
from interp.names import HOOKS, Head, Site

NUMBERS = st.integers(0, 200)


@given(NUMBERS, NUMBERS)
def test_a_head_is_read_back_as_printed(layer: int, head: int) -> None:
    assert Head.parse(str(Head(layer, head))) == Head(layer, head)


@pytest.mark.parametrize("text", ["l5h3", " L5H3 ", "L05H3"])
def test_lenient_spellings_of_a_head(text: str) -> None:
    assert Head.parse(text) == Head(5, 3)


@pytest.mark.parametrize("text", ["", "5.3", "L5", "H3", "L-1H0", "L5H3x", "LxH3", "L5H3 L1H1"])
def test_what_is_not_a_head_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="L5H3") as caught:
        Head.parse(text)
    assert repr(text) in str(caught.value)


@given(st.sampled_from(sorted(HOOKS)), NUMBERS)
def test_a_site_is_printed_with_its_layer(name: str, layer: int) -> None:
    assert str(Site(name, layer)) == f"L{layer}.{name}"


def test_every_site_has_hooks_of_its_own() -> None:
    hooks = [hook for found in HOOKS.values() for hook in found]
    assert len(set(hooks)) == len(hooks) >= len(HOOKS)


def test_an_unknown_site_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"resid_posst.*resid_post"):
        Site("resid_posst", 0)


def test_names_sort_by_layer_within_a_kind() -> None:
    assert sorted([Head(1, 0), Head(0, 9)]) == [Head(0, 9), Head(1, 0)]
    assert sorted([Site("z", 2), Site("z", 1)])[0] == Site("z", 1)
