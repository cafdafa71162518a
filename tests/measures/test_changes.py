"""The split of a head's change, and SimAOU, each written out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from interp.measures.attention import (
    CHANGES,
    Changes,
    HeadRun,
    change_shares,
)
from interp.measures.state import delta_alignment, gram, sim_aou

BASE, A, B = 0, 1, 2
PATTERN, VALUE, PREFIX, INPUT = range(4)


# The split of a head's change -------------------------------------------------------------------


def head_run(seed: int, prefix: float = 1.0, width: int = 5) -> HeadRun:
    """A random run of 2 x 3 heads on 4 tokens whose output is what its parts say."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    masked = scores.masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)
    mass = 1 - prefix * torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    values = torch.randn(2, 3, 4, width, generator=generator, dtype=torch.float64)
    written = prefix * torch.randn(2, 3, 4, width, generator=generator, dtype=torch.float64)
    return consistent(HeadRun(masked.softmax(-1), mass, values, written, values))


def consistent(run: HeadRun) -> HeadRun:
    """The same with the output that follows from its parts."""
    attended = torch.einsum("bhij,bhjd->bhid", run.content, run.values)
    return run._replace(z=run.mass[..., None] * attended + run.from_prefix)


def split(z: torch.Tensor, pinned: HeadRun, base: HeadRun) -> np.ndarray:
    """The four shares of every token, written out."""
    found = np.empty((4, *z.shape[:3]))
    for place in np.ndindex(z.shape[:3]):
        c, a, v, p, zp = (np.asarray(part[place[:2]]) for part in pinned)
        cb, ab, vb, pb, zb = (np.asarray(part[place[:2]]) for part in base)
        i = place[2]
        change = np.asarray(z[place]) - zb[i]
        terms = (
            a[i] * ((c[i] - cb[i]) @ vb),
            a[i] * (c[i] @ (v - vb)),
            (a[i] - ab[i]) * (cb[i] @ vb) + p[i] - pb[i],
            np.asarray(z[place]) - zp[i],
        )
        found[(slice(None), *place)] = [term @ change for term in terms]
    return found


def shares(changes: Changes) -> np.ndarray:
    return torch.stack(changes.shares).numpy()


@given(st.integers(0, 10_000))
def test_the_split_equals_numpy_and_adds_up(seed: int) -> None:
    pinned, base = head_run(seed), head_run(seed + 1)
    z = head_run(seed + 2).z
    got = change_shares(z, pinned, base, noise=0.0)
    assert len(got.shares) == len(CHANGES)
    np.testing.assert_allclose(shares(got), split(z, pinned, base), rtol=1e-9, atol=1e-9)
    squared = ((z - base.z) ** 2).sum(-1).numpy()
    np.testing.assert_allclose(got.whole.numpy(), squared, rtol=1e-12)
    np.testing.assert_allclose(shares(got).sum(0) / squared, 1, rtol=1e-9)
    assert got.error < 1e-14


@pytest.mark.parametrize("kept", ["content", "values", "input", "prefix"])
def test_a_part_that_did_not_change_has_no_share(kept: str) -> None:
    pinned, base = head_run(0), head_run(1)
    term = {"content": PATTERN, "values": VALUE, "prefix": PREFIX, "input": INPUT}[kept]
    if kept == "prefix":
        pinned = pinned._replace(mass=base.mass, from_prefix=base.from_prefix)
    elif kept != "input":
        pinned = pinned._replace(**{kept: getattr(base, kept)})
    pinned = consistent(pinned)
    z = pinned.z if kept == "input" else head_run(2).z
    got = shares(change_shares(z, pinned, base, noise=0.0))
    assert (got[term] == 0).all()
    assert all((got[other] != 0).any() for other in range(4) if other != term)


@pytest.mark.parametrize(
    ("term", "alone"),
    [
        (PATTERN, ["content"]),
        (VALUE, ["values"]),
        (PREFIX, ["mass", "from_prefix"]),
        (INPUT, []),
    ],
)
def test_one_cause_has_the_whole_change(term: int, alone: list[str]) -> None:
    base, other = head_run(1), head_run(2)
    pinned = consistent(base._replace(**{name: getattr(other, name) for name in alone}))
    z = pinned.z if alone else other.z
    got = change_shares(z, pinned, base, noise=1e-9)
    change = ~torch.isnan(got.whole)
    assert change[..., 1:].all()  # the first row's only key is itself: its pattern cannot change
    part = shares(got)[:, change.numpy()] / got.whole[change].numpy()
    np.testing.assert_allclose(part[term], 1, rtol=1e-9)
    np.testing.assert_allclose(np.delete(part, term, 0), 0, atol=1e-9)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_shares_have_no_units(seed: int, scale: float) -> None:
    """A change of the values' scale, as of the basis, is none of the shares."""
    pinned, base, z = head_run(seed), head_run(seed + 1), head_run(seed + 2).z
    noise = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
    turn = scale * torch.linalg.qr(noise.double()).Q

    def turned(run: HeadRun) -> HeadRun:
        return run._replace(
            values=run.values @ turn, from_prefix=run.from_prefix @ turn, z=run.z @ turn
        )

    before = change_shares(z, pinned, base, noise=0.1)
    after = change_shares(z @ turn, turned(pinned), turned(base), noise=0.1)
    for one, other in zip(before.shares, after.shares, strict=True):
        torch.testing.assert_close(other / after.whole, one / before.whole, equal_nan=True)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.5])
