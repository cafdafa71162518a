"""Rows of geometry: which pairs, and the numbers of `interp.geometry` at the right place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import false_discovery_control

from interp.conditions import Base, Condition, Lora, Neutral, Prompt, Shifted
from interp.design import Design
from interp.geometry import (
    PAIRED,
    SINGLE,
    Result,
    paired_similarity,
    probe_pair,
    single,
)
from interp.measures.plan import Plan
from interp.queries import Encoded
from interp.registry import MEASURES
from interp.tabulate.geometry import geometry_rows

LAYERS, SEED = 3, 3
SAMPLE = range(1, 48, 2)
"""Numbers of the kept queries: every other one."""


class Made(NamedTuple):
    """Rows, and the states and labels that they are of."""

    table: pd.DataFrame
    states: xr.DataArray
    labels: list[Any]

    def at(self, name: str, layer: int) -> np.ndarray:
        return np.asarray(self.states.sel(condition=name).values[layer])

    def rows(self, measure: str, a: str, b: str | None) -> pd.DataFrame:
        table = self.table[(self.table["measure"] == measure) & (self.table["condition"] == a)]
        return table[table["reference"].isna() if b is None else table["reference"] == b]


def geometry(labels: str | None = "mixed", headline: bool = True) -> Made:
    """Rows of random states of some conditions; every other query's lie apart from the others'."""
    prompt = Prompt(text="opposite :")
    built: dict[str, Condition] = {"base": Base(), "prompt": prompt}
    built |= {name: Prompt(text=name) for name in ("more", "most")}
    kept = ["base", "prompt", "more"]
    if headline:
        built |= {"lora": Lora("adapter")}
        built |= {"neutral": Neutral(like=prompt), "shifted": Shifted(by=prompt)}
        kept = ["base", "prompt", "lora", "neutral", "shifted"]
    generator = np.random.default_rng(0)
    x = generator.normal(size=(len(kept), LAYERS, len(SAMPLE), 4)).cumsum(0)
    x[:, :, ::2] += 1.5
    kinds = {"mixed": ("odd", "even"), "one": ("odd", "odd"), "partly": ("odd", None)}
    cycle = kinds[labels] if labels else (None, None)
    queries = [Encoded(f"q{i}", "a", (1,), (), cycle[i // 2 % 2]) for i in range(50)]
    coords: Mapping[str, Any] = {"condition": kept, "query": list(SAMPLE)}
    states = xr.DataArray(x, dims=("condition", "layer", "query", "d_model"), coords=coords)
    plan = Plan(**{
        "base": "base", "pairs": (), "certified": (), "controls": {}, "members": (),
        "kept": tuple(kept), "sample": frozenset(SAMPLE), "speaker": "base", "against": None,
        "bos": True, "labels": ("last",), "longest_answer": 1, "replicates": 0,
        "permutations": 0, "seed": SEED, "batch_size": 1, "noise": 1e-5,
    })  # fmt: skip
    rows = geometry_rows(states, Design.of(built, {}), queries, plan, "last")
    return Made(pd.DataFrame(list(rows)), states, [queries[i].label for i in SAMPLE])


@pytest.fixture(scope="module")
def made() -> Made:
    return geometry()


def pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs with rows, in their order."""
    compared = table[table["reference"].notna()]
    return [*dict.fromkeys(zip(compared["condition"], compared["reference"], strict=True))]


def test_pairs_are_the_headline_its_nulls_and_its_sides_against_base(made: Made) -> None:
    assert pairs(made.table) == [
        ("prompt", "lora"),
        ("neutral", "lora"),
        ("shifted", "lora"),
        ("prompt", "base"),
        ("lora", "base"),
    ]


def test_without_a_headline_everything_is_held_against_base() -> None:
    assert pairs(geometry(headline=False).table) == [("prompt", "base"), ("more", "base")]


