"""Distances of states against numpy on the states themselves, and the axioms they obey."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cosine as cosine_distance

from interp.measures.state import cosine, delta_alignment, delta_norm_ratio, gram, relative_l2

BASE, A, B = 0, 1, 2


def states(conditions: int = 3) -> st.SearchStrategy[Any]:
    """Float64 states `[cond, token, d_model]`, in which zero and equal states occur."""
    shapes = st.tuples(st.just(conditions), st.integers(1, 3), st.integers(1, 6))
    floats = st.one_of(
        st.integers(-3, 3).map(float), st.floats(-100, 100).map(lambda x: round(x, 3))
    )
    return shapes.flatmap(lambda s: hnp.arrays(np.float64, s, elements=floats)).map(
        torch.from_numpy
    )


def norm(x: torch.Tensor) -> np.ndarray:
    return np.linalg.norm(x.numpy(), axis=-1)


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


# References -------------------------------------------------------------------------------------


@given(states())
def test_the_gram_holds_every_inner_product(x: torch.Tensor) -> None:
    expected = np.einsum("atd,btd->tab", x.numpy(), x.numpy())
    g = gram(x)
    assert g.dtype == torch.float64
    np.testing.assert_allclose(g.numpy(), expected, rtol=1e-12, atol=1e-9)
    assert torch.equal(g, g.mT)


@given(states())
def test_relative_l2_equals_numpy(x: torch.Tensor) -> None:
    expected = divided(norm(x[A] - x[B]), 0.5 * (norm(x[A]) + norm(x[B])))
    np.testing.assert_allclose(relative_l2(gram(x), A, B).numpy(), expected, atol=1e-7)


@given(states())
def test_cosine_equals_scipy(x: torch.Tensor) -> None:
    for token, value in enumerate(cosine(gram(x), A, B).tolist()):
        a, b = x[A, token].numpy(), x[B, token].numpy()
        if not (a.any() and b.any()):
            assert np.isnan(value)
        else:
            assert value == pytest.approx(1 - cosine_distance(a, b), abs=1e-9)


@given(states())
def test_deltas_equal_numpy(x: torch.Tensor) -> None:
    g, a, b = gram(x), x[A] - x[BASE], x[B] - x[BASE]
    aligned = divided((a * b).sum(-1).numpy(), norm(a) * norm(b))
    np.testing.assert_allclose(delta_alignment(g, A, B, BASE).numpy(), aligned, atol=1e-4)
    longer = divided(norm(a), norm(b))
    np.testing.assert_allclose(delta_norm_ratio(g, A, B, BASE).numpy(), longer, rtol=1e-3, atol=0)


def test_values_by_hand() -> None:
    x = torch.tensor([[[1.0, 0.0]], [[4.0, 4.0]], [[1.0, 10.0]]])
    g = gram(x)
    assert relative_l2(g, BASE, A).item() == pytest.approx(5 / (0.5 * (1 + 32**0.5)))
    assert cosine(g, BASE, A).item() == pytest.approx(0.5**0.5)
    assert delta_alignment(g, A, B, BASE).item() == pytest.approx(0.8)
    assert delta_norm_ratio(g, A, B, BASE).item() == pytest.approx(0.5)


# Axioms -----------------------------------------------------------------------------------------


@given(states())
def test_equal_states_are_exactly_0_apart(x: torch.Tensor) -> None:
    g = gram(torch.stack([x[0], x[1], x[1].clone()]))
    distance = relative_l2(g, A, B)
    assert (distance[norm(x[1]) > 0] == 0).all()
    assert torch.isnan(distance[norm(x[1]) == 0]).all()
    same = cosine(g, A, B)[norm(x[1]) > 0]
    torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=1e-15)


def test_equal_float32_states_of_real_width_are_exactly_0_apart() -> None:
    x = torch.randn(1, 64, 4096, generator=torch.Generator().manual_seed(0)) * 50
    g = gram(x.expand(3, -1, -1).clone())
    assert (relative_l2(g, A, B) == 0).all()
    assert torch.isnan(delta_alignment(g, A, B, BASE)).all()
    assert torch.isnan(delta_norm_ratio(g, A, B, BASE)).all()


@given(states())
def test_symmetry(x: torch.Tensor) -> None:
    g = gram(x)
    for measure in (relative_l2, cosine):
        torch.testing.assert_close(
            measure(g, A, B), measure(g, B, A), rtol=0, atol=0, equal_nan=True
        )
    torch.testing.assert_close(
        delta_alignment(g, A, B, BASE), delta_alignment(g, B, A, BASE), rtol=1e-9, atol=1e-9,
        equal_nan=True,
    )  # fmt: skip
    product = delta_norm_ratio(g, A, B, BASE) * delta_norm_ratio(g, B, A, BASE)
    known = product[~torch.isnan(product) & (product > 0)]
    torch.testing.assert_close(known, torch.ones_like(known))


@given(states())
def test_bounds(x: torch.Tensor) -> None:
    g = gram(x)
    for values, low, high in (
        (relative_l2(g, A, B), 0, 2),
        (cosine(g, A, B), -1, 1),
        (delta_alignment(g, A, B, BASE), -1, 1),
        (delta_norm_ratio(g, A, B, BASE), 0, np.inf),
    ):
        known = values[~torch.isnan(values)]
        assert ((known >= low) & (known <= high + 1e-12)).all()


@given(states(), st.integers(0, 99))
def test_rotations_change_nothing(x: torch.Tensor, seed: int) -> None:
    width = x.shape[-1]
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise.double()).Q
    before, after = gram(x), gram(x @ rotation)
    for measure in (relative_l2, cosine):
        torch.testing.assert_close(
            measure(after, A, B), measure(before, A, B), rtol=0, atol=1e-6, equal_nan=True
        )


@given(states(), st.floats(0.01, 100))
def test_scaling_all_states_changes_nothing(x: torch.Tensor, factor: float) -> None:
    before, after = gram(x), gram(x * factor)
    for measure in (relative_l2, cosine):
        torch.testing.assert_close(
            measure(after, A, B), measure(before, A, B), rtol=0, atol=1e-6, equal_nan=True
        )


@given(states(), st.integers(-4, 4))
def test_deltas_do_not_see_what_all_conditions_share(x: torch.Tensor, offset: int) -> None:
    before, after = gram(x), gram(x + offset)
    torch.testing.assert_close(
        delta_alignment(after, A, B, BASE), delta_alignment(before, A, B, BASE),
        rtol=0, atol=1e-3, equal_nan=True,
    )  # fmt: skip


def test_opposite_and_parallel_deltas() -> None:
    base = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    push = torch.ones_like(base)
    g = gram(torch.cat([base, base + push, base - 2 * push]))
    torch.testing.assert_close(delta_alignment(g, A, B, BASE), -torch.ones(5).double())
    torch.testing.assert_close(delta_norm_ratio(g, A, B, BASE), 0.5 * torch.ones(5).double())


# Undefined values and numbers -------------------------------------------------------------------


def test_undefined_is_nan_and_never_a_number() -> None:
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    g = gram(torch.stack([zero, zero, one]))
    assert torch.isnan(relative_l2(g, 0, 1)).all()
    assert relative_l2(g, 1, 2).item() == 2
    assert torch.isnan(cosine(g, 1, 2)).all()
    assert torch.isnan(delta_alignment(g, 1, 2, base=0)).all()
    assert torch.isnan(delta_norm_ratio(g, 2, 1, base=0)).all()
    assert delta_norm_ratio(g, 1, 2, base=0).item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite_give_nan(bad: float) -> None:
    x = torch.ones(3, 2, 4)
    x[B] *= 2
    x[A, 0, 1] = bad
    g = gram(x)
    for values in (relative_l2(g, A, B), cosine(g, A, B), delta_alignment(g, A, B, BASE)):
        assert torch.isnan(values[0])
    assert torch.isfinite(relative_l2(g, A, B)[1])


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-5])
def test_near_equal_states_keep_their_distance(step: float) -> None:
    """Down to 1e-5 apart a Gram keeps 1e-4 of the distance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 512, generator=generator, dtype=torch.float64)
    y = x + step * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    expected = (x - y).norm(dim=-1) / (0.5 * (x.norm(dim=-1) + y.norm(dim=-1)))
    torch.testing.assert_close(
        relative_l2(gram(torch.cat([x, y])), 0, 1), expected[0], rtol=1e-4, atol=0
    )


def test_states_one_rounding_apart_are_off_by_at_most_1e_7() -> None:
    """Below, the distance is lost in the Gram's rounding: it is near 0, and near 0 is shown."""
    x = torch.randn(1, 16, 512, generator=torch.Generator().manual_seed(0))
    y = torch.nextafter(x, torch.full_like(x, 1e9))
    assert (relative_l2(gram(torch.cat([x, y])), 0, 1) < 3e-7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_float64_whatever_the_model_s_dtype(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (300 * torch.randn(3, 4, 1024, generator=generator)).to(dtype)  # squares overflow float16
    g = gram(x)
    assert g.dtype == torch.float64
    expected = np.einsum("atd,btd->tab", *2 * [x.double().numpy()])
    np.testing.assert_allclose(g.numpy(), expected, rtol=1e-12, atol=1e-5)
    assert torch.equal(g, gram(x.double()))


def test_heads_and_batches_are_tokens_like_any_other() -> None:
    x = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    g = gram(x)
    assert g.shape == (2, 4, 5, 3, 3)
    assert torch.equal(relative_l2(g, A, B)[1, 3], relative_l2(gram(x[:, 1, 3]), A, B))
