"""Every row of a run equals the slow reference: plain Hugging Face, one query at a time, numpy.

Batched, prefix-cached, right-padded runs of six models under up to 20 conditions against
`tests/reference`, which recomputes every number from the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from brute_force import (
    FAMILIES,
    HEADLINE,
    MAX_POSITIONS,
    MODELS,
    QUERIES,
    TOLERANCE,
    Found,
    answer_id,
    apart,
    certified,
    differs,
    experiment,
    geometry_pairs,
    label,
    materials,
    measured,
    out_of_range,
    pairs,
    settings,
)
from reference import Condition, Key, Study, Value
from transformers import AutoTokenizer

from interp import load_run
from interp.geometry.transfer import LabelFolds
from interp.runs.view import Run
from interp.study import run_study


@dataclass(frozen=True)
class Compared:
    """A finished run and what the reference says of it, by group of queries: `found` its rows,
    `chance` those that say what a geometry measure is by chance, `expected` the reference's."""

    run: Run
    conditions: dict[str, Condition]
    observed: dict[str, dict[str, list[reference.States]]]
    found: dict[str, dict[Key, Found]]
    chance: dict[Key, Found]
    expected: dict[str, dict[Key, Value]]


@pytest.fixture(scope="module", params=MODELS)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """One run of the library and one of the reference."""
    folder = tmp_path_factory.mktemp(request.param)
    made = materials(request.param, folder)
    asked = experiment(request.param, made, folder)
    run = load_run(run_study(asked))
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    conditions = settings(request.param, tokenizer, made)
    assert list(conditions) == list(run.manifest["conditions"])
    observed, expected = {}, {}
    for group in ["matched", "heldout"] if asked.heldout else ["matched"]:
        ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t, _ in QUERIES[group]]
        answers = [answer_id(tokenizer, *query) for query in QUERIES[group]]
        observed[group] = reference.observe(made.model, conditions, ids)
        study = Study(
            conditions,
            observed[group],
            pairs(conditions),
            answers,
            MAX_POSITIONS,
            headline=HEADLINE,
            families=FAMILIES,
            **probed(conditions) if group == "matched" else {},
        )
        expected[group] = reference.rows(study)
    found = {group: measured(run, group) for group in expected}
    chance = {key: found["matched"].pop(key) for key in list(found["matched"]) if by_chance(key[0])}
    return Compared(run, conditions, observed, found, chance, expected)


def probed(conditions: Mapping[str, Condition]) -> dict[str, Any]:
    """What the geometry of the matched queries depends on; folds are the library's choice."""
    labels = [label(text) for text, _ in QUERIES["matched"]]
    split = LabelFolds.of(labels, seed=0)
    assert split is not None
    assert len(split.rows) == len(labels)
    return {
        "geometry": geometry_pairs(conditions),
        "labels": labels,
        "folds": split.fold.tolist(),
    }


def by_chance(measure: str) -> bool:
    return measure.endswith(("_chance", "_calibrated"))


def test_queries_have_different_lengths_and_need_padding(compared: Compared) -> None:
    lengths = [states.length for states in compared.observed["matched"]["base"]]
    assert min(lengths) == 1
    assert max(lengths) > MAX_POSITIONS
    assert len(set(lengths)) >= 4


def test_every_value_lies_in_the_range_of_its_measure(compared: Compared) -> None:
    assert out_of_range(compared.run.table) == []


def test_no_row_is_missing_and_none_is_extra(compared: Compared) -> None:
    for group, expected in compared.expected.items():
        found = compared.found[group]
        assert sorted(map(str, expected.keys() - found.keys()))[:5] == []
        assert sorted(map(str, found.keys() - expected.keys()))[:5] == []
    assert set(compared.run.table["queries"]) == set(compared.expected)


def test_every_value_is_the_reference(compared: Compared) -> None:
    wrong, largest = [], 0.0
    for group, expected in compared.expected.items():
        found = compared.found[group]
        for key, want in expected.items():
            if not want.meaningful:
                continue
            got = found[key].value
            largest = max(largest, apart(got, want))
            if differs(got, want):
                wrong.append((group, key, got, want.value))
    print(f"largest difference {largest:.2g}")
    assert wrong[:10] == [], f"{len(wrong)} rows differ"


def test_every_row_counts_its_queries(compared: Compared) -> None:
    for group, expected in compared.expected.items():
        found = compared.found[group]
        wrong = [
            (key, found[key].n, want.n)
            for key, want in expected.items()
            if want.meaningful and found[key].n != want.n
        ]
        assert wrong[:10] == [], f"{len(wrong)} rows count otherwise"


