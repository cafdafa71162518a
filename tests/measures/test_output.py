"""Output divergences against scipy, and the axioms they obey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from interp.measures import output
from interp.measures.output import js_divergence, kl_divergence, top1_agreement

LN2 = float(np.log(2))
DIVERGENCES = [kl_divergence, js_divergence]


def logits(conditions: int, size: float = 30) -> st.SearchStrategy[Any]:
    """Float64 logits `[condition, token, d_vocab]`."""
    shapes = st.tuples(st.just(conditions), st.integers(1, 4), st.integers(2, 7))
    floats = st.floats(-size, size)
    return shapes.flatmap(lambda s: hnp.arrays(np.float64, s, elements=floats)).map(
        torch.from_numpy
    )


# References -------------------------------------------------------------------------------------


@given(logits(2))
def test_kl_equals_scipy(x: torch.Tensor) -> None:
    p, q = softmax(x.numpy(), axis=-1)
    np.testing.assert_allclose(kl_divergence(*x).numpy(), rel_entr(p, q).sum(-1), atol=1e-11)


@given(logits(2))
def test_js_equals_scipy(x: torch.Tensor) -> None:
    p, q = softmax(x.numpy(), axis=-1)
    with np.errstate(invalid="ignore"):  # scipy's root of a rounding error below 0
        expected = np.nan_to_num(jensenshannon(p, q, axis=-1) ** 2)
    np.testing.assert_allclose(js_divergence(*x).numpy(), expected, atol=1e-12)


def test_values_by_hand() -> None:
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    far = torch.tensor([[0.0, -800.0]]), torch.tensor([[-800.0, 0.0]])
    assert js_divergence(*far).item() == pytest.approx(LN2)
    assert kl_divergence(*far).item() == pytest.approx(800)


@given(logits(2, size=3))
def test_top1_agreement_equals_numpy(x: torch.Tensor) -> None:
    p, q = x.numpy()
    got = top1_agreement(*x)
    assert got.dtype == torch.bool
    assert got.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


# Axioms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(x=logits(2))
def test_identity_is_exactly_0(divergence: Callable[..., torch.Tensor], x: torch.Tensor) -> None:
    assert (divergence(x[0], x[0].clone()) == 0).all()
    assert top1_agreement(x[0], x[0]).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(x=logits(2))
def test_equal_rows_are_exactly_0_beside_rows_that_differ(
    divergence: Callable[..., torch.Tensor], x: torch.Tensor
) -> None:
    a, b = x
    other = torch.cat([a, b])
    got = divergence(torch.cat([a, a]), other)
    assert (got[: len(a)] == 0).all()


@given(logits(2))
def test_js_is_symmetric_and_bounded(x: torch.Tensor) -> None:
    js = js_divergence(*x)
    torch.testing.assert_close(js, js_divergence(x[1], x[0]), rtol=0, atol=1e-15)
    assert (js >= 0).all()
    assert (js <= LN2 + 1e-15).all()
    assert (kl_divergence(*x) >= 0).all()


@given(logits(2))
def test_js_is_at_most_half_of_either_sum(x: torch.Tensor) -> None:
    """JS <= (KL(p,q) + KL(q,p)) / 4 (Lin 1991, theorem 3)."""
    jeffreys = kl_divergence(*x) + kl_divergence(x[1], x[0])
    assert (js_divergence(*x) <= jeffreys / 4 + 1e-12).all()


@given(logits(3))
def test_the_root_of_js_obeys_the_triangle_inequality(x: torch.Tensor) -> None:
    a, b, c = x
    near, far = js_divergence(a, b).sqrt() + js_divergence(b, c).sqrt(), js_divergence(a, c).sqrt()
    assert (far <= near + 1e-7).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(x=logits(2), shift=st.floats(-100, 100))
def test_adding_a_constant_to_logits_changes_nothing(
    divergence: Callable[..., torch.Tensor], x: torch.Tensor, shift: float
) -> None:
    moved = divergence(x[0] + shift, x[1] - 2 * shift)
    torch.testing.assert_close(moved, divergence(*x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(x=logits(2), data=st.data())
def test_the_order_of_the_vocabulary_does_not_matter(
    divergence: Callable[..., torch.Tensor], x: torch.Tensor, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(x.shape[-1])))
    torch.testing.assert_close(divergence(*x[..., order]), divergence(*x), rtol=1e-9, atol=1e-12)


# Numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_near_equal_distributions_keep_their_digits(
    divergence: Callable[..., torch.Tensor],
) -> None:
    """KL ~ half the variance of the difference of logits, JS a quarter of that."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    change = 1e-6 * torch.randn(3, 50, generator=generator, dtype=torch.float64)
    weights = p.softmax(-1)
    centred = change - (weights * change).sum(-1, keepdim=True)
    expected = 0.5 * (weights * centred**2).sum(-1) / (4 if divergence is js_divergence else 1)
    torch.testing.assert_close(divergence(p, p + change), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_sums_are_float64_whatever_the_model_s_dtype(
    divergence: Callable[..., torch.Tensor], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (4 * torch.randn(5, 300, generator=generator)).to(dtype), torch.zeros(5, 300).to(dtype)
    got = divergence(p, q)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, divergence(p.double(), q.double()), rtol=0, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_logits_are_finite_and_nan_stays_nan(
    divergence: Callable[..., torch.Tensor],
) -> None:
    p = torch.tensor([[1e4, -1e4, 0.0], [0.0, float("nan"), 1.0]])
    q = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 1.0]])
    got = divergence(p, q)
    assert torch.isfinite(got[0])
    assert torch.isnan(got[1])
    assert torch.isnan(divergence(p, p.clone())[1])


@pytest.mark.parametrize("block", [1, 7, 20, 1 << 22])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_blocks_of_a_large_vocabulary_give_what_one_block_gives(
    divergence: Callable[..., torch.Tensor], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    p, q = (torch.randn(2, 3, 5, 7, generator=generator) for _ in range(2))
    whole = divergence(p, q)
    monkeypatch.setattr(output, "_BLOCK", block)
    assert whole.shape == (2, 3, 5)
    torch.testing.assert_close(divergence(p, q), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_any_shape_of_tokens(shape: tuple[int, ...]) -> None:
    x = torch.zeros(*shape, 5)
    assert kl_divergence(x, x + torch.arange(5)).shape == shape


def test_different_vocabularies_are_refused() -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        js_divergence(torch.zeros(2, 5), torch.zeros(2, 6))
