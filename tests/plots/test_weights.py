"""Figures of the weights show the table's numbers, on shared scales, beside their control."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from plots.synthetic_weights import CHANCE, MODULES, PARTS, RANK

from interp import plots
from interp.plots.tidy import tidy
from interp.runs.modules import labelled
from interp.runs.view import NotMeasured, Run
from interp.runs.weights import OF_UPDATES, SIDES


def rows(run: Run, measure: str, **keys: str) -> pd.DataFrame:
    table = run.table[(run.table["measure"] == measure) & run.table["head"].isna()]
    for name, value in keys.items():
        table = table[table[name] == value]
    return table


def without(run: Run, measure: str) -> Run:
    table = run.table[~run.table["measure"].fillna("").str.startswith(measure)]
    return Run(run.path, table, run.arrays, run.manifest)


def test_lines_carry_every_singular_value_of_whole_matrices(run: Run) -> None:
    drawn = tidy(plots.spectra(run))
    drawn = drawn[drawn["measure"] == "singular_value"]
    table = rows(run, "singular_value", condition="lora")
    table = table[~table["site"].str.contains(":")]
    table = table.assign(direction=table["position"].astype(int))
    both = drawn.merge(table, on=["site", "direction"])
    assert len(both) == len(drawn) == 4 * len(MODULES) * RANK
    np.testing.assert_allclose(both["value_x"], both["value_y"], rtol=1e-6)


@pytest.mark.parametrize("measure", OF_UPDATES)
def test_maps_carry_the_table_and_share_a_scale_with_the_control(run: Run, measure: str) -> None:
    figure = plots.spectra(run)
    drawn = tidy(figure)
    drawn = drawn[drawn["measure"] == measure]
    assert set(drawn["condition"]) == {"lora", "random_lora"}
    table = rows(run, measure)
    table = labelled(table[table["layer"].notna()]).rename(columns={"kind": "module_label"})
    both = drawn.merge(table, on=["condition", "layer", "module_label"])
    assert len(both) == len(drawn) == 2 * 4 * (len(MODULES) + len(PARTS))
    np.testing.assert_allclose(both["value_x"], both["value_y"], rtol=1e-6)
    panels = [t for t in figure.data if t.meta and t.meta["fixed"].get("measure") == measure]
    assert len({trace.coloraxis for trace in panels}) == 1
    scale = figure.layout[panels[0].coloraxis]
    assert scale.cmin == 0
    assert scale.cmax == pytest.approx(max(np.nanmax(t.z) for t in panels))


def test_intruders_that_were_not_counted_have_no_map(run: Run) -> None:
    drawn = tidy(plots.spectra(without(run, "intruder_dimensions")))
    assert set(drawn["measure"]) == {"singular_value", *OF_UPDATES[:2]}


@pytest.mark.parametrize("side", SIDES)
def test_the_square_is_the_mean_over_matrices_both_ways_round(run: Run, side: str) -> None:
    drawn = tidy(plots.weights_overlap(run))
    measure = f"subspace_overlap_{side}"
    square = drawn[(drawn["measure"] == measure) & drawn["matrices"].notna()]
    table = rows(run, measure)
    table = table[~table["site"].str.contains(":")]
    means = table.groupby(["condition", "reference"])["value"].mean()
    cells = square.set_index(["condition_label", "reference_label"])["value"]
    assert len(cells) == 2 * len(means) == 20
    for (a, b), value in means.items():
        assert cells[a, b] == pytest.approx(value, rel=1e-6)
        assert cells[b, a] == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(square["chance"], CHANCE)
    np.testing.assert_allclose(square["matrices"], 4 * len(MODULES))


@pytest.mark.parametrize("side", SIDES)
def test_the_map_is_the_mean_of_the_familys_pairs(run: Run, side: str) -> None:
    family = ["lora", "lora_1", "lora_2"]
    assert len(run.weights.family) == 3
    measure = f"subspace_overlap_{side}"
    drawn = tidy(plots.weights_overlap(run))
    cells = drawn[(drawn["measure"] == measure) & drawn["module_label"].notna()]
    table = rows(run, measure)
    table = table[table["condition"].isin(family) & table["reference"].isin(family)]
    table = labelled(table[~table["site"].str.contains(":")])
    wanted = table.groupby(["layer", "kind"])["value"].mean()
    assert len(cells) == len(wanted) == 4 * len(MODULES)
    for row in cells.to_dict("records"):
        assert row["value"] == pytest.approx(wanted[row["layer"], row["module_label"]], rel=1e-6)


def test_a_single_adapter_has_spectra_and_no_overlap(make_run: Callable[..., Run]) -> None:
    run = make_run(families=False)
    assert run.weights.shown == ["lora"]
    assert set(tidy(plots.spectra(run))["condition"]) == {"lora"}
    with pytest.raises(NotMeasured, match="no two changes"):
        plots.weights_overlap(run)


def test_a_run_that_was_not_weighed_has_neither(make_run: Callable[..., Run]) -> None:
    run = make_run(weighed=False)
    for figure in (plots.spectra, plots.weights_overlap):
        with pytest.raises(NotMeasured, match="interp weights"):
            figure(run)


def test_a_deep_model_shows_some_layers_spectra_and_says_so(make_run: Callable[..., Run]) -> None:
    figure = plots.spectra(make_run(n_layers=40, n_heads=1))
    drawn = tidy(figure)
    layers = set(drawn.loc[drawn["measure"] == "singular_value", "layer"])
    assert {0, 39} <= layers
    assert len(layers) <= 13
    assert "at most" in figure.layout.meta["caption"]
