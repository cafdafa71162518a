"""Rows of an interchange, restated in numpy from the definitions (docs/reference/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from interp.errors import ConfigError
from interp.patching.effects import (
    PATCHING_CONTROLS,
    Effects,
    Resampling,
    best_layer,
    effect_rows,
    equivalence_depth,
    halves,
    matched,
)
from interp.patching.sites import PatchSite
from interp.runs.files import COLUMNS, as_table

N, LAYERS, HEADS = 12, 4, 2
TOLERANCE = 0.02
KEYS = [f"matched:{i}" for i in range(N)]
OWN = [("a", "b"), ("b", "a"), ("a", "base"), ("b", "base"), ("base", "a"), ("base", "b")]
CONTROLLED = OWN[:4]

WHOLE = tuple(
    PatchSite(site, i, None, "all") for site in ("resid_post", "mlp_out") for i in range(LAYERS)
)
ALONE = tuple(PatchSite("resid_post", i, None, p) for i in range(LAYERS) for p in ("last", "2"))
BY_HEAD = tuple(PatchSite("z", i, h, "all") for i in range(LAYERS) for h in range(HEADS))
CELLS = (*WHOLE, *ALONE, *BY_HEAD)
SHORT = np.arange(N) % 3 == 0
"""Queries of two tokens: they have no position 2."""


def scale(replicates: int = 100, permutations: int = 99) -> Resampling:
    return Resampling.of(KEYS, replicates, permutations, 0, TOLERANCE)


def move(source: str, target: str, control: str = "", **fixed: Any) -> Effects:
    """Random effects that deserve the name: positive divergences, NaN where there is no token."""
    generator = np.random.default_rng([len(source), *map(ord, source + target + control)])
    cells = WHOLE if control else CELLS
    found = {
        "to_target": generator.gamma(1.0, 0.5, (N, len(cells))),
        "to_source": generator.gamma(1.0, 0.3, (N, len(cells))),
        "log_odds": generator.normal(size=(N, len(cells))),
    }
    for values in found.values():
        for column, cell in enumerate(cells):
            if cell.position == "2":
                values[SHORT, column] = np.nan
    own = np.random.default_rng(list(map(ord, source + target)))  # the same beside a control
    odds = {
        name: np.random.default_rng(list(map(ord, name))).normal(size=N)
        for name in (source, target)
    }
    return Effects(
        source,
        target,
        control,
        cells,
        **(found | {"apart": own.gamma(2.0, 0.5, N)} | fixed),
        source_odds=odds[source],
        target_odds=odds[target],
    )


def study(**fixed: Any) -> list[Effects]:
    """All moves that a sweep makes."""
    controls = [move(*pair, control) for pair in CONTROLLED for control in PATCHING_CONTROLS]
    return [*(move(*pair, **fixed) for pair in OWN), *controls]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return as_table(effect_rows(study(), scale(), "base"))


def key(row: Any) -> tuple[str, str, str, PatchSite]:
    head = None if pd.isna(row.head) else int(row.head)
    return (
        row.measure,
        row.condition,
        row.reference,
        PatchSite(row.site, int(row.layer), head, row.position),
    )


def expected(effects: list[Effects]) -> dict[tuple[str, str, str, PatchSite], tuple[float, int]]:
    """Every row of a cell by a loop over cells and queries: value and number of queries."""
    found = {}
    by_move = {(e.source, e.target, e.control): e for e in effects}
    for e in effects:
        for j, cell in enumerate(e.cells):
            here = [i for i in range(N) if not np.isnan(e.to_target[i, j])]
            damage = sum(e.to_target[i, j] for i in here) / len(here)
            left = sum(e.to_source[i, j] for i in here) / sum(e.apart[i] for i in here)
            values = {"damage": damage, "recovery": 1 - left}
            if e.control:
                values = {f"{name}_{e.control}": value for name, value in values.items()}
            else:
                moved = sum(e.log_odds[i, j] - e.target_odds[i] for i in here)
                values["answer_change"] = moved / len(here)
                gap = sum(e.source_odds[i] - e.target_odds[i] for i in here)
                values["answer_recovery"] = moved / gap
                if "base" not in (e.source, e.target):
                    base = by_move["base", e.target, ""].to_target
                    values["relative_damage"] = damage * len(here) / sum(base[i, j] for i in here)
            for measure, value in values.items():
                found[measure, e.source, e.target, cell] = (value, len(here))
    return found


def test_every_row_is_the_restated_number(table: pd.DataFrame) -> None:
    by_cell = table[table["layer"].notna()]
    found = {key(row): (row.value, row.n) for row in by_cell.itertuples()}
    wanted = expected(study())
    assert len(found) == len(by_cell)  # no row twice
    assert found.keys() == wanted.keys()
    for place, (value, n) in wanted.items():
        assert found[place][0] == pytest.approx(value, rel=1e-9, abs=1e-12), place
        assert found[place][1] == n, place


def test_rows_have_the_columns_of_a_run(table: pd.DataFrame) -> None:
    assert list(table.columns) == list(COLUMNS)
    assert set(table["queries"]) == {"matched"}
    units = dict(zip(table["measure"], table["units"], strict=True))
    assert units["damage"] == units["answer_change"] == "nats"
    assert units["recovery_random_difference"] == "share"
    assert units["relative_damage"] == "ratio"
    assert units["state_equivalence_depth"] == "layer"


def test_intervals_resample_queries_by_their_weights(table: pd.DataFrame) -> None:
    """Replicate by replicate, with numpy's order statistics at (B + 1) q."""
    weights = scale().weights[:, 1:]
    e = move("a", "base")
    column = CELLS.index(PatchSite("resid_post", 1, None, "2"))
    here = ~SHORT
    replicates = [
        1 - (w[here] @ e.to_source[here, column]) / (w[here] @ e.apart[here]) for w in weights.T
    ]
    low, high = np.quantile(replicates, [0.025, 0.975], method="weibull")
    row = one(table, "recovery", "a", "base", layer=1, site="resid_post", position="2")
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), rel=1e-9)
    whole = table[table["layer"].notna() & table["measure"].isin(["damage", "relative_damage"])]
    inside = (whole["ci_low"] <= whole["value"]) & (whole["value"] <= whole["ci_high"])
    assert inside.mean() > 0.95


