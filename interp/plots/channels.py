"""A LoRA's own variables: does a prompt move states along the directions that it reads and writes?

    channels(run).show()

Above, the share of what conditions change, by layer, that lies along the LoRA's directions; below,
how well each direction alone tells the run's queries from unrelated text. Null: the neutral prompt,
and a random LoRA's directions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.board import Board
from interp.plots.lines import LinePanel, Look, draw_rows
from interp.plots.style import label
from interp.runs.readings import AUROC, CHANNEL_SIDES, LoraVariables
from interp.runs.view import NotMeasured, Run

_HEADINGS = {
    "read": "along what the LoRA reads: modules' inputs",
    "written": "along what the LoRA writes: modules' outputs",
}


def channels(run: Run) -> go.Figure:
    """Energy shares and AUROCs by layer, inputs on the left. Raises `NotMeasured` without them."""
    of = run.reading.variables
    looks = _looks(of)
    position = of.text_position
    board = Board(left=72, right=28)
    rows = [_panel(of, side, position, looks) for side in CHANNEL_SIDES]
    if not any(panel.lines for panel in rows):
        raise NotMeasured(f"{of.lora} moves nothing that its directions could share")
    x = style.layer_axis(run, "layer")
    (panels,) = draw_rows(board, [rows], x, 250)
    for side, panel in zip(CHANNEL_SIDES, panels, strict=True):
        panel.level(of.chance(side), color=style.MUTED, dash="dot", layer="above")
    y = style.axis("AUROC", range=[-0.03, 1.03])
    below = board.row(["", ""], 220, x, y, above=30)
    for side, panel in zip(CHANNEL_SIDES, below, strict=True):
        panel.level(0.5, color=style.MUTED, dash="dot", layer="above")
        panel.draw(_dots(of, side))
    return board.finish(
        run,
        f"Does a prompt use the channel that {of.lora} opened?",
        pairs=[(user, of.lora) for user in of.users],
        notes=[
            "Above: share of the energy of what a condition changes from base that lies along the "
            f"singular directions of {of.lora}'s update (scaling included), mean over modules, "
            f"position {position}; bands: intervals; dotted: chance (rank over width)",
            f"Below, a mark per direction: chance that |cosine| with it, mean over the text in "
            f"{of.lora}'s run, is larger for a matched query than for an unrelated text; dotted: "
            "0.5, which says nothing",
        ],
    )


def _looks(of: LoraVariables) -> dict[Pair, Look]:
    """Run and owner of the directions -> its line; the sides' colours are those of all figures."""
    run = of.run
    found: dict[Pair, Look] = {}
    for user in of.users:
        colour, dash = style.condition_look(run, user)
        found[user, of.lora] = Look(f"{user}, {of.lora}'s directions", colour, dash)
    if of.random:
        for user, dash in zip(of.users, ("dot", "dashdot"), strict=False):
            if user != of.neutral:
                name = f"{user}, {of.random}'s directions"
                found[user, of.random] = Look(name, style.RULE, dash, "diamond")
    return found


def _panel(of: LoraVariables, side: str, position: str, looks: dict[Pair, Look]) -> LinePanel:
    frames = {pair: of.by_block(f"channel_{side}", pair, position) for pair in looks}
    lines = [(look, frames[pair]) for pair, look in looks.items() if len(frames[pair])]
    return LinePanel(lines[::-1], heading=_HEADINGS[side], unit="share of the change")


def _dots(of: LoraVariables, side: str) -> Iterator[go.Scatter]:
    """Every direction's AUROC, a random LoRA's behind the LoRA's own."""
    for owner, colour, shift in ((of.random, style.RULE, 0.12), (of.lora, "#D55E00", -0.12)):
        rows = of.auroc(owner, side) if owner else of.auroc(of.lora, side).iloc[:0]
        if rows.empty:
            continue
        layer = rows["layer"].to_numpy(dtype=float)
        places = [f"{s}, {p}" for s, p in zip(rows["site"], rows["position"], strict=True)]
        name = f"{owner}'s directions"
        yield go.Scatter(
            x=layer + shift,
            y=rows["value"].to_numpy(dtype=np.float32),
            mode="markers",
            marker={"size": 4, "color": colour, "opacity": 0.6},
            text=[label(place) for place in places],
            name=label(name),
            legendgroup=name,
            hovertemplate="%{text}: %{y:.3f}<extra></extra>",
            meta={
                "fixed": {"measure": AUROC, "condition": of.lora, "reference": owner},
                "columns": {"layer": layer.tolist(), "direction": places},
                "x": "drawn_at",
                "y": "value",
            },
        )
