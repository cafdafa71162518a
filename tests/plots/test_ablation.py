"""A LoRA without its parts: the figure shows the table's numbers and names what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from plots.synthetic_parts import APART, CONDITION, MODULES, RANK

from interp.plots.ablation import ablation
from interp.plots.board import Area, Board
from interp.plots.labels import beside
from interp.plots.tidy import tidy
from interp.runs.files import as_table
from interp.runs.parts import CHANGE, DAMAGE, EFFECTS, KEPT, NEEDED, TELLING, Parts
from interp.runs.view import NotMeasured, Run


def with_table(run: Run, table: pd.DataFrame) -> Run:
    return Run(run.path, table, run.arrays, run.manifest)


def rows(run: Run, **keys: Any) -> pd.DataFrame:
    table = run.table[run.table["measure"].isin(EFFECTS)]
    for name, value in keys.items():
        table = table[table[name] == value]
    return table


def ablated(run: Run, conditions: list[str], **keys: Any) -> Run:
    """The run with its ablations given to these conditions, narrowed to some."""
    others = run.table[~run.table["measure"].isin(EFFECTS)]
    own = rows(run, **keys)
    return with_table(run, pd.concat([others, *(own.assign(condition=c) for c in conditions)]))


def named(run: Run) -> list[str]:
    texts = [t for t in ablation(run).data if t.type == "scatter" and t.mode == "text"]
    return [name.strip("\u00a0") for trace in texts for name in trace.text]


def test_every_number_of_a_part_is_the_tables(run: Run) -> None:
    drawn = tidy(ablation(run))
    parts = drawn[drawn["site"].astype(str).str.startswith("model.")]
    assert len(parts) == 4 * len(MODULES) + 10
    for measure in EFFECTS:
        both = parts.merge(rows(run, measure=measure), on=["site", "position"])
        assert len(both) == len(parts)
        for end, column in (("", "value"), ("_low", "ci_low"), ("_high", "ci_high")):
            table = both[f"{column}_y"] if f"{column}_y" in both else both[column]
            np.testing.assert_allclose(both[f"{measure}{end}"], table.astype(float), rtol=1e-6)


def test_lines_and_maps_carry_the_table(run: Run) -> None:
    drawn = tidy(ablation(run))
    lines = drawn[drawn["measure"] == KEPT]
    assert sorted(lines["position"].unique()) == ["alone", "first", "off"]
    for position in ("off", "alone"):
        own = rows(run, measure=KEPT, site="block", position=position)
        values = lines.loc[lines["position"] == position, "value"]
        np.testing.assert_allclose(values, own.sort_values("layer")["value"], rtol=1e-6)
    first = lines[lines["position"] == "first"].set_index("directions")["value"]
    assert first[0] == pytest.approx(0)
    assert first[RANK] == pytest.approx(1)
    for measure in (DAMAGE, CHANGE):
        cells = drawn[(drawn["measure"] == measure) & drawn["module_label"].notna()]
        table = rows(run, measure=measure, position="off")
        table = table[table["site"] != "block"]
        kinds = table["site"].str.extract(r"\.(\w+)_proj$")[0]
        both = cells.merge(
            table.assign(module_label=kinds), on=["layer", "module_label"], suffixes=("", "_table")
        )
        assert len(both) == len(cells) == 4 * len(MODULES)
        np.testing.assert_allclose(both["value"], both["value_table"], rtol=1e-6)


def test_the_most_damaging_modules_and_the_by_products_are_named(run: Run) -> None:
    table = run.table.copy()
    module = table["measure"].isin(EFFECTS) & table["site"].str.startswith("model.")
    off = module & (table["position"] == "off").fillna(False)

    def put(measure: str, value: float, site: str | None = None) -> None:
        here = off & (table["measure"] == measure)
        table.loc[here if site is None else here & (table["site"] == site), "value"] = value

    def damaged(damage: float, site: str | None = None) -> None:
        put(DAMAGE, damage, site)
        put(KEPT, 1 - damage / APART, site)

    damaged(1e-4)
    put(CHANGE, 0.01)
    for site, share, change in (
        ("model.layers.1.self_attn.o_proj", 0.8, 0.02),
        ("model.layers.2.mlp.gate_proj", 0.9 * NEEDED, 0.8),
        ("model.layers.3.mlp.up_proj", 1.5 * NEEDED, 0.5),
    ):
        damaged(share * APART, site)
        put(CHANGE, change, site)
    changed = with_table(run, table)
    assert sorted(named(changed)) == ["L1 o", "L2 gate", "L3 up"]  # and no harmless idle one
    assert f"({APART} nats)" in ablation(changed).layout.meta["caption"].replace("2.50", "2.5")
    figure = ablation(changed)
    shade = next(s for s in figure.layout.shapes if s.type == "rect")
    axes = [figure.layout[f"{a}axis{shade[f'{a}ref'].split()[0][1:]}"] for a in "xy"]
    left, top = (
        10 ** (a.range[0] + share * (a.range[1] - a.range[0]))
        for a, share in zip(axes, (shade.x0, shade.y1), strict=True)
    )
    assert (left, top) == (pytest.approx(TELLING), pytest.approx(NEEDED * APART))


def test_the_single_directions_are_those_without_which_least_is_kept(run: Run) -> None:
    drawn = tidy(ablation(run))
    shown = drawn[drawn["position"].astype(str).str.startswith("direction ")]
    single = rows(run, measure=KEPT)
    single = single[single["position"].str.startswith("direction ")].sort_values("value")
    np.testing.assert_allclose(shown[KEPT], single["value"][:10], rtol=1e-6)
    assert shown["site"].tolist() == single["site"][:10].tolist()


def test_no_damage_is_drawn_at_the_edge_and_stays_nothing(run: Run) -> None:
    table = run.table.copy()
    none = (table["measure"] == DAMAGE) & (table["site"] == "model.layers.0.mlp.up_proj")
    table.loc[none, "value"] = 0.0
    figure = ablation(with_table(run, table))
    drawn = tidy(figure).query("site == 'model.layers.0.mlp.up_proj' and position == 'off'")
    assert drawn[DAMAGE].tolist() == [0.0]
    up = next(t for t in figure.data if t.name == "up")
    assert min(up.y) == 1e-5


def test_two_conditions_stand_below_each_other_and_the_others_are_named(run: Run) -> None:
    one, three = ablation(run), ablation(ablated(run, [CONDITION, "<b>x", "y"]))
    assert three.layout.height > 1.8 * one.layout.height
    headings = [a.text for a in three.layout.annotations]
    assert "lora: without a layer, and with it alone" in headings
    assert "&lt;b&gt;x: without a layer, and with it alone" in headings
    assert "Also ablated, in the table: y" in three.layout.meta["caption"]
    names = [t.name for t in three.data if t.name and t.showlegend]
    assert len(names) == len(set(names)) == 3 + len(MODULES)


def test_a_part_that_was_not_measured_has_no_panel(run: Run) -> None:
    blocks = tidy(ablation(ablated(run, [CONDITION], site="block")))
    assert set(blocks["site"]) == {"block"}
    others = with_table(run, rows(run))
    modules = others.table[others.table["site"].str.startswith("model.")]
    figure = ablation(with_table(run, modules[modules["position"] == "off"]))
    assert "Directions" not in figure.layout.meta["caption"]
    with pytest.raises(NotMeasured, match="ablations"):
        ablation(ablated(run, []))


def test_modules_of_one_name_are_told_apart(run: Run) -> None:
    paths = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    base = rows(run, measure=DAMAGE, position="off", layer=0).iloc[:1]
    table = pd.concat(
        [base.assign(site=f"transformer.h.{i}.{p}", layer=i) for i in (0, 1) for p in paths]
        + [base.assign(site="lm_head", layer=pd.NA)]
    )
    parts = Parts.of(with_table(run, as_table(table)), CONDITION)
    assert parts.kinds == ["c_attn", "c_fc", "attn.c_proj", "mlp.c_proj", "lm_head"]
    assert parts.modules["name"].tolist()[-2:] == ["L1 mlp.c_proj", "lm_head"]


def test_labels_cross_neither_marks_nor_each_other_and_stay_in_the_panel() -> None:
    rng = np.random.default_rng(0)
    size, points = (300, 200), rng.uniform(0, 1, (40, 2)) * [300, 200]
    names = [f"L{i} down" for i in range(40)]
    sides = beside(points, names, points, size)
    shift = {"left": -0.5, "right": 0.5, "top": 0.5, "bottom": -0.5}
    boxes = []
    for point, name, side in zip(points, names, sides, strict=True):
        if side is None:
            continue
        up, right = (shift.get(word, 0) for word in side.split())
        width = 6.2 * len(name) + 4
        low = point + np.array([right * (width + 10) - width / 2, up * 24 - 7])
        boxes.append((low, low + np.array([width, 14])))
    assert 5 < len(boxes) < 40
    for i, (low, high) in enumerate(boxes):
        assert (low >= 0).all()
        assert (high <= [300, 200]).all()
        assert not ((points > low) & (points < high)).all(axis=1).any()
        assert not any((low < b).all() and (a < high).all() for a, b in boxes[:i])


def test_panels_stand_where_they_were_put() -> None:
    board = Board(left=100, right=100)
    for area in (Area(200, 100, 400, 200), Area(0, 300, 800, 100)):
        board.add(area, "", {})
    layout = board.dress("", "").layout
    assert layout.xaxis.domain == layout.yaxis.domain == (0.25, 0.75)