def test_few_rows_are_left_out_and_only_where_a_change_is_rounding(compared: Compared) -> None:
    """Rotary scores of the first block do not depend on what stands before the query, and where
    nothing does, a shift changes nothing; elsewhere it takes a head that ignores the prefix."""
    for expected in compared.expected.values():
        others = [
            want
            for (measure, condition, _, _, layer, _, _), want in expected.items()
            if condition != "shifted"
            and not (layer == 0 and measure in ("sim_am_delta", "rewiring_share"))
        ]
        left_out = [want for want in others if want.n and not want.meaningful]
        print(f"left out {len(left_out)} of {len(others)} rows")
        assert len(left_out) <= len(others) / 100


def test_the_answers_matter(compared: Compared) -> None:
    """Some conditions know some answers; base itself knows one, which is nobody's gain."""
    known: dict[str, dict[tuple[str, str | None], float]] = {"accuracy": {}, "rec2ftp": {}}
    for (measure, a, b, *_), want in compared.expected["matched"].items():
        if measure in known:
            known[measure][a, b] = want.value
    assert known["accuracy"]["half", None] > 0
    assert 0 < known["rec2ftp"]["bias", "half"] < 1
    if "stories" not in compared.run.manifest["model"]["name"]:
        assert 0 < known["accuracy"]["base", None] < 1


def test_certificates_are_the_reference(compared: Compared) -> None:
    signed = compared.run.manifest["certificates"]
    expected = {
        (a, b, group): reference.certificate(observed[a], observed[b])
        for group, observed in compared.observed.items()
        for a, b in certified(compared.conditions)
    }
    found = {(c["condition"], c["reference"], c["queries"]): c for c in signed}
    assert len(found) == len(signed)
    assert found.keys() == expected.keys()
    for key, want in expected.items():
        got = {name: found[key][name] for name in want}
        assert got == pytest.approx(want, abs=TOLERANCE), key
        passes = want["mean_js"] <= 0.02 and want["top1_agreement"] >= 0.95
        assert found[key]["passed"] == passes, key


def test_p_of_families_is_that_of_all_relabellings(compared: Compared) -> None:
    wrong, known = [], 0
    for group, expected in compared.expected.items():
        for key, want in expected.items():
            if want.p is None or not want.meaningful:
                continue
            known += 1
            low, high = want.p
            if not low - 1e-9 <= compared.found[group][key].p <= high + 1e-9:
                wrong.append((key, compared.found[group][key].p, want.p))
    assert wrong[:10] == []
    assert known > 100


PERFECT = {"linear_cka": 1.0, "procrustes_distance": 0.0, "mutual_knn": 1.0, "probe_transfer": 1.0}
GEOMETRY = {*PERFECT, "intrinsic_dimension", "gride_2", "gride_4", "gride_8"}


def test_geometry_is_read_against_chance(compared: Compared) -> None:
    """Calibrated is 0 at chance and 1 at its best; chance is where it must be."""
    plain = {key: row for key, row in compared.found["matched"].items() if key[0] in GEOMETRY}
    wanted = {(f"{key[0]}_chance", *key[1:]) for key in plain}
    wanted |= {(f"{key[0]}_calibrated", *key[1:]) for key in plain if key[0] in PERFECT}
    assert compared.chance.keys() == wanted
    n = len(QUERIES["matched"])
    for (measure, *about), row in plain.items():
        chance = compared.chance[f"{measure}_chance", *about]
        if math.isnan(row.value):
            assert math.isnan(chance.value)
            continue
        assert chance.low - 1e-9 <= chance.value <= chance.high + 1e-9
        assert 0 < row.p <= 1
        if measure in PERFECT:
            calibrated = compared.chance[f"{measure}_calibrated", *about].value
            share = (row.value - chance.value) / (PERFECT[measure] - chance.value)
            assert calibrated == pytest.approx(share, abs=1e-6)
        if measure == "linear_cka":
            assert abs(chance.value) < 0.1
        if measure == "mutual_knn":
            assert chance.value == pytest.approx(((n - 1) // 4) / (n - 1), abs=0.05)


def test_kept_states_are_the_reference(compared: Compared) -> None:
    kept = compared.run.arrays["states_resid_post"]
    names = {name for pair in geometry_pairs(compared.conditions) for name in pair}
    assert set(kept["condition"].values) == names
    for name in names:
        states = [s.resid_post[:, -1] for s in compared.observed["matched"][name]]
        want = np.stack(states, axis=1)
        got = kept.sel(condition=name).transpose("layer", "query", "d_model").values
        np.testing.assert_allclose(got, want, atol=TOLERANCE * np.abs(want).max())
