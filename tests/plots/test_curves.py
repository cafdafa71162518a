"""Curves of an experiment: the table's numbers, every series once, controls told apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from interp.plots import Curves, curves
from interp.plots.curves import CURVE_COLUMNS
from interp.plots.style import label
from interp.plots.tidy import tidy

LOOK = Curves(title="Strength by budget", x="tokens", y="strength", grey=("random",))


def table(xs: tuple[float | str, ...] = (1, 2, 8)) -> pd.DataFrame:
    """Two panels; `text` is in the second alone, `random` is a control."""
    rows = []
    for panel, series, (at, x) in itertools.product(
        ("matched", "held out"), ("soft prompt", "random", "text"), enumerate(xs)
    ):
        value = 0.1 + at / 10 + 0.01 * len(series)
        if (panel, series) != ("matched", "text"):
            rows.append((panel, series, x, value, value - 0.02, value + 0.05, 26 + at))
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def test_points_and_bars_are_the_tables() -> None:
    figure = curves(table(), LOOK, "caption")
    drawn = tidy(figure).set_index(["panel", "series", "x"]).sort_index()
    wanted = table().set_index(["panel", "series", "x"]).sort_index()
    for column in ("value", "ci_low", "ci_high", "n"):
        np.testing.assert_allclose(drawn[column], wanted[column])
    for trace in figure.data:
        np.testing.assert_allclose(trace.error_y.array, 0.05)
        np.testing.assert_allclose(trace.error_y.arrayminus, 0.02)


def test_every_series_is_named_once_with_one_look_in_all_panels() -> None:
    figure = curves(table(), LOOK, "caption")
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(named) == ["random", "soft prompt", "text"]
    for name in named:
        looks = {(t.line.color, t.line.dash) for t in figure.data if t.name == name}
        assert len(looks) == 1
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
    titles = [note.text for note in figure.layout.annotations[:2]]
    assert titles == ["matched", "held out"]


def test_controls_are_grey_and_dashed_and_the_others_are_not() -> None:
    grey = {"#9A9A9A"}
    looks = {trace.name: trace.line for trace in curves(table(), LOOK, "caption").data}
    assert {name for name, line in looks.items() if line.color in grey} == {"random"}
    assert {name for name, line in looks.items() if line.dash != "solid"} == {"random"}
    assert looks["soft prompt"].color != looks["text"].color


@pytest.mark.parametrize("log_y", [False, True])
def test_levels_lie_at_their_value_in_every_panel_and_are_named_once(log_y: bool) -> None:
    look = replace(LOOK, levels={"other seeds": 0.01, "base": 0.4}, log_y=log_y)
    layout = curves(table(), look, "caption").layout
    assert sorted(shape.y0 for shape in layout.shapes) == [0.01, 0.01, 0.4, 0.4]
    notes = {note.text: note.y for note in layout.annotations if note.text in look.levels}
    at = {name: math.log10(y) if log_y else y for name, y in look.levels.items()}
    assert notes == pytest.approx(at)


def test_logarithmic_axes_are_labelled_where_the_points_are() -> None:
    layout = curves(table(), replace(LOOK, log_x=True, log_y=True), "caption").layout
    assert (layout.xaxis.type, layout.yaxis.type) == ("log", "log")
    assert layout.xaxis2.tickvals == (1, 2, 8)
    assert layout.xaxis2.ticktext == ("1", "2", "8")


def test_words_stand_in_the_order_in_which_they_occur() -> None:
    words = table(("as fitted", "b", "a"))
    rest = words[~((words["panel"] == "matched") & (words["x"] == "b"))]
    figure = curves(rest, LOOK, "caption")
    order = list(dict.fromkeys(rest["x"]))
    assert figure.layout.xaxis.ticktext == tuple(order) == ("as fitted", "a", "b")
    for trace in figure.data:
        here = rest[(rest["panel"] == trace.meta["fixed"]["panel"])]
        here = here[here["series"] == trace.meta["fixed"]["series"]]
        assert [order[at] for at in trace.x] == list(here["x"])


def test_an_unknown_interval_has_no_bar_and_an_undefined_value_no_point() -> None:
    rows = table()
    rows.loc[0, ["ci_low", "ci_high"]] = math.nan
    rows.loc[1, ["value", "ci_low", "ci_high"]] = math.nan
    trace = curves(rows, LOOK, "caption").data[0]
    assert trace.error_y.array[0] == trace.error_y.arrayminus[0] == 0
    assert math.isnan(trace.y[1])
    assert np.isfinite(trace.error_y.array).all()


def test_a_single_panel_and_series_needs_neither_heading_nor_legend() -> None:
    rows = table().query("panel == 'matched' and series == 'soft prompt'")
    figure = curves(rows, replace(LOOK, y_range=(0, 1)), "what was seen")
    assert figure.layout.showlegend is False
    assert figure.layout.yaxis.range == (0, 1)
    assert [note.name for note in figure.layout.annotations] == ["caption"]
    assert figure.layout.meta["caption"] == "what was seen"
    assert figure.layout.meta["title"] == LOOK.title


def test_hostile_names_stay_text() -> None:
    hostile = "<b>%{y}</b>"
    rows = table(("<i>x</i>", "y", "z")).replace({"soft prompt": hostile, "matched": hostile})
    look = replace(LOOK, levels={"<u>l</u>": 0.1}, x="<i>a</i>", y="<i>b</i>")
    drawn = curves(rows, look, "caption")
    labels = [*drawn.layout.xaxis.ticktext, *(note.text for note in drawn.layout.annotations)]
    labels += [drawn.layout.xaxis.title.text, drawn.layout.yaxis.title.text]
    labels += [trace.name for trace in drawn.data]
    assert label(hostile) in labels
    assert not any("<" in words for words in labels)


def test_many_places_of_a_logarithmic_axis_are_not_named_one_by_one():
    places = pd.concat([table().assign(x=float(x)) for x in range(1, 20)])
    layout = curves(places, replace(LOOK, log_x=True), "caption").layout
    assert layout.xaxis.tickvals is None
    assert layout.xaxis.dtick == 1
