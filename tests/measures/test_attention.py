"""Attention measures against scipy, the axioms they obey, and the split by cause."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import entropy

from interp.measures import attention
from interp.measures.attention import (
    content_js,
    read_rows,
    read_scores,
    sim_am,
    sim_am_delta,
    weight_driven,
)

LN2 = float(np.log(2))
MASK = torch.finfo(torch.float32).min
"""What TransformerLens puts in the place of a masked score."""


def causal(scores: torch.Tensor) -> torch.Tensor:
    """Scores `[*, query_pos, prefix + query_pos]` with later keys masked."""
    length, keys = scores.shape[-2:]
    allowed = torch.ones(length, keys).tril(keys - length) > 0
    return scores.masked_fill(~allowed, MASK)


def scores(copies: int, prefix: int | None = None) -> st.SearchStrategy[Any]:
    """Causally masked scores `[copy, batch, head, query_pos, prefix + query_pos]`, float64."""
    sizes = st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(1, 4),
        st.integers(0, 3) if prefix is None else st.just(prefix),
    )  # fmt: skip
    shapes = sizes.map(lambda s: (copies, *s[:3], s[2] + s[3]))
    return shapes.flatmap(
        lambda s: hnp.arrays(np.float64, s, elements=st.integers(-8, 8).map(lambda x: x / 2))
    ).map(lambda array: causal(torch.from_numpy(array)))


def content(copies: int) -> st.SearchStrategy[Any]:
    """Content patterns `[copy, batch, head, query_pos, query_pos]`."""
    return scores(copies, prefix=0).map(lambda s: s.softmax(-1))


# Rows of a pattern ------------------------------------------------------------------------------


@given(scores(1))
def test_rows_equal_scipy_row_by_row(masked: torch.Tensor) -> None:
    pattern = masked[0].softmax(-1)
    rows, length = read_rows(pattern), pattern.shape[-2]
    for place in np.ndindex(pattern.shape[:-1]):
        row = pattern[place].numpy()
        own = row[-length:]
        assert rows.prefix_mass[place].item() == pytest.approx(row[:-length].sum(), abs=1e-14)
        assert rows.entropy[place].item() == pytest.approx(entropy(row), abs=1e-12)
        assert rows.content_entropy[place].item() == pytest.approx(entropy(own), abs=1e-12)
        np.testing.assert_allclose(rows.content[place], own / own.sum(), atol=1e-14)


@given(scores(1))
def test_bounds_of_rows(masked: torch.Tensor) -> None:
    rows = read_rows(masked[0].softmax(-1))
    assert ((rows.prefix_mass >= 0) & (rows.prefix_mass <= 1 + 1e-12)).all()
    allowed = (masked[0] > MASK).sum(-1).double()
    assert (rows.entropy >= -1e-12).all()
    assert (rows.entropy <= allowed.log() + 1e-12).all()
    own = torch.arange(1, masked.shape[-2] + 1).double()
    assert (rows.content_entropy <= own.log() + 1e-12).all()
    torch.testing.assert_close(rows.content.sum(-1), torch.ones_like(rows.entropy))


@given(scores(1, prefix=3), st.floats(-20, 20))
def test_content_does_not_see_the_prefix(masked: torch.Tensor, push: float) -> None:
    """A prefix scales the query's own keys and nothing else (Petrov et al. 2310.19698)."""
    own, prefixed = masked[0][..., 3:], masked[0].clone()
    prefixed[..., :3] += push
    alone, after = read_rows(own.softmax(-1)), read_rows(prefixed.softmax(-1))
    torch.testing.assert_close(after.content, alone.content, rtol=1e-9, atol=1e-12)
    assert (content_js(after.content, alone.content) < 1e-12).all()
    assert (alone.prefix_mass == 0).all()


def test_a_one_token_query_without_a_prefix() -> None:
    rows = read_rows(torch.ones(2, 3, 1, 1))
    assert (rows.content == 1).all()
    for values in (rows.prefix_mass, rows.entropy, rows.content_entropy):
        assert (values == 0).all()
    assert (content_js(rows.content, rows.content) == 0).all()


