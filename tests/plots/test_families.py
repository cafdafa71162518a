"""Figures of families, controls, terms and geometry: the table's numbers, and honest marks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from plots.synthetic_families import CONDITIONS, FLOORS, NULLS, ODD

from interp import plots
from interp.families import distances
from interp.plots import bands
from interp.plots.by_head import head_changes
from interp.plots.embedding import condition_embedding
from interp.plots.families import divergence, head_divergence
from interp.plots.gallery import RECIPES
from interp.plots.geometry import dimensions, similarity
from interp.plots.head import head_view
from interp.plots.influence import waterfall
from interp.plots.information import information_by_layer
from interp.plots.tidy import tidy
from interp.runs.embedding import condition_maps
from interp.runs.heads import HeadView
from interp.runs.terms import terms
from interp.runs.view import NotMeasured, Run

PLACE = ["measure", "condition", "reference", "site", "layer", "position", "queries"]


def same_as_table(drawn, run: Run, keys: list[str]) -> None:
    """Every drawn number is the table's, and none is drawn twice."""
    both = drawn.merge(run.table, on=keys, suffixes=("", "_table"), how="left")
    assert len(both) == len(drawn) > 0
    np.testing.assert_allclose(both["value"], both["value_table"].astype(float), rtol=1e-5)


def test_the_null_band_is_the_controls_smallest_and_largest_value(run: Run) -> None:
    band, floor = bands.null_bands(run, "relative_l2", "resid_post")
    near = [(c, r) for name, c, r in NULLS if name != "untrained"]
    for found, pairs in ((band, near), (floor, FLOORS)):
        for layer, low, high in zip(found.layer, found.low, found.high, strict=True):
            rows = [run.rows("relative_l2", "resid_post", p, "last") for p in pairs]
            values = [float(r.loc[r["layer"] == layer, "value"].iloc[0]) for r in rows]
            assert (low, high) == (min(values), max(values))
    assert band.name == "controls vs lora"


def test_floors_and_every_control_are_in_the_figures_numbers(run: Run) -> None:
    drawn = tidy(plots.layers(run, measures=("relative_l2",)))
    edges = drawn[drawn["low"].notna()]
    assert set(edges["band"]) == {"within families"}
    lines = drawn[drawn["band"] == "controls vs lora"]
    same_as_table(lines.drop(columns=["n", "p_adjusted"]), run, PLACE)
    assert len(lines) == (len(run.nulls) - 1) * 4 * 3  # the null pair is a line of its own


def test_a_control_is_a_line_and_the_untrained_one_is_off(run: Run) -> None:
    drawn = {t.name: t for t in plots.layers(run).data if str(t.name).startswith("control: ")}
    assert len(drawn) == len(run.nulls) - 1
    off = [name for name, trace in drawn.items() if trace.visible == "legendonly"]
    assert off == [name for name in drawn if "untrained" in name]
    [band, _] = bands.null_bands(run, "relative_l2", "resid_post", "last")
    far = band.members[run.nulls["untrained"]]
    others = [own for pair, own in band.members.items() if pair != run.nulls["untrained"]]
    assert (band.high == np.max(others, axis=0)).all()
    assert len(far) == len(band.high)


def test_lines_are_drawn_over_their_nulls(run: Run) -> None:
    names = [t.name for t in plots.layers(run).data if t.name]
    assert names.index("control: shifted vs lora") < names.index("prompt vs lora (headline)")


def test_layers_that_are_not_told_apart_have_open_markers(run: Run) -> None:
    figure = plots.layers(run, measures=("relative_l2",))
    line = next(t for t in figure.data if t.name == "prompt vs lora (headline)")
    p = np.asarray(line.customdata)[:, line.meta["custom"].index("p_adjusted")]
    assert [c == "white" for c in line.marker.color] == (p > 0.05).tolist()
    assert set(p) == {np.float32(0.01), np.float32(0.3)}
    assert "Open markers: p > 0.05" in figure.layout.meta["caption"]


def test_divergence_carries_the_table_and_marks_what_is_not_significant(run: Run) -> None:
    figure = divergence(run)
    drawn = tidy(figure)
    same_as_table(drawn, run, PLACE)
    assert len(drawn) == 3 * 3 * 4
    for trace in (t for t in figure.data if t.meta is not None):
        p = np.asarray(trace.customdata)[:, 3]
        assert [c == "white" for c in trace.marker.color] == (p > 0.05).tolist()
    assert [s.y0 for s in figure.layout.shapes] == [1, 1, 1]
    assert figure.data[1].name == "prompt – lora"


