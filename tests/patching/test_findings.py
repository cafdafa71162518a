"""What a manifest says of an interchange: every number in it is a number of the table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from interp.patching.effects import Effects, Pairs, Resampling, by_move, effect_rows, halves
from interp.patching.findings import (
    by_segment,
    chosen_layers,
    head_overlap,
    patching_verdict,
    plain,
)
from interp.patching.sites import PatchSite
from interp.runs.files import as_table

N, LAYERS, HEADS = 20, 3, 4
KEYS = [f"matched:{i}" for i in range(N)]
PAIR = ("a", "b")
SCALE = Resampling.of(KEYS, 50, 0, 0, tolerance=0.02)

# --- the sentence ---------------------------------------------------------------------------------

Number = tuple[float, float, float]
UNDEFINED = (np.nan, np.nan, np.nan)


def table(depths: dict[tuple[str, str], Number], both: Number, **changed: Number) -> pd.DataFrame:
    """A table by hand: every row of a layer has a value that is found at that layer alone."""
    found: list[dict[str, Any]] = []

    def row(measure: str, source: str, target: str, value: Number, **where: Any) -> None:
        place = {"measure": measure, "condition": source, "reference": target} | where
        ends = dict(zip(("value", "ci_low", "ci_high"), value, strict=True))
        found.append({"site": "resid_post", "position": "all"} | place | ends)

    for layer in range(LAYERS):
        for number, (s, t) in enumerate([("a", "b"), ("b", "a"), ("base", "a"), ("base", "b")]):
            value = 0.1 * layer + number
            row("damage", s, t, (value, value - 0.01, value + 0.01), layer=layer)
            unrelated = (value + 5, value + 4, value + 6)
            row("damage_random_difference", s, t, unrelated, layer=layer)
            row("damage", s, t, (99, 99, 99), layer=layer, position="last")  # never told
            row("damage", s, t, (98, 98, 98), layer=layer, site="attn_out")
            row("damage", s, t, (97, 97, 97), layer=layer, site="z", head=0)
        for number, s in enumerate("ab"):
            value = 0.5 + 0.1 * layer + 0.01 * number
            own = changed.get(f"recovery_{s}", (value, value - 0.1, value + 0.1))
            row("recovery", s, "base", own, layer=layer)
    for (s, t), value in depths.items():
        row("interchange_depth", s, t, value)
    row("state_equivalence_depth", "a", "b", both)
    return as_table(found)


def test_the_sentence() -> None:
    found = table({("a", "b"): (1, 0, 2), ("b", "a"): (2, 1.4, 2.9)}, (2, 1, 3))
    assert patching_verdict(found, PAIR, "base", LAYERS) == (
        "a's state works in b's run from layer 1 on [0, 2]; "
        "b's state works in a's run from layer 2 on [1, none]; "
        "at layer 2 the swap costs at most 1.2 [1.19, 1.21] nats, an unrelated query's difference "
        "of the same length 6.2 [5.2, 7.2], base's state 2.2 [2.19, 2.21]; "
        "a's state alone gives base 0.7 [0.6, 0.8] of its behaviour; "
        "b's state alone gives base 0.71 [0.61, 0.81] of its behaviour."
    )


def test_where_it_works_at_no_layer() -> None:
    found = table({("a", "b"): UNDEFINED, ("b", "a"): (0, 0, LAYERS)}, UNDEFINED)
    said = patching_verdict(found, PAIR, "base", LAYERS)
    assert "a's state works in b's run from no layer on; " in said
    assert "b's state works in a's run from layer 0 on [0, none]; " in said
    assert "at layer 0 the swap costs at most 1 [0.99, 1.01] nats" in said


def test_what_is_undefined_is_not_told() -> None:
    depth = (1, np.nan, np.nan)
    found = table({("a", "b"): depth, ("b", "a"): depth}, depth, recovery_a=UNDEFINED)
    said = patching_verdict(found, PAIR, "base", LAYERS)
    assert "nan" not in said
    assert "from layer 1 on; " in said
    assert "a's state alone" not in said
    assert "b's state alone gives base 0.61" in said


def test_a_number_without_interval_stands_alone() -> None:
    depth = (1, np.nan, np.nan)
    found = table({("a", "b"): depth, ("b", "a"): depth}, depth).assign(
        ci_low=np.nan, ci_high=np.nan
    )
    said = patching_verdict(found, PAIR, "base", LAYERS)
    assert "nan" not in said
    assert "the swap costs at most 1.1 nats, an unrelated query's difference" in said
    assert "of the same length 6.1, base's state 2.1; " in said


# --- best layers and heads ------------------------------------------------------------------------

CELLS = (
    *(PatchSite("resid_post", i, None, "all") for i in range(LAYERS)),
    *(PatchSite("z", i, h, "all") for i in range(LAYERS) for h in range(HEADS)),
)
SEGMENTS = ("query", "answer")
BY_SEGMENT = tuple(PatchSite("resid_post", i, None, p) for p in SEGMENTS for i in range(LAYERS))
NAMES = [f"L{i}H{h}" for i in range(LAYERS) for h in range(HEADS)]


def moves(apart: float = 1.0, cells: tuple[PatchSite, ...] = CELLS) -> Pairs:
    generator = np.random.default_rng(0)
    found = []
    for s, t in [
        ("a", "b"),
        ("b", "a"),
        ("a", "base"),
        ("b", "base"),
        ("base", "a"),
        ("base", "b"),
    ]:
        values = generator.gamma(1.0, 0.3, (3, N, len(cells)))
        own = apart * generator.uniform(0.5, 1.5, N)
        found.append(Effects(s, t, "", cells, *values, own, own, 0 * own))
    return by_move(found)


def test_the_best_layers_of_four_directions() -> None:
    effects, (selection, scoring) = moves(), halves(KEYS, 0)
    found = chosen_layers(effects, PAIR, "base", SCALE, KEYS, 0)
    told = [(best["condition"], best["reference"]) for best in found]
    assert told == [("a", "b"), ("b", "a"), ("a", "base"), ("b", "base")]
    for best in found:
        own = effects[best["condition"], best["reference"], ""]
        shares = [
            [1 - own.to_source[half, i].sum() / own.apart[half].sum() for i in range(LAYERS - 1)]
            for half in (selection, scoring)
        ]  # not the last layer, whose state is the output
        assert best["layer"] == int(np.argmax(shares[0]))
        assert best["value"] == pytest.approx(shares[1][best["layer"]])
        assert (best["measure"], best["site"], best["n"]) == ("recovery", "resid_post", N // 2)


def test_every_segment_has_its_best_layer_scored_on_the_other_half() -> None:
    effects, (selection, scoring) = moves(cells=(*CELLS, *BY_SEGMENT)), halves(KEYS, 0)
    found = by_segment(effects, PAIR, "base", SCALE, SEGMENTS, KEYS, 0)
    told = [(best["condition"], best["position"]) for best in found]
    assert told == [(condition, position) for condition in PAIR for position in SEGMENTS]
    for best in found:
        own = effects[best["condition"], "base", ""]
        start = len(CELLS) + LAYERS * SEGMENTS.index(best["position"])
        columns = own.to_source[:, start : start + LAYERS - 1]  # not the last layer
        layer = int(columns[selection].sum(0).argmin())
        expected = 1 - columns[scoring, layer].sum() / own.apart[scoring].sum()
        assert (best["reference"], best["layer"], best["n"]) == ("base", layer, N // 2)
        assert best["value"] == pytest.approx(expected)
        assert best["ci_low"] < best["value"] < best["ci_high"]


def test_what_says_the_same_as_base_is_carried_by_no_segment() -> None:
    effects = moves(0.01, (*CELLS, *BY_SEGMENT))
    assert by_segment(effects, PAIR, "base", SCALE, SEGMENTS, KEYS, 0) == []


def test_the_strongest_heads_under_both() -> None:
    effects, (selection, _) = moves(), halves(KEYS, 0)
    z = slice(LAYERS, None)
    for told in head_overlap(effects, PAIR, "base", SCALE, KEYS, 99, 0):
        assert told["k"] == 3
        rankings = []
        for condition in PAIR:
            by_half = []
            for half in (np.ones(N, dtype=bool), selection):
                if told["by"] == "lost":
                    values = effects["base", condition, ""].to_target[half, z].mean(0)
                else:
                    own = effects[condition, "base", ""]
                    values = 1 - own.to_source[half, z].sum(0) / own.apart[half].sum()
                by_half.append(values)
            ordered = [[NAMES[i] for i in np.argsort(-values)[:3]] for values in by_half]
            assert told["under"][condition] == ordered[0]
            assert told["selected"][condition] == ordered[1]
            rankings.append(by_half[0])
        shared = set(told["under"]["a"]) & set(told["under"]["b"])
        assert told["share"] == pytest.approx(len(shared) / 3)
        assert told["rank_correlation"] == pytest.approx(spearmanr(*rankings).statistic)
        assert 0 < told["p"] <= 1


def test_a_condition_that_is_base_has_no_winning_heads() -> None:
    lost, won = head_overlap(moves(apart=0.01), PAIR, "base", SCALE, KEYS, 9, 0)
    assert (won["share"], won["p"], won["rank_correlation"]) == (None, None, None)
    assert won["under"] == won["selected"] == {"a": [], "b": []}
    assert len(lost["under"]["a"]) == 3
    assert lost["share"] is not None


def test_findings_are_json() -> None:
    for scale in (SCALE, Resampling.of(KEYS, 0, 0, 0, tolerance=0.02)):  # without intervals too
        found = [
            *chosen_layers(moves(), PAIR, "base", scale, KEYS, 0),
            *head_overlap(moves(apart=0.01), PAIR, "base", scale, KEYS, 9, 0),
        ]
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_plain_values_stay() -> None:
    record = {"a": 1.5, "b": np.nan, "c": "nan", "d": 2, "e": [0.5, np.nan], "f": ("L0H1",)}
    assert plain(record) == {
        "a": 1.5,
        "b": None,
        "c": "nan",
        "d": 2,
        "e": [0.5, None],
        "f": ["L0H1"],
    }


def test_the_sentence_of_a_table_of_effects() -> None:
    """From effects to the sentence: its layer and numbers are the table's."""
    effects = list(moves().values())
    controls = [
        replace(own.at("resid_post"), control="random_difference")
        for own in effects
        if "base" not in (own.source, own.target)
    ]
    found = as_table(effect_rows([*effects, *controls], SCALE, "base"))
    said = patching_verdict(found, PAIR, "base", LAYERS)
    own = found[(found["site"] == "resid_post") & (found["layer"] == 0)]
    damage = own[own["measure"] == "damage"].set_index(["condition", "reference"])["value"]
    assert "from no layer on" in said
    worst = max(PAIR, key=lambda target: damage[("b" if target == "a" else "a"), target])
    other = "b" if worst == "a" else "a"
    assert f"the swap costs at most {damage[other, worst]:.3g} [" in said
    assert f"difference of the same length {damage[other, worst]:.3g} [" in said
    assert f"base's state {damage['base', worst]:.3g} [" in said
