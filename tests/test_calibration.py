"""What the tests and intervals promise, measured on simulated studies and on real prompts.

Type-I error: where nothing differs, a test at 0.05 rejects in 0.05 ± 0.02 of the studies (an exact
test of few relabellings a little less often: of 56 it can reject in 2). Power: how large an effect
is found how often (`pytest -s tests/test_calibration.py` prints it). Coverage: 95 % intervals hold
the true value in 93 to 97 % of the studies. All of it is seeded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from interp import organism
from interp.conditions import Prompt
from interp.families import (
    distances,
    divergence_index,
    label_permutations,
    permuted_f,
    permuted_index,
)
from interp.organism.facts import RELATIONS
from interp.organism.language import few_shot_text, sample_pairs
from interp.positions import position_weights
from interp.queries import encode, read_queries
from interp.significance import SignFlip, benjamini_hochberg, sign_vectors
from interp.statistics import Ratio, poisson_weights
from interp.subject import Batch, load

LEVEL = 0.05
SLACK = 0.02


def rejected(p: np.ndarray) -> np.ndarray:
    return np.mean(p <= LEVEL, axis=0)


# Families ---------------------------------------------------------------------------------------


def studies(
    sizes: tuple[int, int], shift: float, count: int, cells: int = 1, seed: int = 0
) -> np.ndarray:
    """Distances `[study, cell, cond, cond]` of two families, from Grams pooled over 10 queries.

    A state is what the query does + what the member does (heavy tails, standard deviation 1) +
    noise of its own scale for every member and query. Members of the second family are moved by
    `shift` per coordinate in a random direction. Cells share half of a member's variance.
    """
    draw = np.random.default_rng(seed)
    n, queries, width = sum(sizes), 10, 8
    shape = (count, cells)
    member = draw.standard_t(4, (count, 1, n, 1, width)) + draw.standard_t(
        4, (*shape, n, 1, width)
    ) * (cells > 1)
    member /= np.sqrt(2 * (1 + (cells > 1)))
    direction = draw.normal(size=(*shape, 1, 1, width))
    direction *= np.sqrt(width) / np.linalg.norm(direction, axis=-1, keepdims=True)
    family = np.repeat([0.0, shift], sizes)[:, None, None]
    noise = draw.normal(size=(*shape, n, queries, width))
    noise *= draw.gamma(2, 0.5, (*shape, n, queries, 1))
    x = draw.normal(size=(*shape, 1, queries, width)) + family * direction + member + noise
    return distances(np.einsum("slcqd,sleqd->slce", x, x) / queries)


@pytest.mark.parametrize("sizes", [(5, 5), (3, 5)])
def test_two_draws_of_one_family_are_rarely_told_apart(sizes: tuple[int, int]) -> None:
    d = studies(sizes, 0, 4000)
    a, b = range(sizes[0]), range(sizes[0], sum(sizes))
    labels = label_permutations([a, b])
    rates = {
        "divergence index": rejected(permuted_index(d, a, b, labels).p).item(),
        "PERMANOVA F": rejected(permuted_f(d, [a, b], labels).p).item(),
    }
    print(f"\ntype-I error, families of {sizes}: {rates}")
    for rate in rates.values():
        assert abs(rate - LEVEL) <= SLACK
    assert divergence_index(d, a, b).mean() == pytest.approx(1, abs=0.01)


def test_max_t_keeps_the_error_of_a_whole_map() -> None:
    """12 correlated cells; uncorrected, some cell is rejected in many more studies."""
    a, b = range(5), range(5, 10)
    labels = label_permutations([a, b])
    maps = [d for seed in range(6) for d in studies((5, 5), 0, 300, cells=12, seed=seed)]
    tests = {
        "divergence index": [permuted_index(d, a, b, labels) for d in maps],
        "PERMANOVA F": [permuted_f(d, [a, b], labels) for d in maps],
    }
    for name, results in tests.items():
        some = rejected(np.array([each.p_max_t.min() for each in results]))
        bare = rejected(np.array([each.p.min() for each in results]))
        print(f"\nfamily-wise error, {name}: {some:.3f} (uncorrected {bare:.3f})")
        assert abs(some - LEVEL) <= SLACK
        assert bare > 4 * LEVEL


def test_power_against_a_shift_between_families() -> None:
    a, b = range(5), range(5, 10)
    labels = label_permutations([a, b])
    found = []
    print("\nfamilies of 5 and 5, power of the divergence index and of F, median index:")
    for shift in (0.5, 0.75, 1.25):
        d = studies((5, 5), shift, 1000, seed=2)
        index = permuted_index(d, a, b, labels)
        found.append((rejected(index.p).item(), rejected(permuted_f(d, [a, b], labels).p).item()))
        print(f"  shift {shift:4.2f} sd: {found[-1]}, {np.median(index.value):.3f}")
    small, medium, large = np.array(found)
    assert (small > LEVEL).all()
    assert (small + 0.1 < medium).all()
    assert (medium + 0.1 < large).all()
    assert (large > 0.9).all()


POOL, QUERIES = 40, 20


@pytest.fixture(scope="module")
def prompts() -> np.ndarray:
    """Distances `[layer, prompt, prompt]` of 40 random few-shot prompts on 20 queries."""
    draw = random.Random(0)
    asked = read_queries(organism.QUERIES / "matched.jsonl", QUERIES)
    words = [query.text.split()[0] for query in asked]
    relation = RELATIONS["opposite"]
    conditions = {
        f"few_shot_{i}": Prompt(few_shot_text(sample_pairs(draw, relation, 6, without=words)))
        for i in range(POOL)
    }
    subject = load(str(organism.MODEL), conditions, probe=[asked[0].text], device="cpu")
    batch = Batch.of(encode(asked, subject.tokenizer))
    states: list[np.ndarray] = []
    sites = subject.sites("resid_post")
    hooks = {site: lambda value: states.append(value[:, -1].double().numpy()) for site in sites}
    for setting in subject.settings.values():
        subject.run(setting, batch, subject.prefill(setting), hooks)
    x = np.stack(states).reshape(POOL, len(sites), QUERIES, subject.d_model)
    return distances(np.einsum("clqd,elqd->lce", x, x) / QUERIES)


def test_real_prompts_called_prompt_and_lora_are_rarely_told_apart(prompts: np.ndarray) -> None:
    """Ten of the forty at random, five of them called "prompt" and five "LoRA"."""
    draw = np.random.default_rng(0)
    labels = label_permutations([range(5), range(5, 10)])
    index, f, largest = [], [], []
    for _ in range(1000):
        members = draw.permutation(POOL)[:10]
        a, b = members[:5].tolist(), members[5:].tolist()
        result = permuted_index(prompts, a, b, labels)
        index.append(result.p)
        largest.append(result.p_max_t.min())
        f.append(permuted_f(prompts, [a, b], labels).p)
    print(f"\nreal prompts, type-I error by layer: index {rejected(np.array(index))},")
    print(f"  F {rejected(np.array(f))}, map {rejected(np.array(largest)):.3f}")
    for p in (index, f, largest):
        assert (np.abs(rejected(np.array(p)) - LEVEL) <= SLACK).all()


# Sign flips -------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, tuple[int, ...]], tuple[np.ndarray, np.ndarray]]


def skewed_pairs(draw: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Pair and control share a query's level and are skewed about it: d has sd sqrt(2)."""
    level, one, two = draw.exponential(1, (3, *shape))
    return level + one, level + two


