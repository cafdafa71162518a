"""The result table against plain loops over what was accumulated, and its corrected p-values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from interp.measures.plan import Plan
from interp.measures.tally import Key, Tally
from interp.positions import position_weights
from interp.registry import MEASURES
from interp.significance import SignFlip, sign_vectors
from interp.statistics import Maximum, PerQuery, Ratio
from interp.tabulate import closing_errors, corrected, states, table_rows

LAYERS, HEADS, QUERIES, WIDTH = 2, 3, 9, 4
LABELS = ("last", "mean", "0", "1")
LENGTHS = [4, 2, 3, 1, 4, 4, 2, 3, 4]
POSITIONS = position_weights(LENGTHS, WIDTH, LABELS)
REPLICATES = 30

PLACES = {
    Key("relative_l2", "prompt", "lora", "resid_post"): (LAYERS,),
    Key("content_js", "prompt", "lora", "pattern"): (LAYERS, HEADS),
    Key("relative_l2", "prompt", "lora", "z"): (LAYERS, HEADS),
    Key("js_divergence", "prompt", "lora", "output"): (),
    Key("accuracy", "prompt", "", "output"): (),
    Key("sequence_kl", "prompt", "lora", "output"): (),
    Key("entropy", "prompt", "", "pattern"): (LAYERS, HEADS),
    Key("content_js", "prompt", "base", "pattern"): (LAYERS, HEADS),
}
TESTS = [key for key in PLACES if key.reference != "base"]
ANSWER = {"accuracy": "last", "sequence_kl": "answer"}
"""Measures of the one row that predicts an answer, or of the whole of it, and their position."""


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Numbers of which some are NaN."""
    generator = np.random.default_rng(seed)
    values = generator.gamma(1.0, size=shape)
    values[generator.random(shape) < 0.15] = np.nan
    return values


def data() -> dict[Key, np.ndarray]:
    """Values `[query, (layer, head,) query_pos]` of every key; of an answer `[query, 1]`."""
    return {
        key: drawn(i, QUERIES, *place, 1 if key.measure in ANSWER else WIDTH)
        for i, (key, place) in enumerate(PLACES.items())
    }


@pytest.fixture(scope="module")
def tally() -> Tally:
    """What a sweep would have accumulated, and other things beside it."""
    weights = np.random.default_rng(0).poisson(1.0, (QUERIES, 1 + REPLICATES)).astype(float)
    weights[:, 0] = 1
    signs = sign_vectors([f"q{i}" for i in range(QUERIES)], 99, 0)
    made: Tally = {}
    for i, (key, values) in enumerate(data().items()):
        positions = np.ones((QUERIES, 1, 1)) if key.measure in ANSWER else POSITIONS
        made[key] = Ratio.of(values, 1.0, weights, positions)
        if key in TESTS:
            control = drawn(100 + i, *values.shape) + 0.4 * (i % 3)
            tested = key._replace(measure=f"test of {key.measure}")
            made[tested] = SignFlip.of(values, control, signs, positions[..., :2])
    made[Key("gram", "", "", "z")] = Ratio.of(
        drawn(50, QUERIES, 2, 2, WIDTH), 1.0, weights, POSITIONS
    )
    made[Key("closing_error", "prompt", "", "z")] = Maximum.of([0.5])
    made[Key("certificate", "prompt", "lora", "output")] = PerQuery.of([0], np.zeros((1, 2)))
    return made


# Rows -------------------------------------------------------------------------------------------


def cell(values: np.ndarray, place: tuple[int, ...], label: str) -> tuple[float, int]:
    """The mean over a label's tokens and how many queries have one, token by token."""
    found: list[float] = []
    counted = 0
    for query, length in enumerate(LENGTHS):
        length = min(length, values.shape[-1])
        index = {"last": [length - 1], "mean": range(length), "answer": [0]}.get(label)
        index = [int(label)] if index is None else index
        own = [values[(query, *place, i)] for i in index if i < length]
        own = [value for value in own if np.isfinite(value)]
        found += own
        counted += bool(own)
    return float(np.mean(found)) if found else np.nan, counted


def by_loop(tally: Tally) -> list[dict[str, Any]]:
    made = []
    for key, values in data().items():
        accumulator = tally[key]
        assert isinstance(accumulator, Ratio)
        estimate, p = accumulator.compute(), adjusted(tally, key)
        labels = [ANSWER[key.measure]] if key.measure in ANSWER else LABELS
        for place in np.ndindex(PLACES[key]):
            for label, position in enumerate(labels):
                value, n = cell(values, place, position)
                tested = p is not None and label < 2
                made.append({
                    "measure": key.measure, "condition": key.condition,
                    "reference": key.reference or None, "site": key.site,
                    "layer": (*place, None, None)[0], "head": (*place, None, None)[1],
                    "position": position, "queries": "matched",
                    "value": value, "n": n, "units": MEASURES[key.measure].units,
                    "ci_low": estimate.ci_low[(*place, label)],
                    "ci_high": estimate.ci_high[(*place, label)],
                    "p_adjusted": p[(*place, label)] if tested else np.nan,
                })  # fmt: skip
    return made


