"""The board: panels stand where they were put, and names cover nothing."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from interp.plots.board import Area, Board, LineEnd
from interp.plots.by_layer import layers
from interp.plots.labels import apart, beside
from interp.runs.view import Run


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


@given(st.lists(st.floats(-50, 350), min_size=1, max_size=12))
def test_names_of_lines_stand_apart_within_the_panel_as_near_as_can_be(own: list[float]) -> None:
    room, step = 300.0, 14.0
    found = apart(own, room, step)
    order = np.argsort(own, kind="stable")
    moved = found[order]
    assert (np.diff(moved) >= step - 1e-6).all()
    assert moved[0] >= -1e-6
    assert moved[-1] <= room + 1e-6
    best = minimize(
        lambda at: ((at - np.asarray(own)[order]) ** 2).sum(),
        np.linspace(0, room, len(own)),
        jac=lambda at: 2 * (at - np.asarray(own)[order]),
        bounds=[(0, room)] * len(own),
        constraints={"type": "ineq", "fun": lambda at: np.append(np.diff(at) - step, 0)},
        method="SLSQP",
    )
    assert ((moved - np.asarray(own)[order]) ** 2).sum() <= best.fun + 1e-3 * (1 + best.fun)


def test_a_line_is_named_where_it_ends_and_not_in_the_legend(run: Run) -> None:
    figure = layers(run)
    names = {note.name: note for note in figure.layout.annotations if note.captureevents}
    [line] = (
        t
        for t in figure.data
        if t.name == "prompt vs lora (headline)"
        and t.meta
        and t.meta["fixed"] == {**t.meta["fixed"], "site": "resid_post", "measure": "relative_l2"}
    )
    note = next(n for n in figure.layout.annotations if n.name == line.legendgroup)
    low, high = figure.layout[f"yaxis{line.yaxis[1:]}"].range or figure.layout.yaxis.range
    assert note.yref == f"{line.yaxis} domain"
    assert low + note.y * (high - low) == pytest.approx(float(line.y[-1]), rel=1e-5)
    shown = {t.legendgroup for t in figure.data if t.name and t.showlegend is not False}
    assert shown == {t.legendgroup for t in figure.data if t.visible == "legendonly"}
    assert not shown & set(names)


def test_more_names_than_there_is_room_for_are_left_to_the_legend() -> None:
    board = Board()
    [panel] = board.row([""], 100, {}, {"range": [0, 1]})
    panel.draw([go.Scatter(x=[0], y=[1], name=str(i), legendgroup=str(i)) for i in range(9)])
    panel.name([LineEnd(1, str(i), "#000000", str(i)) for i in range(9)])
    assert board.dress("", "").layout.showlegend
    panel.name([LineEnd(1, str(i), "#000000", str(i)) for i in range(8)])
    figure = board.dress("", "")
    assert [t.name for t in figure.data if t.showlegend] == ["8"]


def test_panels_stand_where_they_were_put() -> None:
    board = Board(left=100, right=100)
    for area in (Area(200, 100, 400, 200), Area(0, 300, 800, 100)):
        board.add(area, "", {})
    layout = board.dress("", "").layout
    assert layout.xaxis.domain == layout.yaxis.domain == (0.25, 0.75)
