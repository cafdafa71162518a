"""The match certificate: the answers' tokens only, and a verdict that can fail on either count."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from interp.batch import Batch
from interp.measures.certificate import Tolerance, answer_outputs, certificate

TOLERANCE = Tolerance(js=0.02, top1=0.95)


def sign(js: list[float], same: list[float], tolerance: Tolerance = TOLERANCE) -> dict[str, Any]:
    """Of answers of one token (whose KL is not looked at)."""
    texts = [f"query {i}" for i in range(len(js))]
    outputs = np.array([js, same, np.zeros(len(js))], float).T
    return certificate(outputs, texts, tolerance)


def batch_of(ends: list[int], answers: list[int], width: int) -> Batch:
    """Queries so many tokens long, with answers of so many that are forced (all but the last)."""
    end = torch.tensor(ends)
    lengths = end + torch.tensor(answers) - 1
    assert lengths.max() <= width
    return Batch(torch.zeros(len(ends), width, dtype=torch.long), lengths, end)


def one_by_one(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """JS, top-1 agreement and KL of two vectors of logits."""
    x, y = softmax(a), softmax(b)
    return jensenshannon(x, y) ** 2, float(a.argmax() == b.argmax()), rel_entr(x, y).sum()


@pytest.mark.parametrize("answers", [[1, 1, 1], [2, 1, 3], [4, 2, 1]])
@pytest.mark.parametrize("width", [None, 5])
def test_every_token_that_predicts_the_answer_counts_and_no_other(
    answers: list[int], width: int | None
) -> None:
    p, q = (torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(i)) for i in range(2))
    ends = [1, 3, 4]
    tokens = batch_of(ends, answers, 6).answer
    got = answer_outputs(p, q, tokens, width)
    columns = width or max(answers)
    assert got.shape == (3, 3 * columns)
    for row, (end, n) in enumerate(zip(ends, answers, strict=True)):
        for i in range(columns):
            found = got[row, i::columns]
            if i < n:
                a, b = (x[row, end - 1 + i].double().numpy() for x in (p, q))
                np.testing.assert_allclose(found, one_by_one(a, b), atol=1e-12)
            else:
                assert np.isnan(found).all()
        for x in (p, q):  # what stands before the answer, or beyond a query's end
            x[row, : end - 1], x[row, end - 1 + n :] = torch.nan, torch.nan
    np.testing.assert_array_equal(answer_outputs(p, q, tokens, width), got)


def test_equal_outputs_match_exactly() -> None:
    p = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    got = answer_outputs(p, p.clone(), batch_of([3, 2], [1, 1], 3).answer)
    assert got.dtype == np.float64
    assert got.tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]


@st.composite
def answered(draw: st.DrawFn) -> tuple[list[int], np.ndarray]:
    """How many tokens every answer has, and the three numbers of each, NaN beyond its end."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    shape = (3, len(counts), max(counts) + draw(st.integers(0, 2)))
    numbers = rng.uniform(0, 0.05, shape)
    numbers[1] = rng.integers(0, 2, shape[1:])
    for row, n in enumerate(counts):
        numbers[:, row, n:] = np.nan
    return counts, numbers


@given(answered())
def test_an_answer_of_several_tokens_is_one_answer(made: tuple[list[int], np.ndarray]) -> None:
    """Its JS and top-1 are means over its tokens, its KL is the sum; long answers weigh no more."""
    counts, (js, same, kl) = made
    texts = [f"query {i}" for i in range(len(counts))]
    outputs = np.concatenate([js, same, kl], axis=1)
    signed = certificate(outputs, texts, TOLERANCE, counts)
    of_js = [sum(js[i, :n]) / n for i, n in enumerate(counts)]
    of_top = [sum(same[i, :n]) / n for i, n in enumerate(counts)]
    whole = [all(same[i, :n]) for i, n in enumerate(counts)]
    n = len(counts)
    assert (signed["n"], signed["tokens"]) == (n, sum(counts))
    assert signed["mean_js"] == pytest.approx(sum(of_js) / n)
    assert signed["p95_js"] == pytest.approx(np.percentile(of_js, 95))
    assert signed["top1_agreement"] == pytest.approx(sum(of_top) / n)
    assert signed["answer_agreement"] == pytest.approx(sum(whole) / n)
    assert signed["sequence_kl"] == pytest.approx(np.nansum(kl) / n)
    assert signed["passed"] is bool(sum(of_js) / n <= 0.02 and sum(of_top) / n >= 0.95)
    assert {row["query"] for row in signed["outside"]} == {
        i for i, value in enumerate(of_js) if value > 0.02
    }


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 0.69)), st.integers(0, 100))
def test_the_numbers_equal_a_restatement(js: np.ndarray, seed: int) -> None:
    same = np.random.default_rng(seed).integers(0, 2, len(js)).astype(float)
    signed = sign(js.tolist(), same.tolist())
    ordered = sorted(js)
    place = 0.95 * (len(js) - 1)
    above = ordered[min(int(place) + 1, len(js) - 1)]
    p95 = ordered[int(place)] + (place - int(place)) * (above - ordered[int(place)])
    assert signed["n"] == len(js)
    assert signed["mean_js"] == pytest.approx(sum(js) / len(js))
    assert signed["p95_js"] == pytest.approx(p95, abs=1e-12)
    assert signed["top1_agreement"] == pytest.approx(sum(same) / len(js))
    outside = [row["query"] for row in signed["outside"]]
    assert set(outside) == {i for i, value in enumerate(js) if value > 0.02}
    assert [js[i] for i in outside] == sorted((js[i] for i in outside), reverse=True)
    assert all(row["text"] == f"query {row['query']}" for row in signed["outside"])
    assert json.loads(json.dumps(signed)) == signed


@pytest.mark.parametrize(
    ("js", "same", "passed"),
    [
        ([0.02, 0.02], [1, 1], True),
        ([0.0, 0.04], [1, 1], True),
        ([0.0, 0.0401], [1, 1], False),
        ([0.0] * 20, [1] * 19 + [0], True),
        ([0.0] * 20, [1] * 18 + [0] * 2, False),
        ([0.5] * 20, [0] * 20, False),
    ],
)
def test_the_verdict(js: list[float], same: list[float], passed: bool) -> None:
    signed = sign(js, same)
    assert signed["passed"] is passed
    assert (signed["tolerance_js"], signed["tolerance_top1"]) == (0.02, 0.95)


def test_a_query_exactly_at_the_tolerance_is_inside() -> None:
    assert sign([0.02, 0.03], [1, 1])["outside"] == [{"query": 1, "text": "query 1", "js": 0.03}]


def test_what_is_undefined_never_passes() -> None:
    signed = sign([0.0, float("nan")], [1, 1])
    assert signed["passed"] is False
    assert signed["mean_js"] is None
