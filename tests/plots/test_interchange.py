"""Figures of an interchange show the table's numbers, on scales that keep nothing at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from interp import plots
from interp.plots.gallery import RECIPES
from interp.plots.scales import Symlog
from interp.plots.tidy import tidy
from interp.runs.view import NotMeasured, Run

NAMES = [f"interchange{part}" for part in ("", "_positions", "_heads", "_patterns", "_overlap")]
KEYS = ["measure", "site", "condition", "reference", "layer", "position"]


def changed(run: Run, table: pd.DataFrame | None = None, **findings: Any) -> Run:
    """The run with another table or other findings of its interchange."""
    manifest = {**run.manifest, "interchange": {**run.manifest["interchange"], **findings}}
    return Run(run.path, run.table if table is None else table, run.arrays, manifest)


def of(run: Run, **keys: Any) -> pd.DataFrame:
    """Rows of the table with these values."""
    kept = np.logical_and.reduce([run.table[k].eq(v).fillna(False) for k, v in keys.items()])
    return run.table[kept]


@pytest.fixture(scope="module")
def by_layer(run: Run) -> go.Figure:
    return plots.interchange(run)


# --- by layer ------------------------------------------------------------------------------------


def test_lines_carry_the_tables_values_and_intervals(run: Run, by_layer: go.Figure) -> None:
    drawn = tidy(by_layer)
    drawn = drawn[drawn["layer"].notna()]
    whole = run.table[run.table["head"].isna()]
    both = drawn.merge(whole, on=KEYS, suffixes=("", "_table"))
    counts = both.groupby("measure").size() / run.manifest["model"]["n_layers"]
    assert len(both) == len(drawn)
    assert counts.to_dict() == {
        "damage": 4,
        "damage_random_difference": 2,
        "damage_random_direction": 2,
        "recovery": 2,
        "recovery_random_difference": 2,
        "recovery_random_direction": 2,
        "relative_damage": 2,
        "relative_l2": 4,
    }
    for column in ("value", "ci_low", "ci_high", "n"):
        np.testing.assert_allclose(both[column], both[f"{column}_table"].astype(float), rtol=1e-6)


def test_damage_lies_where_its_ticks_say(run: Run, by_layer: go.Figure) -> None:
    line = next(t for t in by_layer.data if t.name == "prompt's state" and t.mode)
    values = of(run, measure="damage", site="resid_post", condition="prompt", reference="lora")
    values = values[values["position"] == "all"].sort_values("layer")["value"].to_numpy()
    ticks = by_layer.layout.yaxis
    at = {float(text): where for text, where in zip(ticks.ticktext, ticks.tickvals, strict=True)}
    assert at[0] == 0
    for value, y in zip(values, line.y, strict=True):
        below = max(t for t in at if t <= value)
        above = min(t for t in at if t >= value)
        assert at[below] <= y <= at[above]
    limit = next(t for t in by_layer.data if t.legendgroup == "tolerance")
    assert at[0.01] < limit.y[0] < at[0.1]


def test_a_state_that_costs_nothing_lies_at_zero(run: Run) -> None:
    table = run.table.copy()
    nothing = (table["measure"] == "damage") & (table["reference"] == "lora")
    table.loc[nothing & (table["condition"] == "prompt"), ["value", "ci_low", "ci_high"]] = 0.0
    figure = plots.interchange(changed(run, table))
    line = next(t for t in figure.data if t.name == "prompt's state" and t.mode)
    assert set(line.y) == {0.0}
    assert figure.layout.yaxis.range[0] < 0


def test_layers_are_shared_and_colour_is_whose_state_moves(by_layer: go.Figure) -> None:
    ranges = {tuple(axis.range) for axis in by_layer.select_xaxes()}
    assert len(ranges) == 1
    colours: dict[str, set[str]] = {}
    for trace in by_layer.data:
        if trace.meta and "reference" in trace.meta["fixed"] and trace.mode == "lines+markers":
            colours.setdefault(trace.meta["fixed"]["condition"], set()).add(trace.line.color)
    own = {t.meta["fixed"]["condition"]: t.line.color for t in by_layer.data if t.name in STATES}
    assert own["prompt"] != own["lora"]
    assert "#0072B2" in colours["prompt"]  # and the pair's distance is the headline's blue


STATES = ("prompt's state", "lora's state")


def test_the_depth_is_marked_in_every_panel_or_said_to_be_none(run: Run) -> None:
    marks = [t for t in plots.interchange(run).data if t.legendgroup == "depth"]
    assert [tuple(t.x) for t in marks] == [(2.0, 2.0)] * 6
    assert [t.showlegend for t in marks] == [True] + [False] * 5
    table = run.table.copy()
    table.loc[table["measure"] == "state_equivalence_depth", ["value", "ci_low", "ci_high"]] = None
    never = plots.interchange(changed(run, table))
    assert not [t for t in never.data if t.legendgroup == "depth"]
    assert (
        "Damage stays within 0.02 nats in both directions from no layer on"
        in never.layout.meta["caption"]
    )


def test_the_depths_interval_may_reach_beyond_the_last_layer(run: Run, by_layer: go.Figure) -> None:
    assert "directions from layer 2 [2, 3] on" in by_layer.layout.meta["caption"]
    table = run.table.copy()
    table.loc[table["measure"] == "state_equivalence_depth", "ci_high"] = 4
    figure = plots.interchange(changed(run, table))
    assert "directions from layer 2 [2, none] on" in figure.layout.meta["caption"]


def test_p_values_open_markers(by_layer: go.Figure) -> None:
    line = next(t for t in by_layer.data if t.name == "lora's state" and t.mode)
    assert [c == "white" for c in line.marker.color] == [False, True, False, False]
    assert "Open markers: p > 0.05" in by_layer.layout.meta["caption"]


def test_harm_beyond_the_axis_is_said(run: Run, by_layer: go.Figure) -> None:
    low = by_layer.layout.yaxis4.range[0]  # the first of the second row of three
    assert low == pytest.approx(-1.06)
    assert "Recovery below −1 is off the axis" in by_layer.layout.meta["caption"]
    table = run.table.copy()
    harm = table["measure"].str.startswith("recovery_random")
    table.loc[harm, ["value", "ci_low", "ci_high"]] = 0.1
    mild = plots.interchange(changed(run, table))
    assert "off the axis" not in mild.layout.meta["caption"]


# --- by segment ----------------------------------------------------------------------------------

SHARES = {"query": 0.1, "template": 0.3, "answer": 0.8}


@pytest.fixture(scope="module")
def segmented(run: Run) -> Run:
    """The run with rows of every segment: a share of what all tokens do."""
    table = run.table
    names = table["measure"].str.startswith(("damage", "recovery", "attribution"))
    whole = table[names.astype(bool) & table["position"].eq("all").fillna(False).astype(bool)]
    numbers = ["value", "ci_low", "ci_high"]
    parts = [
        whole.assign(position=segment, **{n: share * whole[n] for n in numbers})
        for segment, share in SHARES.items()
    ]
    return changed(run, pd.concat([table, *parts], ignore_index=True))


def test_every_segments_line_carries_the_tables_values(segmented: Run) -> None:
    figure = plots.interchange_segments(segmented)
    drawn = tidy(figure)
    drawn = drawn[drawn["layer"].notna()]
    whole = segmented.table[segmented.table["head"].isna()]
    both = drawn.merge(whole, on=KEYS, suffixes=("", "_table"))
    n_layers = segmented.manifest["model"]["n_layers"]
    assert len(both) == len(drawn) == 4 * 2 * len(["all", *SHARES]) * n_layers
    assert (both.groupby(["measure", "position"]).size() == 2 * n_layers).all()
    for column in ("value", "ci_low", "ci_high", "n"):
        np.testing.assert_allclose(both[column], both[f"{column}_table"].astype(float), rtol=1e-6)


def test_segments_differ_in_colour_dash_and_mark_and_rows_share_their_scale(segmented: Run) -> None:
    figure = plots.interchange_segments(segmented)
    shown = [t for t in figure.data if t.showlegend and t.mode == "lines+markers"]
    looks = [(t.line.color, t.line.dash, t.marker.symbol) for t in shown]
    assert len(shown) == 5
    coloured = [look for look in looks if look[0] != "#8C8C8C"]
    for part in zip(*coloured, strict=True):
        assert len(set(part)) == 4
    for left, right in (("yaxis", "yaxis2"), ("yaxis3", "yaxis4")):
        assert figure.layout[left].range == figure.layout[right].range
    assert {t.name for t in shown if t.line.color == "#8C8C8C"} == {
        "random difference (same dash and mark)"
    }


def test_maps_of_single_tokens_have_no_segments(run: Run, segmented: Run) -> None:
    for name in ("interchange_positions", "interchange_heads"):
        before, after = (tidy(RECIPES[name](r)) for r in (run, segmented))
        pd.testing.assert_frame_equal(before, after)


def test_a_segment_that_recovers_nothing_defined_is_left_out(segmented: Run) -> None:
    table = segmented.table.copy()
    hole = table["measure"].str.startswith("recovery") & (table["condition"] == "prompt")
    table.loc[hole, ["value", "ci_low", "ci_high"]] = np.nan
    drawn = tidy(plots.interchange_segments(changed(segmented, table)))
    assert set(drawn.loc[drawn["measure"] == "recovery", "condition"]) == {"lora"}


def test_without_segments_there_is_no_such_figure(run: Run) -> None:
    with pytest.raises(NotMeasured, match="by segment"):
        RECIPES["interchange_segments"](run)


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["interchange_positions", "interchange_heads", "interchange_patterns"]
)
def test_maps_carry_the_tables_values(run: Run, name: str) -> None:
    drawn = tidy(RECIPES[name](run))
    single = name == "interchange_positions"
    site = {"interchange_heads": "z", "interchange_patterns": "pattern"}.get(name, "resid_post")
    table = run.table[run.table["site"] == site]
    if single:
        label = drawn["position_label"].where(drawn["position_label"].notna(), drawn["position"])
        drawn = drawn.assign(position=label.astype(str))
    keys = ["measure", "condition", "reference", "layer", "position" if single else "head"]
    both = drawn.merge(table, on=keys, suffixes=("", "_table"))
    assert len(both) == len(drawn) == (6 * 4 * 9 if single else 4 * 4 * 3)
    np.testing.assert_allclose(both["value"], both["value_table"].astype(float), rtol=1e-6)


@pytest.mark.parametrize("name", ["interchange_positions", "interchange_heads"])
def test_what_is_compared_shares_its_colours(run: Run, name: str) -> None:
    figure = RECIPES[name](run)
    axes: dict[str, set[str]] = {}
    for trace in figure.data:
        axes.setdefault(trace.meta["fixed"]["measure"], set()).add(trace.coloraxis)
    assert axes == {"damage": {"coloraxis"}, "recovery": {"coloraxis2"}}
    damage, recovery = figure.layout.coloraxis, figure.layout.coloraxis2
    assert damage.cmin == 0
    assert damage.cmax == pytest.approx(
        max(np.nanmax(t.z) for t in figure.data if t.coloraxis == "coloraxis"), rel=1e-6
    )
    assert recovery.cmin == -recovery.cmax < 0
    bars = [damage.colorbar, recovery.colorbar]
    assert bars[1].y + bars[1].len < bars[0].y  # one above the other, each beside its panels


def test_undefined_recovery_leaves_the_other_measure(run: Run) -> None:
    table = run.table.copy()
    table.loc[table["measure"] == "recovery", ["value", "ci_low", "ci_high"]] = None
    figure = plots.interchange_heads(changed(run, table))
    assert {t.meta["fixed"]["measure"] for t in figure.data} == {"damage"}


def test_the_caption_says_what_of_a_pattern_moves(run: Run) -> None:
    content = plots.interchange_heads(run, "pattern").layout.meta["caption"]
    row = plots.interchange_heads(changed(run, pattern="row"), "pattern").layout.meta["caption"]
    assert "not the mass before it" in content
    assert "Whole rows of the pattern" in row


# --- heads under one condition against the other -------------------------------------------------


def test_points_carry_the_tables_values_under_both(run: Run) -> None:
    drawn = tidy(plots.interchange_overlap(run))
    for by, measure in (("lost", "damage"), ("won", "recovery")):
        found = drawn[drawn["by"] == by].set_index("head")
        assert len(found) == 4 * 3
        for role, condition in (("condition", "prompt"), ("reference", "lora")):
            move = ("base", condition) if by == "lost" else (condition, "base")
            table = of(run, measure=measure, site="z", condition=move[0], reference=move[1])
            names = [f"L{i}H{h}" for i, h in zip(table["layer"], table["head"], strict=True)]
            ours = found.loc[names, f"value_{role}"].to_numpy(float)
            np.testing.assert_allclose(ours, table["value"].to_numpy(float), rtol=1e-6)


def test_the_strongest_are_marked_named_and_counted(run: Run) -> None:
    figure = plots.interchange_overlap(run)
    drawn = tidy(figure)
    for finding in run.manifest["interchange"]["heads"]:
        found = drawn[drawn["by"] == finding["by"]]
        kinds = found.groupby("strongest")["head"].apply(set).to_dict()
        first, second = (set(finding["under"][c]) for c in ("prompt", "lora"))
        assert kinds.get("both", set()) == first & second
        assert kinds.get("condition", set()) == first - second
        assert kinds.get("reference", set()) == second - first
        named = {t for trace in figure.data if trace.meta for t in trace.text if t}
        assert first | second <= named
    caption = figure.layout.meta["caption"]
    share = run.manifest["interchange"]["heads"][0]["share"]
    assert f"Lost: {100 * share:.0f} % of the 3 strongest are the same (p = 0.04)" in caption
    assert "rank correlation of all 12 0.700 (p = 0.001)" in caption


def test_conditions_that_change_places_mirror_the_picture(run: Run) -> None:
    mirrored = changed(run, condition="lora", reference="prompt")
    here, there = (plots.interchange_overlap(r) for r in (run, mirrored))
    at = [
        {
            (t.meta["fixed"]["by"], head): (x, y)
            for t in figure.data
            if t.meta
            for head, x, y in zip(t.hovertext, t.x, t.y, strict=True)
        }
        for figure in (here, there)
    ]
    assert at[0] == {head: (x, y) for head, (y, x) in at[1].items()}


def test_undefined_findings_are_called_so(run: Run) -> None:
    heads = [{**run.manifest["interchange"]["heads"][0], "share": None, "p": None}]
    caption = plots.interchange_overlap(changed(run, heads=heads)).layout.meta["caption"]
    assert "Lost: undefined of the 3 strongest are the same (p undefined)" in caption
    with pytest.raises(NotMeasured):
        plots.interchange_overlap(changed(run, heads=[]))


# --- the scale -----------------------------------------------------------------------------------


def test_symlog_is_odd_monotone_linear_at_zero_and_logarithmic_beyond() -> None:
    scale = Symlog.of([np.array([3.0, -0.2, np.nan])], 3)
    assert scale.knee == pytest.approx(0.001)
    values = np.linspace(-5, 5, 1001)
    assert (np.diff(scale(values)) > 0).all()
    np.testing.assert_allclose(scale(-values), -scale(values))
    assert scale(1e-9) == pytest.approx(1e-9 / (0.001 * np.log(10)), rel=1e-4)
    assert scale(10.0) - scale(1.0) == pytest.approx(1, rel=1e-3)


def test_ticks_stand_at_the_values_they_name() -> None:
    scale = Symlog(0.01)
    ticks = scale.ticks(-0.05, 2.0)
    assert ticks["ticktext"] == ["−0.01", "0", "0.01", "0.1", "1"]
    np.testing.assert_allclose(ticks["tickvals"], scale([-0.01, 0, 0.01, 0.1, 1]))
    assert Symlog(1e-6).ticks(0, 2e-5)["ticktext"] == ["0", "10<sup>−6</sup>", "10<sup>−5</sup>"]
    assert Symlog.of([np.zeros(3)], 2)([0.0]) == [0.0]


# --- what every figure needs ---------------------------------------------------------------------


def test_captions_have_the_interchanges_own_n_and_interval(run: Run) -> None:
    for name in NAMES:
        caption = RECIPES[name](run).layout.meta["caption"]
        assert "n = 60 matched queries" in caption, name
        assert "100 replicates" in caption, name
    assert "Distances: last query token, n = 64" in plots.interchange(run).layout.meta["caption"]
    none = plots.interchange(changed(run, interval={"replicates": 0}))
    assert "no intervals" in none.layout.meta["caption"]


def test_another_pair_than_the_headline_has_its_own_certificate(run: Run) -> None:
    table = run.table.replace({"condition": {"lora": "other"}, "reference": {"lora": "other"}})
    heads = [
        {**f, "under": {"prompt": f["under"]["prompt"], "other": f["under"]["lora"]}}
        for f in run.manifest["interchange"]["heads"]
    ]
    other = changed(run, table, reference="other", heads=heads)
    for name in NAMES:
        figure = RECIPES[name](other)
        assert (
            "NOT CERTIFIED: no match certificate for prompt vs other"
            in figure.layout.meta["caption"]
        )
    assert any(t.name == "other's state" for t in plots.interchange(other).data)


def test_without_an_interchange_there_is_nothing_to_draw(make_run: Callable[..., Run]) -> None:
    run = make_run(patched=False, head_view=False)
    for name in NAMES:
        with pytest.raises(NotMeasured, match="interp patch"):
            RECIPES[name](run)
    assert not set(NAMES) & set(plots.figures(run))


@pytest.mark.parametrize("site", ["z", "pattern"])
def test_sites_that_were_not_exchanged_are_named(run: Run, site: str) -> None:
    partial = changed(run, run.table[run.table["site"] != site])
    with pytest.raises(NotMeasured, match=site):
        plots.interchange_heads(partial, site)
