"""Spectra, intruders and overlaps: the definitions in numpy, the laws they obey, chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.weights.spectra import (
    chance_band,
    intruder_dimensions,
    left_vectors,
    nearest_cosines,
    relative_norm,
    stable_rank,
    subspace_overlap,
)
from interp.weights.updates import Update

sizes = st.integers(3, 24)
ranks = st.integers(1, 3)
seeds = st.integers(0, 10_000)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def rotation(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(normal(seed, size, size)).Q


def low_rank(seed: int, d_out: int, d_in: int, rank: int) -> Update:
    return Update(normal(seed, d_out, rank), normal(seed + 1, rank, d_in))


def count(base: Tensor, changed: Tensor, *at: float) -> int:
    return intruder_dimensions(left_vectors(base), changed, *at)


# --- the definitions, in numpy -------------------------------------------------------------------


def numpy_intruders(base: np.ndarray, changed: np.ndarray, top: int, epsilon: float) -> int:
    """Shuttleworth et al., algorithm 1, loop by loop."""
    before, after = (np.linalg.svd(m, full_matrices=False)[0] for m in (base, changed))
    count = 0
    for j in range(min(top, after.shape[1])):
        cosines = [abs(float(after[:, j] @ before[:, i])) for i in range(before.shape[1])]
        count += max(cosines) < epsilon
    return count


@given(seeds, sizes, sizes, ranks, st.floats(0.1, 30))
def test_everything_equals_a_restatement_in_numpy(
    seed: int, d_out: int, d_in: int, rank: int, size: float
) -> None:
    base, update = normal(seed + 9, d_out, d_in), low_rank(seed, d_out, d_in, rank)
    update = Update(size * update.left, update.right)
    before, added = base.numpy(), update.matrix.numpy()
    s = np.linalg.svd(added, compute_uv=False)[:rank]
    found = update.directions
    np.testing.assert_allclose(found.s.numpy(), s, rtol=1e-6)
    norm, strongest = np.linalg.norm(added, "fro"), np.linalg.norm(added, 2)
    assert update.norm == pytest.approx(norm, rel=1e-6)
    assert stable_rank(found.s) == pytest.approx((norm / strongest) ** 2, rel=1e-6)
    wanted = norm / np.linalg.norm(before, "fro")
    assert relative_norm(update.norm, base) == pytest.approx(wanted, rel=1e-6)
    for top, epsilon in ((10, 0.5), (2, 0.9), (10, 0.7)):
        got = count(base, base + update.matrix, top, epsilon)
        assert got == numpy_intruders(before, before + added, top, epsilon)
    other = low_rank(seed + 5, d_out, d_in, rank)
    u, v = np.linalg.svd(added)[::2]
    u2, v2 = np.linalg.svd(other.matrix.numpy())[::2]
    sides = (
        (found.u, other.directions.u, u[:, :rank].T @ u2[:, :rank]),
        (found.v.T, other.directions.v.T, v[:rank] @ v2[:rank].T),
    )
    for a, b, product in sides:
        wanted = np.linalg.norm(product, "fro") ** 2 / rank
        assert subspace_overlap(a, b) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


# --- laws ----------------------------------------------------------------------------------------


@given(seeds, sizes, sizes, ranks, st.floats(1e-3, 1e3))
def test_scale_changes_sizes_and_no_shape(
    seed: int, d_out: int, d_in: int, rank: int, scale: float
) -> None:
    base, update = normal(seed + 9, d_out, d_in), low_rank(seed, d_out, d_in, rank)
    scaled = Update(scale * update.left, update.right)
    torch.testing.assert_close(scaled.directions.s, scale * update.directions.s)
    assert stable_rank(scaled.directions.s) == pytest.approx(stable_rank(update.directions.s))
    assert relative_norm(scaled.norm, scale * base) == pytest.approx(
        relative_norm(update.norm, base)
    )
    assert count(scale * base, scale * (base + update.matrix)) == (
        count(base, base + update.matrix)
    )


@given(seeds, sizes, sizes, ranks)
def test_rotations_of_either_space_change_nothing(
    seed: int, d_out: int, d_in: int, rank: int
) -> None:
    base = normal(seed + 9, d_out, d_in)
    one, other = low_rank(seed, d_out, d_in, rank), low_rank(seed + 5, d_out, d_in, rank)
    out, into = rotation(seed + 2, d_out), rotation(seed + 3, d_in)
    turned = [Update(out @ u.left, u.right @ into) for u in (one, other)]
    torch.testing.assert_close(turned[0].directions.s, one.directions.s)
    both = [left_vectors(m)[:, :3] for m in (base + one.matrix, out @ (base + one.matrix) @ into)]
    known = [left_vectors(m) for m in (base, out @ base @ into)]
    near = [nearest_cosines(k, vectors) for k, vectors in zip(known, both, strict=True)]
    torch.testing.assert_close(near[0], near[1], atol=1e-6, rtol=1e-6)
    for side in ("u", "v"):
        plain, moved = (
            subspace_overlap(*(_basis(update, side) for update in pair))
            for pair in ((one, other), turned)
        )
        assert moved == pytest.approx(plain, abs=1e-9)


def _basis(update: Update, side: str) -> Tensor:
    return update.directions.u if side == "u" else update.directions.v.T


@given(seeds, sizes, ranks)
def test_a_space_overlaps_with_itself_by_one_and_with_its_complement_by_nothing(
    seed: int, d: int, rank: int
) -> None:
    rank = min(rank, d // 2)
    frame = rotation(seed, d)
    own, mixed = frame[:, :rank], frame[:, :rank] @ rotation(seed + 1, rank)
    assert subspace_overlap(own, mixed) == pytest.approx(1)
    assert subspace_overlap(own, frame[:, rank : 2 * rank]) == pytest.approx(0, abs=1e-12)
    other = rotation(seed + 2, d)[:, :rank]
    assert subspace_overlap(own, other) == pytest.approx(subspace_overlap(other, own))
    assert 0 <= subspace_overlap(own, other) <= 1 + 1e-12


@given(seeds, sizes, sizes, ranks)
def test_stable_rank_lies_between_one_and_the_rank(
    seed: int, d_out: int, d_in: int, rank: int
) -> None:
    s = low_rank(seed, d_out, d_in, rank).directions.s
    assert 1 - 1e-12 <= stable_rank(s) <= len(s) + 1e-12
    assert stable_rank(torch.ones(rank, dtype=torch.float64)) == pytest.approx(rank)


def test_an_unchanged_matrix_has_no_intruder_and_a_strong_new_direction_is_one() -> None:
    base = torch.diag(torch.arange(20, 0, -1, dtype=torch.float64))
    assert count(base, base) == 0
    assert count(base, 3 * base) == 0
    new = torch.full((20, 1), 20**-0.5, dtype=torch.float64)  # as near to each as to all others
    assert count(base, base + 1000 * new @ new.T) == 1
    assert count(base, base + 0.01 * new @ new.T) == 0


def test_intruders_are_counted_in_the_output_space() -> None:
    """A strong new input direction whose output base knows is none; stored as Conv1D stores it, the
    same change would be one."""
    base = torch.diag(torch.arange(20, 0, -1, dtype=torch.float64))
    new = torch.full((20,), 20**-0.5, dtype=torch.float64)
    known = torch.eye(20, dtype=torch.float64)[0]
    changed = base + 1000 * torch.outer(known, new)
    assert count(base, changed) == 0
    assert count(base.T, changed.T) == 1


def test_what_is_not_there_is_undefined() -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    assert math.isnan(stable_rank(nothing))
    assert math.isnan(stable_rank(torch.zeros(2, dtype=torch.float64)))
    assert math.isnan(relative_norm(1.0, torch.zeros(3)))
    assert math.isnan(subspace_overlap(torch.zeros(5, 0), torch.zeros(5, 0)))


# --- chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "rank"), [(12, 1), (16, 4), (24, 8), (10, 7), (6, 5)])
def test_chance_is_what_random_subspaces_do(d: int, rank: int) -> None:
    rng = np.random.default_rng(d)
    frames = np.linalg.qr(rng.standard_normal((4000, d, rank)))[0]
    overlap = (frames[:, :rank] ** 2).sum((1, 2)) / rank
    spread = overlap.std() / math.sqrt(len(overlap))
    assert overlap.mean() == pytest.approx(rank / d, abs=4 * spread)
    low, high = chance_band(d, rank)
    assert low < rank / d < high
    inside = ((overlap >= low) & (overlap <= high)).mean()
    assert inside == pytest.approx(0.95, abs=0.02)


def test_a_whole_space_overlaps_with_itself() -> None:
    assert chance_band(7, 7) == (1.0, 1.0)