def test_no_mass_on_the_query_s_own_keys_is_nan_where_it_is_undefined() -> None:
    pattern = torch.tensor([[[[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.25, 0.25]]]])
    rows = read_rows(pattern)
    assert torch.isnan(rows.content[0, 0, 0]).all()
    assert torch.isnan(rows.content_entropy[0, 0, 0])
    assert rows.prefix_mass[0, 0].tolist() == [1.0, 0.5]
    assert rows.entropy[0, 0, 0].item() == pytest.approx(LN2)
    js = content_js(rows.content, read_rows(torch.eye(2)[None, None]).content)
    assert torch.isnan(js[0, 0, 0])
    assert not torch.isnan(js[0, 0, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_of_a_half_precision_pattern_are_those_of_its_values_in_float64(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    masked = causal(3 * torch.randn(2, 2, 6, 400 + 6, generator=generator))
    pattern = masked.softmax(-1).to(dtype)
    got, expected = read_rows(pattern), read_rows(pattern.double())
    for field in got._fields:
        value = getattr(got, field)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, getattr(expected, field), rtol=1e-6, atol=1e-6)


# Divergence of content patterns -----------------------------------------------------------------


@given(content(2))
def test_content_js_equals_scipy(p: torch.Tensor) -> None:
    with np.errstate(invalid="ignore"):  # scipy's root of a rounding error below 0
        expected = np.nan_to_num(jensenshannon(*p.numpy(), axis=-1) ** 2)
    np.testing.assert_allclose(content_js(*p).numpy(), expected, atol=1e-12)


@given(content(3))
def test_axioms_of_content_js(p: torch.Tensor) -> None:
    a, b, c = p
    js = content_js(a, b)
    assert (content_js(a, a.clone()) == 0).all()
    assert torch.equal(js, content_js(b, a))
    assert ((js >= 0) & (js <= LN2 + 1e-15)).all()
    far, near = content_js(a, c).sqrt(), js.sqrt() + content_js(b, c).sqrt()
    assert (far <= near + 1e-7).all()
    assert (js[..., 0] == 0).all()  # the first row has one key: nothing can differ


def test_disjoint_rows_are_ln_2_apart() -> None:
    p, q = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    js = content_js(p[None, None].double(), q[None, None].double())
    assert js[0, 0].tolist() == pytest.approx([0.0, LN2])


# Scores -----------------------------------------------------------------------------------------


@given(scores(1))
def test_scores_of_the_query_s_own_keys_and_minus_infinity_where_masked(
    masked: torch.Tensor,
) -> None:
    length = masked.shape[-2]
    got = read_scores(masked[0])
    later = torch.ones(length, length).triu(1) > 0
    assert torch.isneginf(got[..., later]).all()
    own = masked[0][..., -length:]
    assert torch.equal(got[..., ~later], own[..., ~later])


@given(scores(3))
def test_similarity_of_scores_equals_scipy(masked: torch.Tensor) -> None:
    a, b, base = (read_scores(m) for m in masked)
    raw, delta = sim_am(a, b), sim_am_delta(a, b, base)
    for place in np.ndindex(raw.shape):
        seen = place[-1] + 1
        x, y, z = (s[place][:seen].numpy() for s in (a, b, base))
        for value, u, v in ((raw[place], x, y), (delta[place], x - z, y - z)):
            if u.any() and v.any():
                assert value.item() == pytest.approx(1 - cosine(u, v), abs=1e-12)
            else:
                assert torch.isnan(value)


@given(scores(3))
def test_axioms_of_sim_am(masked: torch.Tensor) -> None:
    a, b, base = (read_scores(m) for m in masked)
    for measure in (sim_am, lambda x, y: sim_am_delta(x, y, base)):
        value = measure(a, b)
        known = value[~torch.isnan(value)]
        assert (known.abs() <= 1).all()
        torch.testing.assert_close(value, measure(b, a), rtol=0, atol=0, equal_nan=True)
        itself = measure(a, a)
        same = itself[~torch.isnan(itself)]
        torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=1e-15)


@given(scores(3), st.sampled_from([0.5, 2.0, 4.0]))
def test_the_delta_form_does_not_see_what_conditions_share(
    masked: torch.Tensor, factor: float
) -> None:
    a, b, base = (read_scores(m) for m in masked)
    common = torch.arange(a.shape[-1]).double()
    moved = sim_am_delta(a + common, b + common, base + common)
    plain = sim_am_delta(a, b, base)
    torch.testing.assert_close(moved, plain, equal_nan=True)
    stretched = (base + factor * (a - base)).where(base > -torch.inf, -torch.inf)
    longer = sim_am_delta(stretched, b, base)
    torch.testing.assert_close(longer, plain, equal_nan=True)


def test_a_condition_that_leaves_the_scores_has_no_delta() -> None:
    a = read_scores(causal(torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))))
    assert torch.isnan(sim_am_delta(a, a + 1, a)).all()
    assert torch.isnan(sim_am(torch.zeros_like(a), a)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_summed_in_float64(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, base = (40 * torch.randn(1, 2, 5, 5, generator=generator).to(dtype) for _ in range(3))
    assert sim_am(a, b).dtype == torch.float64
    torch.testing.assert_close(sim_am(a, b), sim_am(a.double(), b.double()), rtol=0, atol=0)
    expected = sim_am_delta(a.double(), b.double(), base.double())
    torch.testing.assert_close(sim_am_delta(a, b, base), expected, rtol=0, atol=0)


def test_masked_half_precision_scores_are_recognised() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        masked = torch.tensor([[[[1.0, MASK], [1.0, 2.0]]]]).to(dtype)  # float16: -inf
        assert torch.isneginf(read_scores(masked)[0, 0, 0, 1])
        assert read_scores(masked)[0, 0, 1].tolist() == [1.0, 2.0]


def test_a_score_that_is_nan_does_not_become_a_number() -> None:
    a = torch.tensor([[[[1.0, MASK], [float("nan"), 2.0]]]])
    b = torch.tensor([[[[1.0, MASK], [3.0, 2.0]]]])
    value = sim_am(read_scores(a), read_scores(b))
    assert value[0, 0, 0].item() == pytest.approx(1)
    assert torch.isnan(value[0, 0, 1])


# The split of a change by its cause -------------------------------------------------------------


def part_of_weights(
    after: torch.Tensor, base: torch.Tensor, base_inputs: torch.Tensor, base_weights: torch.Tensor
) -> torch.Tensor:
    """From content patterns."""
    return weight_driven(*(content_js(p, base) for p in (after, base_inputs, base_weights)))


@given(content(2))
def test_weights_without_effect_have_no_part(p: torch.Tensor) -> None:
    """Weights that do nothing at base's inputs, and base's weights give what the condition has."""
    after, base = p
    assert (part_of_weights(after, base, base_inputs=base, base_weights=after) == 0).all()


@given(content(2))
def test_inputs_without_effect_leave_all_to_the_weights(p: torch.Tensor) -> None:
    after, base = p
    part = part_of_weights(after, base, base_inputs=after, base_weights=base)
    assert torch.equal(part, content_js(after, base))


@given(content(4))
def test_both_causes_share_the_whole_change(p: torch.Tensor) -> None:
    """Efficiency and symmetry of the Shapley value: the inputs' part is the roles exchanged."""
    after, base, base_inputs, base_weights = p
    weights = part_of_weights(after, base, base_inputs, base_weights)
    inputs = part_of_weights(after, base, base_weights, base_inputs)
    torch.testing.assert_close(weights + inputs, content_js(after, base), rtol=0, atol=1e-14)


@given(content(4))
def test_the_weights_part_equals_its_restatement(p: torch.Tensor) -> None:
    with np.errstate(invalid="ignore"):
        v = [np.nan_to_num(jensenshannon(x, p[1], axis=-1) ** 2) for x in p.numpy()]
    weights_first, inputs_first = v[2], v[0] - v[3]
    np.testing.assert_allclose(
        part_of_weights(*p).numpy(), (weights_first + inputs_first) / 2, atol=1e-12
    )


def test_the_weights_part_is_undefined_where_a_pattern_is() -> None:
    p = torch.eye(2).double()[None, None]
    undefined = torch.full_like(p, torch.nan)
    for place in range(4):
        patterns = [p, p, p, p]
        patterns[place] = undefined
        assert torch.isnan(part_of_weights(*patterns)).all()


def test_blocks_of_keys_add_up_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of long prefixes are summed block by block: the numbers are those of all keys."""
    torch.manual_seed(0)
    pattern = torch.randn(2, 3, 5, 400).softmax(-1)
    whole = read_rows(pattern)
    monkeypatch.setattr(attention, "_BLOCK", 7 * 2 * 3 * 5)
    for name, blocks in read_rows(pattern)._asdict().items():
        torch.testing.assert_close(blocks, getattr(whole, name), rtol=1e-13, atol=1e-13)
    p = pattern.double()
    torch.testing.assert_close(whole.prefix_mass, p[..., :-5].sum(-1))
    torch.testing.assert_close(whole.entropy, torch.special.entr(p).sum(-1))
    rest = p[..., 1:] / p[..., 1:].sum(-1, keepdim=True)
    torch.testing.assert_close(whole.entropy_no_sink, torch.special.entr(rest).sum(-1))
