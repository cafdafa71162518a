"""The match certificate: last tokens only, and a verdict that can fail on either count."""

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
from scipy.special import softmax

from interp.measures.certificate import Tolerance, certificate, last_outputs

TOLERANCE = Tolerance(js=0.02, top1=0.95)


def sign(js: list[float], same: list[float], tolerance: Tolerance = TOLERANCE) -> dict[str, Any]:
    texts = [f"query {i}" for i in range(len(js))]
    return certificate(np.array(js, float), np.array(same, float), texts, tolerance)


def test_only_the_last_token_of_each_query_counts() -> None:
    p, q = (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(i)) for i in range(2))
    lengths = torch.tensor([1, 3, 4])
    got = last_outputs(p, q, lengths)
    for row, length in enumerate(lengths.tolist()):
        a, b = (softmax(x[row, length - 1].double().numpy()) for x in (p, q))
        assert got[row, 0] == pytest.approx(jensenshannon(a, b) ** 2, abs=1e-12)
        assert got[row, 1] == float(a.argmax() == b.argmax())
    for x in (p, q):
        x[0, 1:], x[1, 3:] = torch.nan, torch.nan  # what stands beyond a query's end
    np.testing.assert_array_equal(last_outputs(p, q, lengths), got)


def test_equal_outputs_match_exactly() -> None:
    p = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    got = last_outputs(p, p.clone(), torch.tensor([3, 2]))
    assert got.dtype == np.float64
    assert got.tolist() == [[0.0, 1.0], [0.0, 1.0]]


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
