"""A LoRA without its parts: the figure shows the table's numbers and names what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from plots.synthetic_parts import APART, CONDITION, MODULES, RANK

from interp.plots.ablation import ablation
from interp.plots.tidy import tidy
from interp.runs.files import as_table
from interp.runs.parts import CHANGE, DAMAGE, EFFECTS, KEPT, NEEDED, TELLING, Parts
from interp.runs.view import NotMeasured, Run
from interp.showing import number


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
    modules = [t for t in figure.data if t.name in ("needed", "by-product", "neither")]
    assert min(y for t in modules for y in t.y) == 1e-5


def test_two_conditions_stand_below_each_other_and_the_others_are_named(run: Run) -> None:
    one, three = ablation(run), ablation(ablated(run, [CONDITION, "<b>x", "y"]))
    assert three.layout.height > 1.8 * one.layout.height
    headings = [a.text for a in three.layout.annotations]
    assert "lora: ● without the layer, ◇ with the layer alone" in headings
    assert "&lt;b&gt;x: ● without the layer, ◇ with the layer alone" in headings
    assert "Also ablated, in the table: y" in three.layout.meta["caption"]
    assert three.layout.title.text.count("of its effect with layer") == 2
    assert not three.layout.showlegend  # headings and zones name what is drawn


def test_what_is_kept_is_on_one_scale_and_the_title_says_how_little_does_it(run: Run) -> None:
    figure = ablation(run)
    kept = [a for a in (figure.layout.yaxis, figure.layout.yaxis2, figure.layout.yaxis3) if a]
    assert len({tuple(axis.range) for axis in kept}) == 1
    assert [axis.matches for axis in kept] == [None, "y", "y"]
    alone = rows(run, measure=KEPT, site="block", position="alone")
    best = alone.loc[alone["value"].astype(float).idxmax()]
    words = f"lora keeps {number(float(best['value']))} of its effect with layer {best['layer']}"
    assert words in figure.layout.meta["title"]
    off = rows(run, measure=KEPT, position="off")
    off = off[off["site"] != "block"]["value"].astype(float)
    counted = f"needed by itself: {int((off < 1 - NEEDED).sum())} of {len(off)} modules"
    assert counted in figure.layout.meta["title"]


def test_modules_have_the_colour_of_what_their_absence_says(run: Run) -> None:
    drawn = {t.name: t for t in ablation(run).data if t.name and t.mode == "markers"}
    parts = Parts.of(run, CONDITION).modules
    kinds = {
        "needed": parts[KEPT] < 1 - NEEDED,
        "by-product": (parts[KEPT] >= 1 - NEEDED) & (parts[CHANGE] >= TELLING),
    }
    for name, own in kinds.items():
        assert len(drawn[name].x if name in drawn else ()) == own.sum()
    assert sum(len(t.x) for t in drawn.values()) == len(parts)


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