def adjusted(tally: Tally, key: Key) -> np.ndarray | None:
    """Max-T from the sums themselves for the headline maps, scipy's BH for all others."""
    test = tally.get(key._replace(measure=f"test of {key.measure}"))
    if not isinstance(test, SignFlip):
        return None
    if (key.measure, key.site) in (("relative_l2", "resid_post"), ("content_js", "pattern")):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(test.squares > 0, np.abs(test.sums) / np.sqrt(test.squares), 0.0)
        t[:, test.n < 2] = np.nan
        highest = np.nanmax(t.reshape(len(t), -1), axis=1)
        reached = highest.reshape(-1, *[1] * test.n.ndim) >= t[0] - 1e-9
        return np.where(test.n < 2, np.nan, reached.mean(0))
    p = test.compute().p
    found = np.full(p.shape, np.nan)
    found[~np.isnan(p)] = false_discovery_control(p[~np.isnan(p)])
    return found


ORDER = ["measure", "condition", "reference", "site", "layer", "head", "position"]


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """Sorted by place, which is text."""
    places = {
        column: [("-" if pd.isna(v) else f"{v:.0f}") if column in ("layer", "head") else str(v)
                 for v in table[column]]
        for column in ORDER
    }  # fmt: skip
    table = table.assign(**places).sort_values(ORDER).reset_index(drop=True)
    return table[sorted(table.columns)]


def test_rows_by_column_equal_a_loop_over_cells(tally: Tally) -> None:
    got = comparable(table_rows(tally, LABELS, "matched"))
    expected = comparable(pd.DataFrame(by_loop(tally)))
    assert not got.duplicated(ORDER).any()
    pd.testing.assert_frame_equal(got, expected, check_dtype=False, rtol=1e-12)
    assert got["p_adjusted"].notna().sum() > 20
    assert got["p_adjusted"].nunique() > 3


def test_order_of_the_tally_changes_no_row(tally: Tally) -> None:
    backwards = dict(reversed(tally.items()))
    pd.testing.assert_frame_equal(
        table_rows(backwards, LABELS, "m"), table_rows(tally, LABELS, "m")
    )


@pytest.mark.parametrize("key", TESTS, ids=str)
def test_corrected_is_no_less_than_uncorrected(tally: Tally, key: Key) -> None:
    test, found = tally[key._replace(measure=f"test of {key.measure}")], corrected(tally, key)
    assert isinstance(test, SignFlip)
    p = test.compute().p
    assert found is not None
    assert (found >= p - 1e-12)[~np.isnan(p)].all()
    assert (found > p).any() or key.site == "output"
    np.testing.assert_array_equal(np.isnan(found), np.isnan(p))


def test_what_has_no_test_has_no_p(tally: Tally) -> None:
    untested = Key("content_js", "prompt", "base", "pattern")
    assert corrected(tally, untested) is None
    same, once = np.ones((3, 1, 2)), np.ones((3, 1))
    test = SignFlip.of(same, same, once, np.ones((3, 2, 2)))
    unmoved = {untested: tally[untested], untested._replace(measure="test of content_js"): test}
    assert corrected(unmoved, untested) is None  # one rearrangement, the data's own, is no test


# Closing errors, states -------------------------------------------------------------------------


@given(st.lists(st.floats(0, 10), min_size=4, max_size=4))
def test_closing_errors_are_the_largest_of_each_identity(errors: list[float]) -> None:
    def part(a: float, b: float) -> Tally:
        return {
            Key("closing_error", "prompt", "", "z"): Maximum.of([a, 0.0]),
            Key("closing_error", "lora", "", "z"): Maximum.of([b]),
            Key("closing_error", "lora", "", "lens"): Maximum.of([a]),
        }

    got = closing_errors({"matched": part(*errors[:2]), "heldout": part(*errors[2:])})
    assert got == {"z": max(errors), "lens": max(errors[0], errors[2])}
    assert closing_errors({}) == {}


@pytest.mark.parametrize("place", range(3))
def test_a_closing_error_that_is_not_a_number_is_not_hidden(place: int) -> None:
    values = [0.5, 0.25, 0.125]
    values[place] = np.nan
    keys = [Key("closing_error", name, "", "z") for name in ("base", "prompt", "lora")]
    tally: Tally = {key: Maximum.of([v]) for key, v in zip(keys, values, strict=True)}
    assert np.isnan(closing_errors({"matched": tally})["z"])


def plan(sample: frozenset[int], kept: tuple[str, ...] = ("base",), **fields: Any) -> Plan:
    return Plan(**{
        "base": "base", "pairs": (), "certified": (), "controls": {}, "members": (), "kept": kept,
        "sample": sample, "speaker": "base", "against": None, "bos": True, "labels": LABELS,
        "longest_answer": 1, "replicates": 0, "permutations": 0, "seed": 3,
        "batch_size": 1, "noise": 1e-5,
    } | fields)  # fmt: skip


@given(st.sets(st.integers(0, 30), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_kept_state_lies_at_its_query(numbers: set[int], random: Any) -> None:
    """Shards in any order, some of them without a kept query."""
    shuffled = random.sample(sorted(numbers), len(numbers))
    kept, layers, width = ("base", "lora"), 3, 2

    def state(condition: int, query: int) -> list[int]:
        return [1000 * query + 100 * condition + i for i in range(layers * width)]

    tally: Tally = {}
    for condition, name in enumerate(kept):
        total = PerQuery.of([], np.zeros((0, layers * width)))
        for start in range(0, len(shuffled), 2):
            shard = shuffled[start : start + 2]
            total = total.merge(
                PerQuery.of(shard, np.array([state(condition, q) for q in shard], float))
            )
        tally[Key("states", name, "", "resid_post last")] = total
    got = states(tally, plan(frozenset(numbers), kept), layers, "last")
    assert got.dims == ("condition", "layer", "query", "d_model")
    for condition, name in enumerate(kept):
        for query in numbers:
            found = got.sel(condition=name, query=query).values
            np.testing.assert_array_equal(found.ravel(), state(condition, query))
