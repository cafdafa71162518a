"""Heads that carry a behaviour: the figure shows the search's and the table's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from interp.plots.few_heads import NULLS, VECTOR, few_heads
from interp.plots.tidy import tidy
from interp.runs.view import NotMeasured, Run


def found(run: Run, **entries: Any) -> Run:
    manifest = {**run.manifest, "interchange": {**run.manifest["interchange"], **entries}}
    return Run(run.path, run.table, run.arrays, manifest)


def without_vectors(run: Run) -> Run:
    table = run.table[~run.table["measure"].isin((VECTOR, *NULLS))]
    return Run(run.path, table, run.arrays, run.manifest)


def test_the_search_is_drawn_in_its_order_with_its_intervals(run: Run) -> None:
    drawn = tidy(few_heads(run))
    for entry in run.manifest["interchange"]["greedy"]:
        own = drawn[(drawn["measure"] == "recovery") & (drawn["condition"] == entry["source"])]
        line = own[own["heads"].notna()].sort_values("heads")
        assert line["heads"].tolist() == list(range(1, len(entry["heads"]) + 1))
        assert line["head"].tolist() == entry["heads"]
        for column, key in (("value", "recovery"), ("ci_low", "ci_low"), ("ci_high", "ci_high")):
            np.testing.assert_allclose(line[column], entry[key], rtol=1e-6)
        assert set(line["n"]) == {32}
        assert own.loc[own["head"] == "all", "value"].tolist() == [entry["all_heads"]]


def test_every_point_names_its_head_and_the_goal_has_a_line(run: Run) -> None:
    figure = few_heads(run)
    texts = [a.text for a in figure.layout.annotations]
    for entry in run.manifest["interchange"]["greedy"]:
        for head in entry["heads"]:
            assert head in texts
    assert "goal 0.9" in texts
    assert [s.y0 for s in figure.layout.shapes if s.line.dash == "dash"] == [0.9]


def test_function_vectors_carry_the_table_and_lie_over_their_controls(run: Run) -> None:
    figure = few_heads(run)
    drawn = tidy(figure)
    measures = (VECTOR, *NULLS)
    drawn = drawn[drawn["measure"].isin(measures)]
    keys = ["measure", "condition", "reference", "layer"]
    table = run.table[run.table["measure"].isin(measures)]
    both = drawn.merge(table, on=keys, suffixes=("", "_table"))
    assert len(both) == len(drawn) == len(table) > 0
    np.testing.assert_allclose(both["value"], both["value_table"].astype(float), rtol=1e-6)
    order = [
        t.meta["fixed"]["measure"] for t in figure.data if t.meta and t.meta.get("x") == "layer"
    ]
    assert order[-2:] == [VECTOR, VECTOR]
    assert VECTOR not in order[:-2]


def test_both_panels_share_one_axis_of_recovery(run: Run) -> None:
    layout = few_heads(run).layout
    assert layout.yaxis.range == layout.yaxis2.range
    assert layout.yaxis.range[0] < 0 < 1 < layout.yaxis.range[1]


def test_the_caption_says_how_many_heads_are_enough(run: Run) -> None:
    prompt, lora = run.manifest["interchange"]["greedy"]
    some = found(run, greedy=[{**prompt, "enough": 1}, {**lora, "enough": None}])
    caption = few_heads(some).layout.meta["caption"]
    assert "1 head of prompt reaches 0.9" in caption
    assert "No 8 of lora reach 0.9" in caption
    assert f"Heads of prompt: {', '.join(prompt['heads'][:3])} (n = 32)" in caption


def test_either_part_is_drawn_alone_and_neither_is_an_error(run: Run) -> None:
    alone = few_heads(found(run, greedy=[]))
    assert alone.layout.xaxis.domain == (0, 1)
    assert "Left" not in alone.layout.meta["caption"]
    search = tidy(few_heads(without_vectors(run)))
    assert set(search["measure"]) == {"recovery"}
    none = {**run.manifest["interchange"]["greedy"][0], "heads": [], "recovery": []}
    with pytest.raises(NotMeasured, match="function vectors"):
        few_heads(found(without_vectors(run), greedy=[none]))


def test_harm_beyond_the_panel_is_admitted(run: Run) -> None:
    table = run.table.copy()
    table.loc[table["measure"] == "function_vector_random", ["value", "ci_low"]] = -7.0
    figure = few_heads(Run(run.path, table, run.arrays, run.manifest))
    assert figure.layout.yaxis.range[0] > -1.5
    assert "Shares below −1 are outside the panel" in figure.layout.meta["caption"]
    assert "outside the panel" not in few_heads(run).layout.meta["caption"]
    assert (tidy(figure)["value"] == -7).any()
