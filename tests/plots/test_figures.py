"""Figures show the table's numbers, on shared scales, under an honest title."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from interp import plots
from interp.plots.gallery import RECIPES
from interp.plots.tidy import tidy
from interp.positions import SEGMENTS
from interp.registry import MEASURES
from interp.runs.heads import HeadView
from interp.runs.view import NotMeasured, Run

ABSENT = {
    "segments",
    "answer_tokens",
    "interchange_segments",
    "interchange_contexts",
    "routing",
    "subspaces",
    "edges",
    "ladder",
    "scores",
}
"""Figures of what the synthetic run has not: answers of several tokens, experts, split scores,
exchanged contexts, subspaces, edges, a ladder."""

KEYS = ["condition", "reference", "layer", "head"]


def test_lines_carry_the_tables_values_and_intervals(run: Run) -> None:
    drawn = tidy(plots.layers(run))
    drawn = drawn[drawn["band"].isna()]
    table = run.table[run.table["position"] == "last"]
    keys = ["measure", "site", "condition", "reference", "layer", "queries"]
    both = drawn.merge(table, on=keys, suffixes=("", "_table"))
    assert len(both) == len(drawn) == 4 * (3 * 4 + 3 * 2)
    for column in ("value", "ci_low", "ci_high", "n"):
        np.testing.assert_allclose(both[column], both[f"{column}_table"].astype(float), rtol=1e-6)


@pytest.mark.parametrize("measure", ["content_js", "sim_am_delta", "rewiring_share"])
def test_maps_carry_the_tables_values(run: Run, measure: str) -> None:
    drawn = tidy(plots.head_map(run, measure))
    table = run.table[run.table["measure"] == measure]
    both = drawn.merge(table, on=KEYS, suffixes=("", "_table"))
    assert len(both) == len(drawn) > 0
    np.testing.assert_allclose(both["value"], both["value_table"], rtol=1e-6)


def test_undefined_cells_stay_undefined_and_are_drawn_grey(run: Run) -> None:
    figure = plots.head_map(run, "content_js")
    values, greys = figure.data[0].z, figure.data[1].z
    assert np.isnan(values[1, 0])
    assert np.isfinite(greys[1, 0])
    assert np.isfinite(greys).sum() == 1
    drawn = tidy(figure)
    assert drawn.loc[(drawn["layer"] == 1) & (drawn["head"] == 0), "value"].isna().all()
    assert "undefined" in [trace.name for trace in figure.data]


def test_panels_share_one_scale_and_signed_measures_are_centred(run: Run) -> None:
    for measure in ("content_js", "sim_am_delta", "prefix_mass"):
        figure = plots.head_map(run, measure)
        panels = [t for t in figure.data if t.type == "heatmap" and t.meta["z"] == "value"]
        assert {trace.coloraxis for trace in panels} == {"coloraxis"}
        top = max(np.nanmax(np.abs(trace.z)) for trace in panels)
        scale = figure.layout.coloraxis
        assert scale.cmax == pytest.approx(top)
        assert scale.cmin == pytest.approx(-top if MEASURES[measure].signed else 0)


def test_the_null_stands_beside_the_headline(run: Run) -> None:
    titles = [a.text for a in plots.head_map(run, "content_js").layout.annotations]
    assert titles[:2] == ["prompt vs lora (headline)", "neutral vs lora (null control)"]
    sides = [a.text for a in plots.head_map(run, "prefix_mass").layout.annotations]
    assert sides[:3] == ["prompt", "lora", "neutral"]


def test_positions_keep_last_apart(run: Run) -> None:
    figure = plots.layer_position(run, "relative_l2", "resid_post")
    ticks = figure.layout.xaxis
    assert ticks.ticktext[-1] == "last"
    assert ticks.tickvals[-1] == 13
    assert np.isnan(figure.data[0].z[:, 12]).all()
    assert set(tidy(figure)["position_label"].dropna()) == {"last"}


def test_outputs_carry_values_and_the_tolerance(run: Run) -> None:
    figure = plots.output(run)
    drawn = tidy(figure)
    table = run.table[run.table["measure"].isin(["js_divergence", "top1_agreement"])]
    both = drawn.merge(table, on=["measure", "condition", "reference", "queries"])
    assert len(both) == len(drawn) > 0
    np.testing.assert_allclose(both["value_x"], both["value_y"])
    pairs = drawn[["condition", "reference"]].drop_duplicates()
    assert len(pairs) == 16 < len(table[["condition", "reference"]].drop_duplicates())
    assert tuple(pairs.iloc[0]) == ("prompt", "lora")
    assert [shape.x0 for shape in figure.layout.shapes] == [0.02, 0.95]


def test_a_pair_keeps_its_colour(run: Run) -> None:
    line = next(t for t in plots.layers(run).data if t.name == "prompt vs lora (headline)")
    box = next(t for t in plots.head_view(HeadView.of(run), run).data if t.type == "box")
    dots = plots.output(run).data[0]
    assert line.line.color == box.line.color == dots.marker.color[0] == "#0072B2"


def test_every_caption_says_what_a_reader_needs(run: Run) -> None:
    for name, figure in plots.figures(run).items():
        caption = figure.layout.meta["caption"]
        for part in ("tiny-llama", "n = 64", "Poisson bootstrap", "Seed 3", "PASS prompt vs lora"):
            assert part in caption, name
        shown = [a.text for a in figure.layout.annotations if a.name == "caption"]
        assert len(shown) == 1, name


def test_a_failed_certificate_opens_every_title(failed: Run, run: Run) -> None:
    for figure in plots.figures(failed).values():
        assert figure.layout.title.text.startswith("OUTPUTS NOT MATCHED - ")
        assert "FAIL prompt vs lora" in figure.layout.meta["caption"]
    for figure in plots.figures(run).values():
        assert "NOT MATCHED" not in figure.layout.title.text


def test_duplicate_tokens_keep_their_columns_and_hostile_ones_are_escaped(run: Run) -> None:
    figure = plots.head_view(HeadView.of(run), run)
    ticks = figure.layout.xaxis
    assert len(ticks.tickvals) == len(set(ticks.tickvals)) == len(ticks.ticktext) == 13
    assert list(ticks.ticktext).count("␣the") == 2
    assert figure.data[0].z.shape == (12, 14)
    assert "<" not in "".join(ticks.ticktext)
    assert "%{" not in "".join(ticks.ticktext)


def test_head_view_without_rows_of_prefix_mass_shows_that_of_its_examples(run: Run) -> None:
    view = HeadView.of(run)
    bare = replace(run, table=run.table[run.table["measure"] != "prefix_mass"])
    drawn = tidy(plots.head_view(view, bare))
    mass = drawn[drawn["measure"] == "prefix_mass"].set_index("condition")["value"]
    ends = [view.patterns[1, q, len(t) - 1, 0] for q, t in enumerate(view.tokens)]
    assert mass["prompt"] == pytest.approx(np.mean(ends))


@pytest.mark.parametrize(
    "shape",
    [{"n_layers": 1, "n_heads": 1, "tokens": ["a"]}, {"n_layers": 40, "n_heads": 2, "seed": 1}],
)
def test_small_and_deep_models_are_drawn(make_run: Callable[..., Run], shape: dict) -> None:
    assert set(plots.figures(make_run(**shape))) == set(RECIPES) - ABSENT


def test_what_was_not_measured_is_left_out_or_named(make_run: Callable[..., Run]) -> None:
    run = make_run(head_view=False)
    table = run.table[run.table["measure"] != "content_js"]
    partial = Run(run.path, table, run.arrays, run.manifest)
    names = set(plots.figures(partial))
    assert not {"heads_content_js", "head_view"} & names
    with pytest.raises(NotMeasured, match="content_js"):
        plots.head_map(partial, "content_js")


def test_without_a_headline_conditions_are_compared_with_base(run: Run) -> None:
    manifest = {**run.manifest, "headline": None, "null_pair": None, "certificates": []}
    drawn = plots.figures(Run(run.path, run.table, run.arrays, manifest))
    assert set(drawn) == set(RECIPES) - ABSENT - {"geometry"}  # only the headline's pairs have it
    assert "NOT CERTIFIED" in drawn["layers"].layout.meta["caption"]


def test_answers_have_figures_by_segment_and_by_token(run: Run) -> None:
    """Every segment a column of its own, every token of the answer a point."""
    table, places = run.table, {"mean": SEGMENTS, "last": ("answer_0", "answer_1", "answer_2")}
    more = [
        table[table["position"] == position].assign(position=name)
        for position, names in places.items()
        for name in names
    ]
    answered = replace(run, table=pd.concat([table, *more], ignore_index=True))
    drawn = plots.figures(answered)
    titles = [a.text.split(":")[0] for a in drawn["segments"].layout.annotations]
    assert [title for title in titles if title in SEGMENTS] == [*SEGMENTS]
    tokens = [t for t in drawn["answer_tokens"].data if t.mode == "lines+markers"]
    assert tokens
    assert all(list(trace.x) == [0, 1, 2] for trace in tokens)