def heavy_tails(draw: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Differences without a variance."""
    return draw.standard_t(2, shape), np.zeros(shape)


def skewed_differences(draw: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Mean 0 and yet not symmetric: the test is approximate, so it has 200 queries."""
    return draw.exponential(1, shape) - 1, np.zeros(shape)


@cache
def signs_of(queries: int, replicates: int, seed: int) -> np.ndarray:
    return sign_vectors([f"q:{i}" for i in range(queries)], replicates, seed)


def flipped(
    values: np.ndarray, control: np.ndarray, seed: int, replicates: int = 199
) -> tuple[np.ndarray, np.ndarray]:
    """p and max-T p per cell of one study `[query, cell]`."""
    signs = signs_of(len(values), replicates, seed)
    positions = np.ones((len(values), 1, 1))
    got = SignFlip.of(values[..., None], control[..., None], signs, positions).compute()
    return got.p[:, 0], got.p_max_t[:, 0]


def flip_rate(draw: Draw, n: int, effect: float = 0.0, blocks: int = 40) -> float:
    """How often 100 studies per block, as cells with the block's signs, are rejected."""
    generator = np.random.default_rng(0)
    rates = []
    for block in range(blocks):
        values, control = draw(generator, (n, 100))
        rates.append(rejected(flipped(values + effect, control, block)[0]))
    return float(np.mean(rates))


@pytest.mark.parametrize(
    ("draw", "n"),
    [(skewed_pairs, 20), (skewed_pairs, 200), (heavy_tails, 20), (skewed_differences, 200)],
)
def test_pairs_that_equal_their_control_are_rarely_told_apart(draw: Draw, n: int) -> None:
    rate = flip_rate(draw, n)
    print(f"\ntype-I error, sign flips, {draw.__name__}, {n} queries: {rate:.4f}")
    assert abs(rate - LEVEL) <= SLACK


def test_power_against_a_shift_of_pairs() -> None:
    print("\nsign flips over 50 queries, power:")
    found = []
    for effect in (0.15, 0.35, 0.6):
        found.append(flip_rate(skewed_pairs, 50, effect * np.sqrt(2), blocks=10))
        print(f"  shift {effect:.2f} sd: {found[-1]:.3f}")
    small, medium, large = found
    assert small > 2 * LEVEL
    assert small + 0.2 < medium
    assert medium + 0.1 < large
    assert large > 0.9


def correlated(draw: np.random.Generator, effect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """50 queries by 24 cells, neighbours alike, with an effect (in sd of d) in some cells."""
    steps = draw.exponential(1, (2, 50, 26))
    values, control = (steps[..., :-2] + steps[..., 1:-1] + steps[..., 2:]) / np.sqrt(6)
    return values + effect, control


def test_max_t_and_benjamini_hochberg_keep_their_errors_over_a_correlated_map() -> None:
    draw = np.random.default_rng(1)
    nothing, effect = np.zeros(24), np.repeat([0.6, 0.0], [6, 18])
    any_p, any_max, any_bh, false_shares, found = [], [], [], [], []
    for study in range(1000):
        seed = study // 10
        p, p_max = flipped(*correlated(draw, nothing), seed, 499)
        any_p.append(p.min())
        any_max.append(p_max.min())
        any_bh.append(benjamini_hochberg(p).min())
        hits = benjamini_hochberg(flipped(*correlated(draw, effect), seed, 499)[0]) <= LEVEL
        false_shares.append(hits[effect == 0].sum() / max(1, hits.sum()))
        found.append(hits[effect > 0].mean())
    bare, family_wise, bh = (rejected(np.array(p)) for p in (any_p, any_max, any_bh))
    rate = np.mean(false_shares)
    print(f"\nsign flips, 24 cells: family-wise error {family_wise:.3f} (uncorrected {bare:.3f}),")
    print(f"  BH: {bh:.3f} without effects; false discovery rate {rate:.4f} with 6 of 24,")
    print(f"  of which it finds {np.mean(found):.3f}")
    assert abs(family_wise - LEVEL) <= SLACK
    assert bare > 4 * LEVEL
    assert bh <= LEVEL + SLACK
    assert rate <= LEVEL * 18 / 24 + 0.01
    assert np.mean(found) > 0.8


# Intervals --------------------------------------------------------------------------------------

Study = tuple[np.ndarray, np.ndarray | float, np.ndarray, float]


def skewed_mean(draw: np.random.Generator) -> Study:
    """One skewed value per query; its mean is 1."""
    return draw.exponential(1, (200, 250, 1)), 1.0, np.ones((200, 1, 1)), 1.0


def ratio_of_sums(draw: np.random.Generator) -> Study:
    """One to five tokens per query, alike within it; numerator and denominator go together."""
    lengths = draw.integers(1, 6, 200)
    shape = (200, 250, 5)
    below = draw.exponential(1, (200, 250, 1)) * draw.gamma(4, 0.25, shape)
    slope = 0.5 + 0.25 * draw.exponential(1, (200, 250, 1)) + 0.3 * draw.normal(size=shape)
    return slope * below, below, position_weights(lengths.tolist(), 5, ["last", "mean"]), 0.75


@pytest.mark.parametrize(
    ("draw", "replicates"),
    [
        (skewed_mean, 200),
        (skewed_mean, 1000),
        (ratio_of_sums, 200),
        (ratio_of_sums, 1000),
    ],
)
def test_intervals_hold_the_true_value(
    draw: Callable[[np.random.Generator], Study], replicates: int
) -> None:
    """10,000 studies of 200 queries, 250 at a time with the same bootstrap weights."""
    generator = np.random.default_rng(0)
    held = []
    for block in range(40):
        numerator, denominator, positions, truth = draw(generator)
        weights = poisson_weights([f"q:{i}" for i in range(200)], replicates, seed=block)
        got = Ratio.of(numerator, denominator, weights, positions).compute()
        held.append(((got.ci_low <= truth) & (truth <= got.ci_high))[:, -1].mean())
    print(f"\ncoverage, {draw.__name__}, {replicates} replicates: {np.mean(held):.4f}")
    assert 0.93 <= np.mean(held) <= 0.97