def test_a_change_within_the_noise_has_no_shares(noise: float) -> None:
    base = head_run(1)
    direction = torch.nn.functional.normalize(head_run(2).z, dim=-1)
    sizes = torch.tensor([0.0, 0.99 * noise, 1.01 * noise, 3 * noise]).double()
    z = base.z + sizes[:, None] * direction * base.z.norm(dim=-1, keepdim=True)
    whole = change_shares(z, base, base, noise).whole
    assert torch.isnan(whole[..., :2]).all()
    assert torch.isnan(whole[..., 2:]).all() == (noise == 0)
    assert torch.isfinite(whole[..., 2:]).all() == (noise > 0)


@pytest.mark.parametrize("part", ["content", "mass", "values", "from_prefix", "z"])
@pytest.mark.parametrize("which", ["pinned", "base"])
def test_an_output_that_does_not_fit_its_parts_is_an_error(part: str, which: str) -> None:
    runs = {"pinned": head_run(0), "base": head_run(1)}
    z, wrong = head_run(2).z, head_run(3)
    assert change_shares(z, runs["pinned"], runs["base"], 0.0).error < 1e-14
    runs[which] = runs[which]._replace(**{part: getattr(wrong, part)})
    assert change_shares(z, runs["pinned"], runs["base"], 0.0).error > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_split_is_made_in_float64(dtype: torch.dtype) -> None:
    def narrow(run: HeadRun) -> HeadRun:
        return run._replace(values=run.values.to(dtype), z=run.z.to(dtype))

    pinned, base, z = narrow(head_run(0)), narrow(head_run(1)), head_run(2).z.to(dtype)
    got = change_shares(z, pinned, base, 0.0)
    assert got.whole.dtype == torch.float64
    widened = [run._replace(values=run.values.double(), z=run.z.double()) for run in (pinned, base)]
    np.testing.assert_allclose(shares(got), split(z.double(), *widened), rtol=1e-9, atol=1e-9)


# SimAOU -----------------------------------------------------------------------------------------

SPHERE = 1e-6
"""Less of a move on the unit sphere is none; whole numbers do not come closer unless parallel."""


def states() -> st.SearchStrategy[Any]:
    """Whole-numbered states `[base, a and b, token, d_model]`; zero and parallel ones occur."""
    shapes = st.tuples(st.just(3), st.integers(1, 3), st.integers(1, 5))
    return shapes.flatmap(
        lambda s: hnp.arrays(np.float64, s, elements=st.integers(-3, 3).map(float))
    ).map(torch.from_numpy)


def measured(x: torch.Tensor, a: int = A, b: int = B) -> torch.Tensor:
    return sim_aou(gram(x), a, b, BASE, SPHERE)


@given(states())
def test_sim_aou_equals_numpy_on_the_states(x: torch.Tensor) -> None:
    for token, value in enumerate(measured(x).tolist()):
        base, a, b = (each[token].numpy() for each in x)
        if not (base.any() and a.any() and b.any()):
            assert np.isnan(value)
            continue
        base, a, b = (each / np.linalg.norm(each) for each in (base, a, b))
        up, down = np.linalg.norm(a - base), np.linalg.norm(b - base)
        if min(up, down) <= SPHERE:
            assert np.isnan(value)
        else:
            assert value == pytest.approx((a - base) @ (b - base) / up / down, abs=1e-9)


@given(states())
def test_bounds_symmetry_and_identity_of_sim_aou(x: torch.Tensor) -> None:
    value = measured(x)
    assert (value[~torch.isnan(value)].abs() <= 1).all()
    torch.testing.assert_close(measured(x, B, A), value, rtol=0, atol=1e-9, equal_nan=True)
    same = measured(x, A, A)
    torch.testing.assert_close(same[~torch.isnan(same)], torch.ones_like(same[~torch.isnan(same)]))


@given(states(), st.data())
def test_sim_aou_does_not_see_how_long_states_are(x: torch.Tensor, data: st.DataObject) -> None:
    sizes = hnp.arrays(np.float64, (*x.shape[:2], 1), elements=st.floats(0.01, 100))
    stretched = x * torch.from_numpy(data.draw(sizes))
    torch.testing.assert_close(measured(stretched), measured(x), rtol=0, atol=1e-6, equal_nan=True)


def test_sim_aou_is_the_alignment_of_directions() -> None:
    x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit: Callable[..., torch.Tensor] = torch.nn.functional.normalize
    expected = delta_alignment(gram(unit(x, dim=-1)), A, B, BASE)
    torch.testing.assert_close(measured(x), expected, rtol=0, atol=1e-12)
    assert (measured(x) - delta_alignment(gram(x), A, B, BASE)).abs().max() > 0.01


def test_sim_aou_by_hand() -> None:
    base, a, b = [3.0, 0.0], [0.0, 0.5], [-2.0, 0.0]
    x = torch.tensor([[base], [a], [b]])
    assert measured(x).item() == pytest.approx(2**-0.5)  # (-1, 1) and (-2, 0)
    assert torch.isnan(measured(torch.tensor([[base], [[9.0, 0.0]], [b]])))