@pytest.mark.parametrize("site", ["z", "pattern"])
def test_head_divergence_is_centred_at_one_and_dots_what_is_significant(
    run: Run, site: str
) -> None:
    figure = head_divergence(run, site)
    drawn = tidy(figure)
    same_as_table(drawn, run, [*PLACE, "head"])
    np.testing.assert_allclose(drawn["log2_value"], np.log2(drawn["value"]), rtol=1e-5)
    scale = figure.layout.coloraxis
    assert scale.cmin == -scale.cmax
    assert "1" in scale.colorbar.ticktext
    dots = sum(len(t.x) for t in figure.data if t.type == "scatter")
    assert dots == (drawn["p_adjusted"] <= 0.05).sum()


def test_maps_dot_cells_that_differ_from_their_control(run: Run) -> None:
    figure = plots.head_map(run, "relative_l2")
    dots = [t for t in figure.data if t.type == "scatter" and t.x[0] is not None]
    assert len(dots) == 1
    assert set(dots[0].y) == {0, 2}
    assert "Dots: p ≤ 0.05" in figure.layout.meta["caption"]


def test_the_embedding_keeps_the_distances_between_members(run: Run) -> None:
    found = condition_maps(run, "last", "matched")
    gram = run.arrays["gram_resid_post"].sel(queries="matched", position="last")
    d = distances(gram.transpose("layer", "condition", "condition2").values)
    drawn = np.linalg.norm(found.points[:, :, None] - found.points[:, None], axis=-1)
    inner = [i for i, name in enumerate(CONDITIONS) if name not in {n for n, _, _ in NULLS}]
    for layer in range(4):
        true = d[layer][np.ix_(inner, inner)]
        flat = drawn[layer][np.ix_(inner, inner)]
        scale = np.sqrt(np.diagonal(gram.isel(layer=layer).values)[inner].mean())
        assert (flat * scale <= true + 1e-9).all()  # a projection never lengthens
        share = (flat**2).sum() * scale**2 / (true**2).sum()
        assert share == pytest.approx(found.share[layer])


def test_the_embedding_places_a_control_like_a_condition_with_its_states(run: Run) -> None:
    gram = run.arrays["gram_resid_post"].copy(deep=True)
    twin, control = CONDITIONS.index("lora"), CONDITIONS.index("neutral")
    gram.values[:, control] = gram.values[:, twin]
    gram.values[:, :, control] = gram.values[:, :, twin]
    same = Run(run.path, run.table, {**run.arrays, "gram_resid_post": gram}, run.manifest)
    points = condition_maps(same, "last", "matched").points
    np.testing.assert_allclose(points[:, control], points[:, twin], atol=1e-9)


def test_the_embedding_shows_every_condition_in_every_panel(run: Run) -> None:
    figure = condition_embedding(run)
    drawn = tidy(figure)
    assert drawn.groupby("layer")["condition"].apply(set).tolist() == [set(CONDITIONS)] * 4
    true = condition_maps(run, "last", "matched").points
    row = drawn[(drawn["layer"] == 2) & (drawn["condition"] == "untrained")].iloc[0]
    expected = true[2, CONDITIONS.index("untrained")]
    np.testing.assert_allclose(row[["axis_1", "axis_2"]].astype(float), expected, rtol=1e-5)
    ranges = {tuple(figure.layout[f"xaxis{i or ''}"].range) for i in ("", 2, 3, 4)}
    assert len(ranges) == 1


def test_deep_models_show_twelve_layers_of_the_embedding(make_run: Callable[..., Run]) -> None:
    figure = condition_embedding(make_run(n_layers=40, n_heads=1, head_view=False))
    layers = sorted(set(tidy(figure)["layer"]))
    assert (len(layers), layers[0], layers[-1]) == (12, 0, 39)
    assert "12 of 40 layers" in figure.layout.meta["caption"]


def test_the_waterfall_adds_up_to_the_total(run: Run) -> None:
    drawn = tidy(waterfall(run))
    for _, bars in drawn.groupby(["condition", "reference"]):
        total = bars.loc[bars["term"] == "total", "value"].item()
        assert bars.loc[bars["term"] != "total", "value"].sum() == pytest.approx(total)
    bars = drawn[(drawn["condition"] == "lora") & (drawn["reference"] == "base")]
    head = run.rows("influence", "z", ("lora", "base"))
    bias = run.rows("influence", "attn_bias", ("lora", "base"))
    expected = head.loc[head["layer"] == 2, "value"].sum()
    expected += bias.loc[bias["layer"] == 2, "value"].item()
    assert bars.loc[bars["term"] == "attention 2", "value"].item() == pytest.approx(expected)