def one(table: pd.DataFrame, measure: str, source: str, target: str, **where: Any) -> pd.Series:
    kept = table[(table["measure"] == measure) & (table["condition"] == source)]
    kept = kept[kept["reference"] == target]
    for column, value in where.items():
        kept = kept[kept[column] == value]
    [row] = [row for _, row in kept.iterrows()]
    return row


def test_p_stands_where_a_random_difference_was_made(table: pd.DataFrame) -> None:
    whole = table["site"].isin(["resid_post", "mlp_out"]) & (table["position"] == "all")
    pairs = list(zip(table["condition"], table["reference"], strict=True))
    tested = whole & table["measure"].isin(["damage", "recovery"]) & table["layer"].notna()
    tested &= np.array([pair in CONTROLLED for pair in pairs])
    assert tested.sum() == 2 * len(CONTROLLED) * len(WHOLE)
    assert table.loc[tested, "p_adjusted"].between(0, 1).all()
    assert table.loc[~tested, "p_adjusted"].isna().all()


def test_p_by_hand(table: pd.DataFrame) -> None:
    """Sign flips of every query's difference, then Benjamini-Hochberg over the site's layers."""
    signs = scale().signs
    own, control = move("a", "b"), move("a", "b", "random_difference")
    for measure, name in (("damage", "to_target"), ("recovery", "to_source")):
        d = getattr(own, name)[:, LAYERS : 2 * LAYERS] - getattr(control, name)[:, LAYERS:]
        statistics = np.abs(signs.T @ d)  # [rearrangement, layer]
        p = (statistics >= statistics[0] - 1e-9).mean(0)
        order = np.argsort(p)
        adjusted = np.empty(LAYERS)
        for place, layer in enumerate(order):
            rest = [p[order[k]] * LAYERS / (k + 1) for k in range(place, LAYERS)]
            adjusted[layer] = min(1.0, *rest)
        for layer in range(LAYERS):
            row = one(table, measure, "a", "b", site="mlp_out", layer=layer, position="all")
            assert row["p_adjusted"] == pytest.approx(adjusted[layer])


def test_without_rearrangements_there_is_no_p() -> None:
    assert effect_rows(study(), scale(permutations=0), "base").get("p_adjusted").isna().all()


