"""Attention rows without the sink: the same rows with its columns taken out, in numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy

from interp.measures.attention import content_js, read_rows, without_first

LN2 = float(np.log(2))


# Rows without the sink --------------------------------------------------------------------------


class Row(NamedTuple):
    """A pattern `[batch, head, query_pos, prefix + query_pos]` and what counts as its sink."""

    pattern: torch.Tensor
    first: bool
    own_first: bool

    @property
    def length(self) -> int:
        return self.pattern.shape[-2]

    @property
    def sink(self) -> list[int]:
        """The columns of the sink."""
        start = self.pattern.shape[-1] - self.length
        return [0] * (self.first and start > 0) + [start] * self.own_first


@st.composite
def patterns(draw: st.DrawFn, first: bool | None = None, own_first: bool | None = None) -> Row:
    """Causal rows of whole numbers over their sum: zero weights are common, and every row has
    some weight."""
    length, prefix = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), length, prefix + length)
    counts = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3)))
    counts = np.tril(counts, prefix)
    counts[counts.sum(-1) == 0, 0] = 1
    pattern = torch.from_numpy(counts / counts.sum(-1, keepdims=True))
    flags = (draw(st.booleans()) if flag is None else flag for flag in (first, own_first))
    return Row(pattern, *flags)


def renormalised(row: np.ndarray) -> np.ndarray:
    return row / row.sum() if row.sum() > 0 else np.full(row.shape, np.nan)


@given(patterns())
def test_rows_without_the_sink_equal_rows_with_its_columns_taken_out(row: Row) -> None:
    got = read_rows(*row)
    kept = [key for key in range(row.pattern.shape[-1]) if key not in row.sink]
    own = np.array(kept) >= row.pattern.shape[-1] - row.length
    for place in np.ndindex(row.pattern.shape[:-1]):
        rest = renormalised(row.pattern[place].numpy()[kept])
        lone = not len(rest) or np.isnan(rest).any()
        mass = np.nan if lone else rest[~own].sum()
        assert got.prefix_mass_no_sink[place].item() == pytest.approx(mass, abs=1e-12, nan_ok=True)
        left = np.nan if lone else entropy(rest)
        assert got.entropy_no_sink[place].item() == pytest.approx(left, abs=1e-12, nan_ok=True)


@given(patterns())
def test_rows_are_undefined_exactly_where_the_sink_has_everything(row: Row) -> None:
    got = read_rows(*row)
    at_sink = row.pattern[..., row.sink].sum(-1)
    alone = at_sink > 1 - 1e-9
    assert torch.equal(torch.isnan(got.prefix_mass_no_sink), alone)
    assert torch.equal(torch.isnan(got.entropy_no_sink), alone)


@given(patterns())
def test_bounds_of_rows_without_the_sink(row: Row) -> None:
    got = read_rows(*row)
    keys = (row.pattern > 0).sum(-1) - (row.pattern[..., row.sink] > 0).sum(-1)
    defined = keys > 0
    mass, left = got.prefix_mass_no_sink[defined], got.entropy_no_sink[defined]
    assert ((mass >= 0) & (mass <= 1 + 1e-12)).all()
    assert ((left >= -1e-12) & (left <= keys[defined].double().log() + 1e-12)).all()


@given(patterns())
def test_the_sink_changes_no_other_number(row: Row) -> None:
    got, plain = read_rows(*row), read_rows(row.pattern, first=False)
    for name in ("prefix_mass", "entropy", "content_entropy", "content"):
        assert torch.equal(getattr(got, name).nan_to_num(-1), getattr(plain, name).nan_to_num(-1))


@given(patterns())
def test_a_sink_without_weight_changes_nothing(row: Row) -> None:
    pattern = row.pattern.clone()
    pattern[..., row.sink] = 0
    left = pattern.sum(-1)
    got = read_rows(pattern / left[..., None], row.first, row.own_first)
    for name in ("prefix_mass", "entropy"):
        without, plain = getattr(got, f"{name}_no_sink"), getattr(got, name)
        torch.testing.assert_close(without[left > 0], plain[left > 0])


@given(patterns(first=True, own_first=False))
def test_the_prefix_has_less_without_its_first_key(row: Row) -> None:
    got = read_rows(*row)
    known = ~torch.isnan(got.prefix_mass_no_sink)
    assert (got.prefix_mass_no_sink[known] <= got.prefix_mass[known] + 1e-12).all()


@given(patterns(first=False, own_first=True))
def test_the_prefix_has_more_without_the_query_s_first_key(row: Row) -> None:
    got = read_rows(*row)
    known = ~torch.isnan(got.prefix_mass_no_sink)
    assert (got.prefix_mass_no_sink[known] >= got.prefix_mass[known] - 1e-12).all()


@given(patterns(own_first=False))
def test_entropy_is_that_of_sink_or_not_and_then_of_the_rest(row: Row) -> None:
    """The grouping rule of entropy (Shannon 1948, sec. 6)."""
    got = read_rows(*row)
    sink = row.pattern[..., row.sink].sum(-1)
    which = torch.from_numpy(entropy(torch.stack([sink, 1 - sink]).clamp(min=0).numpy()))
    rest = torch.where(sink < 1 - 1e-9, (1 - sink) * got.entropy_no_sink, 0.0)
    torch.testing.assert_close(which + rest, got.entropy)


# Content rows without the query's first token ---------------------------------------------------


def content(row: Row) -> torch.Tensor:
    return read_rows(*row).content


@given(patterns())
def test_content_without_the_first_token_equals_numpy(row: Row) -> None:
    before = content(row)
    got = without_first(before)
    for place in np.ndindex(before.shape[:-1]):
        expected = renormalised(before[place].numpy()[1:])
        np.testing.assert_allclose(got[place][1:], expected, atol=1e-12)
        assert got[place][0].item() == 0 or torch.isnan(got[place]).all()
    assert torch.isnan(got[..., 0, :]).all()  # the first token sees itself alone
    assert torch.equal(torch.isnan(got).any(-1), ~(before[..., 1:].sum(-1) > 0))


@given(patterns())
def test_axioms_of_content_without_the_first_token(row: Row) -> None:
    before = content(row)
    kept = before.clone()
    got = without_first(before)
    assert torch.equal(before.nan_to_num(-1), kept.nan_to_num(-1))  # the operand is left alone
    torch.testing.assert_close(without_first(got), got, equal_nan=True)
    js = content_js(got, without_first(before.flip(0)))
    assert ((js >= 0) & (js <= LN2 + 1e-12))[~torch.isnan(js)].all()
    undefined = torch.isnan(got + got.flip(0)).any(-1)
    assert torch.equal(torch.isnan(js), undefined)
