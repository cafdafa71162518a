"""Attribution beside exact patches: the table's numbers, one diagonal, one scale."""

from __future__ import annotations

import numpy as np
import pytest
from plots.synthetic_parts import MOVES

from interp.names import Head
from interp.plots.attribution import STRONGEST, attribution, attribution_heads
from interp.plots.tidy import tidy
from interp.runs.patched import ESTIMATE, EXACT
from interp.runs.view import NotMeasured, Run

KEYS = ["condition", "reference", "site", "layer", "head", "position"]


def without(run: Run, measure: str) -> Run:
    return Run(run.path, run.table[run.table["measure"] != measure], run.arrays, run.manifest)


def test_every_place_has_its_exact_and_its_estimated_change(run: Run) -> None:
    drawn = tidy(attribution(run))
    for column in ("layer", "head"):
        drawn[column] = drawn[column].astype("Int64")
    exact = run.table[(run.table["measure"] == EXACT) & run.table["value"].notna()]
    assert len(drawn) == len(exact) > 0
    for measure in (EXACT, ESTIMATE):
        table = run.table[run.table["measure"] == measure]
        both = drawn.merge(table, on=KEYS)
        assert len(both) == len(drawn)
        np.testing.assert_allclose(both[measure], both["value"].astype(float), rtol=1e-6)
        np.testing.assert_allclose(both[f"{measure}_low"], both["ci_low"].astype(float), rtol=1e-6)


def test_each_direction_has_a_panel_with_one_scale_and_its_diagonal(run: Run) -> None:
    figure = attribution(run)
    diagonals = [t for t in figure.data if t.mode == "lines"]
    assert len(diagonals) == len(MOVES)
    for number, line in enumerate(diagonals, 1):
        suffix = "" if number == 1 else str(number)
        ends = figure.layout[f"xaxis{suffix}"].range
        assert tuple(line.x) == tuple(line.y) == ends == figure.layout[f"yaxis{suffix}"].range
    headings = [a.text for a in figure.layout.annotations if a.font.size == 13]
    assert headings == [f"{source}'s state in {target}'s run" for source, target in MOVES]


def test_panels_show_the_rank_correlations_found(run: Run) -> None:
    entry = {"source": "lora", "target": "base", "site": "z", "by": "head", "cells": 12}
    found = [{**entry, "spearman": -0.034}, {**entry, "by": "position", "spearman": None}]
    manifest = {**run.manifest["interchange"], "attribution": found}
    changed = Run(run.path, run.table, run.arrays, {**run.manifest, "interchange": manifest})
    texts = [a.text for a in attribution(changed).layout.annotations if "ρ" in a.text]
    panels = [t for t in texts if "span" in t]
    assert len(panels) == 1
    assert "z by head: ρ −0.03" in panels[0]
    assert "z by position: ρ undefined" in panels[0]


def test_maps_carry_all_heads_and_the_strongest_by_token(run: Run) -> None:
    figure = attribution_heads(run)
    drawn = tidy(figure)
    heads = run.table[(run.table["measure"] == ESTIMATE) & (run.table["site"] == "z")]
    whole = drawn[drawn["position"] == "all"]
    both = whole.merge(heads, on=[*KEYS[:2], "layer", "head", "position"], suffixes=("", "_table"))
    assert len(both) == len(whole) == len(MOVES) * 12
    np.testing.assert_allclose(both["value"], both["value_table"], rtol=1e-6)
    for source, target in MOVES:
        own = heads[(heads["condition"] == source) & (heads["reference"] == target)]
        every = own[own["position"] == "all"]
        order = every["value"].abs().sort_values(ascending=False).index[:STRONGEST]
        names = [str(Head(*map(int, every.loc[i, ["layer", "head"]]))) for i in order]
        here = drawn[(drawn["condition"] == source) & (drawn["reference"] == target)]
        tokens = here[here["strongest_label"].notna()]
        assert list(dict.fromkeys(tokens["strongest_label"])) == names
        strongest = tokens[tokens["strongest_label"] == names[0]]["value"]
        first = every.loc[order[0]]
        at = own[(own["layer"] == first["layer"]) & (own["head"] == first["head"])]
        single = at[at["position"] != "all"]["value"].astype(float)
        np.testing.assert_allclose(sorted(strongest), sorted(single), rtol=1e-5)


def test_all_maps_share_a_scale_centred_at_zero(run: Run) -> None:
    figure = attribution_heads(run)
    assert {t.coloraxis for t in figure.data} == {"coloraxis"}
    top = max(np.nanmax(np.abs(t.z)) for t in figure.data)
    scale = figure.layout.coloraxis
    assert scale.cmax == pytest.approx(top, rel=1e-6)
    assert scale.cmin == -scale.cmax


def test_without_positions_maps_of_heads_stand_alone(run: Run) -> None:
    kept = run.table[(run.table["measure"] != ESTIMATE) | (run.table["position"] == "all")]
    figure = attribution_heads(Run(run.path, kept, run.arrays, run.manifest))
    assert len(figure.data) == len(MOVES)


def test_without_attributions_there_is_no_figure(run: Run) -> None:
    with pytest.raises(NotMeasured, match="attributions"):
        attribution(without(run, EXACT))
    for draw in (attribution, attribution_heads):
        with pytest.raises(NotMeasured, match="attributions"):
            draw(without(run, ESTIMATE))