def test_the_identities_of_the_scale() -> None:
    """The source's own output: recovery 1; the target's: damage 0 and recovery 0."""
    e = move("a", "b")
    apart = np.repeat(e.apart[:, None], len(CELLS), axis=1)
    odds = {name: np.repeat(v[:, None], len(CELLS), axis=1)
            for name, v in (("a", e.source_odds), ("b", e.target_odds))}  # fmt: skip
    full = replace(e, to_source=0 * apart, log_odds=odds["a"])
    none = replace(e, to_target=0 * apart, to_source=apart, log_odds=odds["b"])
    for effects, share in ((full, 1.0), (none, 0.0)):
        found = effect_rows([effects, move("b", "a")], scale(), "base")
        found = found[found["condition"] == "a"]
        for measure in ("recovery", "answer_recovery"):
            some = found[found["measure"] == measure]
            assert np.allclose(some[["value", "ci_low", "ci_high"]], share)
    assert (found.loc[found["measure"] == "damage", "value"] == 0).all()
    assert (found.loc[found["measure"] == "answer_change", "value"] == 0).all()


def test_between_matched_outputs_there_is_nothing_to_recover() -> None:
    """Undefined, not 0: value and interval NaN, no query counts, no test; damage stays."""
    found = as_table(effect_rows(study(apart=np.full(N, TOLERANCE)), scale(), "base"))
    shares = found[found["measure"].isin(["recovery", "answer_recovery"])]
    assert len(shares) == 2 * len(OWN) * len(CELLS)
    assert shares[["value", "ci_low", "ci_high", "p_adjusted"]].isna().all(axis=None)
    assert (shares["n"] == 0).all()
    damage = found[found["measure"] == "damage"]
    assert damage["value"].notna().all()
    assert (damage["n"] > 0).all()
    assert not matched(move("a", "b", apart=np.full(N, 1.01 * TOLERANCE)), scale())


def test_the_order_of_queries_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(N)
    keys = [KEYS[i] for i in order]
    shuffled = [e.of_queries(order) for e in study()]  # an index is a mask's generalisation
    again = effect_rows(shuffled, Resampling.of(keys, 100, 99, 0, TOLERANCE), "base")
    pd.testing.assert_frame_equal(again, effect_rows(study(), scale(), "base"), rtol=1e-9)


def test_moves_at_different_cells_cannot_be_related() -> None:
    shorter = move("base", "b").of(np.arange(len(CELLS)) > 0)
    with pytest.raises(ValueError, match="moves into b were made at different cells"):
        effect_rows([move("a", "b"), move("b", "a"), shorter], scale(), "base")


# --- depths ---------------------------------------------------------------------------------------


def naive_depth(damage: np.ndarray, tolerance: float) -> float:
    for layer in range(len(damage)):
        if all(value <= tolerance for value in damage[layer:]):
            return layer
    return len(damage)


@given(
    arrays.arrays(np.float64, (3, 5), elements=st.sampled_from([0.0, 0.01, TOLERANCE, 0.021, 1.0])),
)
def test_depth_against_a_loop(damage: np.ndarray) -> None:
    found = equivalence_depth(damage, TOLERANCE)
    assert found.tolist() == [naive_depth(row, TOLERANCE) for row in damage]


def test_undefined_damage_has_no_depth() -> None:
    assert np.isnan(equivalence_depth(np.array([0.0, np.nan, 0.0]), TOLERANCE))


def curve(source: str, target: str, by_layer: list[float], spread: float = 0.0) -> Effects:
    """A move whose residual stream does so much damage at every layer."""
    e = move(source, target)
    to_target = e.to_target.copy()
    even = np.where(np.arange(N) % 2, 1 + spread, 1 - spread)
    to_target[:, :LAYERS] = even[:, None] * np.array(by_layer)
    return replace(e, to_target=to_target)


def depths(ab: Effects, ba: Effects) -> Mapping[tuple[str, str, str], pd.Series]:
    found = as_table(effect_rows([ab, ba, move("base", "a"), move("base", "b")], scale(), "base"))
    found = found[found["units"] == "layer"]
    assert found["layer"].isna().all()
    assert set(found["site"]) == {"resid_post"}
    return {(r["measure"], r["condition"], r["reference"]): r for _, r in found.iterrows()}