def test_every_condition_has_a_dimension(made: Made) -> None:
    alone = made.table[made.table["reference"].isna()]
    assert set(alone["condition"]) == set(made.states["condition"].values)
    wanted = {f"{measure}{form}" for measure in SINGLE for form in ("", "_chance")}
    assert set(alone["measure"]) == wanted


def test_every_row_has_its_place_once(made: Made) -> None:
    place = ["measure", "condition", "reference", "layer"]
    assert not made.table.duplicated(place).any()
    assert (made.table["site"] == "resid_post").all()
    assert (made.table["position"] == "last").all()
    assert (made.table["queries"] == "matched").all()
    assert (made.table["n"] == len(SAMPLE)).all()
    counts = made.table.groupby(place[:3], dropna=False)["layer"].agg(list)
    assert all(layers == [*range(LAYERS)] for layers in counts)
    for measure, units in zip(made.table["measure"], made.table["units"], strict=True):
        plain = measure.removesuffix("_chance")
        assert units == ("share" if measure.endswith("_calibrated") else MEASURES[plain].units)


def results(made: Made, measure: str, a: str, b: str | None) -> list[Result]:
    found = []
    for layer in range(LAYERS):
        x, y = made.at(a, layer), made.at(b or a, layer)
        if b is None:
            found.append(single(x, SEED)[measure])
        elif measure in PAIRED:
            found.append(paired_similarity(x, y, SEED)[measure])
        else:
            found.append(probe_pair(x, y, made.labels, SEED)[measure])
    return found


@pytest.mark.parametrize(
    ("measure", "a", "b"),
    [
        *((measure, "prompt", "lora") for measure in (*PAIRED, "probe_transfer")),
        ("procrustes_distance", "neutral", "lora"),
        ("probe_transfer", "lora", "base"),
        ("intrinsic_dimension", "lora", None),
        ("gride_2", "base", None),
    ],
)
def test_rows_hold_the_value_its_chance_and_its_p(
    made: Made, measure: str, a: str, b: str | None
) -> None:
    found = results(made, measure, a, b)
    rows, by_chance = made.rows(measure, a, b), made.rows(f"{measure}_chance", a, b)
    for name in ("value", "ci_low", "ci_high"):
        np.testing.assert_array_equal(rows[name], [getattr(r, name) for r in found])
    for name, field in zip(
        ("value", "ci_low", "ci_high"), ("chance", "chance_low", "chance_high"), strict=True
    ):
        np.testing.assert_array_equal(by_chance[name], [getattr(r, field) for r in found])
    assert np.isfinite(rows["value"]).all()
    p = [r.p for r in found]
    np.testing.assert_allclose(rows["p_adjusted"], false_discovery_control(p))
    assert by_chance["p_adjusted"].isna().all()
    calibrated = made.rows(f"{measure}_calibrated", a, b)
    assert len(calibrated) == (LAYERS if b else 0)
    if b:
        np.testing.assert_array_equal(calibrated["value"], [r.calibrated for r in found])
        assert calibrated[["ci_low", "ci_high", "p_adjusted"]].isna().all(axis=None)


@pytest.mark.parametrize("labels", [None, "one", "partly"])
def test_a_probe_needs_two_labels_and_all_of_them(labels: str | None) -> None:
    table = geometry(labels, headline=False).table
    assert not table["measure"].str.startswith("probe_transfer").any()
    assert table["measure"].str.startswith("linear_cka").any()


def test_a_probe_has_the_labels_of_its_own_queries(made: Made) -> None:
    """Every other query is kept: labels by their place in the sample would all be wrong."""
    wrong = [("odd", "even")[i // 2 % 2] for i in range(len(SAMPLE))]
    assert wrong != made.labels
    value = made.rows("probe_transfer", "prompt", "lora")["value"].to_numpy()
    other = [
        probe_pair(made.at("prompt", layer), made.at("lora", layer), wrong, SEED)[
            "probe_transfer"
        ].value
        for layer in range(LAYERS)
    ]
    assert np.isfinite(value).all()
    assert (value != other).any()