def test_every_bar_starts_where_the_last_one_ended(run: Run) -> None:
    parts = terms(run, ("prompt", "base"))
    ends = np.cumsum([t.value for t in parts if t.kind != "total"])
    drawn = tidy(waterfall(run))
    drawn = drawn[(drawn["condition"] == "prompt") & (drawn["reference"] == "base")]
    starts = drawn.set_index("term")["start"]
    for before, term in enumerate(parts[1:-1]):
        assert starts[term.name] == pytest.approx(ends[before])
    assert starts["total"] == 0


def test_information_marks_the_decision_depth_on_its_line(run: Run) -> None:
    figure = information_by_layer(run)
    star = next(t for t in figure.data if t.meta and "decision_depth" in str(t.meta["fixed"]))
    found = run.rows("decision_depth", "output", ("prompt", None))
    assert star.x[0] == pytest.approx(float(found["value"].iloc[0]))
    line = next(t for t in figure.data if t.name == "prompt")
    assert star.y[0] == pytest.approx(np.interp(star.x[0], line.x, line.y), rel=1e-5)
    drawn = tidy(figure)
    lens = drawn[(drawn["measure"] == "lens_js") & drawn["band"].isna()]
    same_as_table(lens, run, PLACE)


def test_geometry_shows_chance_as_its_interval(run: Run) -> None:
    drawn = tidy(similarity(run))
    chance = drawn[drawn["band"] == "chance"]
    for row in chance.itertuples():
        rows = run.rows(row.measure, "resid_post", ("prompt", "lora"), "last")
        here = rows[rows["layer"] == row.layer].iloc[0]
        assert (row.low, row.high) == (here["ci_low"], here["ci_high"])
    assert set(chance["measure"]) == {
        "linear_cka_chance",
        "procrustes_distance_chance",
        "mutual_knn_chance",
    }
    same_as_table(drawn[drawn["band"].isna()], run, PLACE)
    assert set(tidy(dimensions(run))["condition"].dropna()) >= {"prompt", "lora", "base"}


def test_changes_show_all_terms_on_one_centred_scale(run: Run) -> None:
    figure = head_changes(run)
    drawn = tidy(figure)
    assert len(drawn) == 2 * 4 * 4 * 3
    sums = drawn.groupby(["condition", "layer", "head"])["value"].sum()
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax <= -1


def test_hostile_family_names_are_shown_literally(run: Run) -> None:
    for name in ("divergence", "divergence_z", "embedding"):
        figure = RECIPES[name](run)
        shown = [t.name or "" for t in figure.data] + [
            a.text for a in figure.layout.annotations if a.name != "caption"
        ]
        found = [text for text in shown if "instr" in text]
        assert found, name
        assert not any("<b>" in text or "%{" in text for text in found), name
    assert f"{ODD} (2)" in divergence(run).layout.meta["caption"]


def test_a_view_of_many_conditions_is_narrowed_to_the_main_ones(run: Run) -> None:
    view = HeadView.of(run)
    many = [f"c{i}" for i in range(17)]
    wide = HeadView(
        view.head,
        [*view.conditions, *many],
        view.pairs,
        view.tokens,
        np.concatenate([view.patterns, np.repeat(view.patterns[:1], 17, axis=0)]),
        view.content_js,
        view.attended,
    )
    drawn = tidy(head_view(wide, run))
    assert set(drawn.loc[drawn["weight"].notna(), "condition"]) == set(view.conditions)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("divergence", "divergence_index"),
        ("divergence_z", "divergence_index by head"),
        ("embedding", "gram_resid_post"),
        ("influence", "influence"),
        ("influence_heads", "influence"),
        ("information", "logit-lens"),
        ("geometry", "similarity"),
        ("dimensions", "intrinsic dimension"),
        ("changes", "change decomposition"),
    ],
)
def test_runs_without_families_have_the_other_figures(
    make_run: Callable[..., Run], name: str, what: str
) -> None:
    plain = make_run(families=False, n_layers=2)
    with pytest.raises(NotMeasured, match=what):
        RECIPES[name](plain)


def test_a_plain_run_has_its_null_as_a_thread(make_run: Callable[..., Run]) -> None:
    plain = make_run(families=False, n_layers=3)
    found = bands.null_bands(plain, "relative_l2", "resid_post")
    assert [band.name for band in found] == ["controls vs lora"]
    np.testing.assert_array_equal(found[0].low, found[0].high)