def test_the_depth_of_both_directions_is_the_deeper() -> None:
    found = depths(curve("a", "b", [1, 0, 0, 0]), curve("b", "a", [0, 1, 0.01, 0]))
    values = {place: row["value"] for place, row in found.items()}
    assert values == {
        ("interchange_depth", "a", "b"): 1,
        ("interchange_depth", "b", "a"): 2,
        ("state_equivalence_depth", "a", "b"): 2,
    }
    assert all((row["n"], row["ci_low"], row["ci_high"]) == (N, row["value"], row["value"])
               for row in found.values())  # fmt: skip


def test_where_no_layer_will_do_there_is_no_depth() -> None:
    found = depths(curve("a", "b", [0, 0, 0, 1]), curve("b", "a", [0, 0, 0, 0]))
    for measure in ("interchange_depth", "state_equivalence_depth"):
        assert found[measure, "a", "b"][["value", "ci_low", "ci_high"]].isna().all()
    assert found["interchange_depth", "b", "a"]["value"] == 0


def test_an_uncertain_depth_has_an_interval() -> None:
    borderline = curve("a", "b", [0.019, 0.001, 0, 0], spread=0.9)
    row = depths(borderline, curve("b", "a", [0, 0, 0, 0]))["interchange_depth", "a", "b"]
    assert (row["value"], row["ci_low"], row["ci_high"]) == (0, 0, 1)


# --- halves, best layers --------------------------------------------------------------------------


@given(st.integers(2, 30), st.integers(0, 5), st.randoms(use_true_random=False))
def test_halves_cover_all_queries_and_share_none(n: int, seed: int, random: Any) -> None:
    keys = [f"matched:{i}" for i in range(n)]
    selection, scoring = halves(keys, seed)
    assert (selection ^ scoring).all()
    assert selection.sum() == n // 2
    order = random.sample(range(n), n)
    again, _ = halves([keys[i] for i in order], seed)
    assert (again == selection[order]).all()


def test_halves_are_drawn() -> None:
    keys = [f"matched:{i}" for i in range(40)]
    drawn = np.array([halves(keys, seed)[0] for seed in range(200)])
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.15
    with pytest.raises(ConfigError, match="1 queries cannot be halved"):
        halves(keys[:1], 0)


def planted(least: str) -> tuple[Effects, np.ndarray]:
    """Layer 1 is best on the one half, layer 2 on the other, the last on both."""
    selection, scoring = halves(KEYS, 0)
    value = np.full((N, LAYERS), 0.9)
    value[selection, 1], value[scoring, 1] = 0.1, 0.7
    value[selection, 2], value[scoring, 2] = 0.6, 0.2
    value[:, 3] = 0.0
    e = move("a", "b", apart=np.full(N, 1.0 if least == "to_source" else 0.01))
    changed = getattr(e, least).copy()
    changed[:, :LAYERS] = value
    return replace(e, **{least: changed}), selection


def test_a_layer_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    effects, selection = planted("to_source")
    best = best_layer(effects, scale(), selection)
    assert (best.layer, best.measure, best.n) == (1, "recovery", N - N // 2)
    assert best.value == pytest.approx(1 - 0.7)  # not 0.9, what it was chosen for
    assert best.ci_low <= best.value <= best.ci_high


def test_by_damage_where_outputs_are_matched() -> None:
    effects, selection = planted("to_target")
    best = best_layer(effects, scale(), selection)
    assert (best.layer, best.measure) == (1, "damage")
    assert best.value == pytest.approx(0.7)


def test_nothing_of_the_scoring_half_chooses() -> None:
    effects, selection = planted("to_source")
    other = effects.to_source.copy()
    other[~selection] = np.random.default_rng(1).gamma(1.0, 1.0, other[~selection].shape)
    changed = best_layer(replace(effects, to_source=other), scale(), selection)
    assert changed.layer == 1
    assert changed.value != pytest.approx(1 - 0.7)
    same = effects.to_source.copy()
    same[selection, 1] = 0.05  # still the best: the score is what it was
    again = best_layer(replace(effects, to_source=same), scale(), selection)
    assert again == best_layer(effects, scale(), selection)
