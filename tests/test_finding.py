"""Findings: a verdict follows from an interval and a threshold alone, and survives the disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from interp.errors import RunError
from interp.finding import FILE, DecidingEstimate, Finding, read_finding

NUMBERS = st.floats(-1e6, 1e6)
FOUND = Finding(
    point=1,
    name="generalisation",
    claim="A prompt does not carry over.",
    sentence="It does, by “0.98” ✓.",
    contrast=DecidingEstimate("strength lost", 0.02, 0.01, 0.03, 0.1),
    n=26,
    figure="generalisation",
    model="tiny",
    settings={"seed": 0, "floor": ["a", "b"], "limit": None},
)


@given(st.tuples(NUMBERS, NUMBERS).map(sorted), NUMBERS)
def test_the_verdict_is_the_side_on_which_the_whole_interval_lies(
    ends: list[float], threshold: float
) -> None:
    low, high = ends
    verdict = DecidingEstimate("x", (low + high) / 2, low, high, threshold).verdict
    assert (verdict == "supported") == all(end > threshold for end in ends)
    assert (verdict == "not supported") == all(end < threshold for end in ends)


@given(st.tuples(NUMBERS, NUMBERS).map(sorted), NUMBERS)
def test_the_mirrored_contrast_has_the_opposite_verdict(
    ends: list[float], threshold: float
) -> None:
    opposite = {"supported": "not supported", "not supported": "supported"}
    low, high = ends
    verdict = DecidingEstimate("x", low, low, high, threshold).verdict
    mirrored = DecidingEstimate("x", -low, -high, -low, -threshold).verdict
    assert mirrored == opposite.get(verdict, "undecided")


@given(NUMBERS, st.sampled_from([None, math.nan]), st.booleans())
def test_an_unknown_end_decides_nothing(threshold: float, end: float | None, low: bool) -> None:
    known = threshold + (1 if low else -1)
    ends = (known, end) if low else (end, known)
    contrast = DecidingEstimate("x", known, *ends, threshold)
    assert contrast.verdict == "undecided"
    assert "[" not in contrast.estimate


@pytest.mark.parametrize(
    ("point", "if_supported"),
    [(0, "holds"), *((point, "fails") for point in range(1, 6)), (6, "holds")],
)
def test_weak_points_speak_against_the_hypothesis_and_the_rest_for_it(
    point: int, if_supported: str
) -> None:
    above, below = DecidingEstimate("x", 2, 1.5, 2.5, 1), DecidingEstimate("x", 0, -1, 0.5, 1)
    found = replace(FOUND, point=point)
    opposite = {"fails": "holds", "holds": "fails"}[if_supported]
    assert replace(found, contrast=above).hypothesis == if_supported
    assert replace(found, contrast=below).hypothesis == opposite
    assert replace(found, contrast=below._replace(ci_high=1.5)).hypothesis == "undecided"


@given(
    st.integers(0, 6),
    st.tuples(st.floats(-9, 9), st.floats(-9, 9)).map(sorted),
    st.floats(0.01, 0.99),
)
def test_a_shortfall_beyond_what_is_allowed_is_what_the_hypothesis_fails_by(
    point: int, ends: list[float], threshold: float
) -> None:
    assume(all(abs(end - threshold) > 1e-6 for end in ends))
    contrast = DecidingEstimate("x", sum(ends) / 2, *ends, threshold)
    found = replace(FOUND, point=point, contrast=contrast)
    value, low, high = found.shortfall
    assert low <= value <= high
    assert (low > 1) == (found.hypothesis == "fails")
    assert (high < 1) == (found.hypothesis == "holds")


def test_a_shortfall_is_a_multiple_of_the_threshold_or_of_what_misses_to_one() -> None:
    weak = replace(FOUND, contrast=DecidingEstimate("lost", 0.3, 0.2, 0.5, 0.1))
    assert weak.shortfall == pytest.approx((3, 2, 5))
    strength = replace(weak, point=0, contrast=DecidingEstimate("kept", 0.96, 0.92, 0.98, 0.9))
    assert strength.shortfall == pytest.approx((0.4, 0.2, 0.8))
    for point, threshold in ((1, 0.0), (1, -1.0), (0, 1.0), (6, 2.0)):
        known = weak.contrast._replace(threshold=threshold)
        assert all(map(math.isnan, replace(weak, point=point, contrast=known).shortfall))
    unknown = replace(weak, contrast=weak.contrast._replace(ci_low=None)).shortfall
    assert unknown[0] == pytest.approx(3)
    assert all(map(math.isnan, unknown[1:]))


@given(
    value=NUMBERS,
    low=st.none() | NUMBERS,
    high=st.none() | NUMBERS,
    words=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    value: float,
    low: float | None,
    high: float | None,
    words: str,
) -> None:
    folder = tmp_path_factory.mktemp("found")
    found = replace(FOUND, sentence=words, contrast=DecidingEstimate(words, value, low, high, 0.5))
    found.write(folder)
    assert read_finding(folder) == found


def test_what_is_undefined_stays_so_and_the_file_is_plain_json(tmp_path: Path) -> None:
    replace(FOUND, contrast=DecidingEstimate("x", math.nan, math.nan, math.inf, 1)).write(tmp_path)
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert json.loads(text)["contrast"] | {"what": ""} == {
        "what": "",
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "threshold": 1,
    }
    assert read_finding(tmp_path).number == "x: undefined (threshold 1), n = 26"


def test_the_verdict_is_not_taken_from_the_file(tmp_path: Path) -> None:
    FOUND.write(tmp_path)
    kept = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert kept["verdict"] == "not supported"
    (tmp_path / FILE).write_text(json.dumps(kept | {"verdict": "supported"}))
    assert read_finding(tmp_path).verdict == "not supported"


def test_no_finding_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"finding\.json: No such file.*; run the experiment first$"):
        read_finding(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.02", '"much"'),
        ('"n": 26', '"n": null'),
        ('"contrast"', '"contrasts"'),
        ('"ci_low": 0.01,', ""),
        ("}", ""),
        ('"point": 1', '"point": 1.5'),
    ],
)
def test_damage_is_one_line_that_says_what_to_do(tmp_path: Path, old: str, new: str) -> None:
    FOUND.write(tmp_path)
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / FILE).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(RunError, match=r"is damaged \(.*\); run the experiment again$") as caught:
        read_finding(tmp_path)
    assert "\n" not in str(caught.value)
