"""From edges by query to what a run says of them: the strongest, their overlap, a sentence.

Without torch. All effects are changes of the answer's log-odds, nats per answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray

from interp.edges.nodes import Edge, kinds_of
from interp.patching.attribution import spearman
from interp.patching.effects import Resampling, ratio
from interp.patching.findings import plain
from interp.patching.ranking import ranking_overlap, strongest_heads
from interp.registry import MEASURES
from interp.runs.edges import ESTIMATED, FLOW, PATCHED
from interp.statistics import Estimate

Moved = Mapping[tuple[str, str], Float[ndarray, "query edge"]]
"""(source, target) -> every edge's effect on every query."""


def strongest_edges(scores: Float[ndarray, "query edge"], most: int) -> Int[ndarray, " found"]:
    """The edges of the largest mean effect in size, the largest first."""
    return strongest_heads(np.abs(scores.mean(0)), most)


class ExactEdges(NamedTuple):
    """Some edges of a move, by their numbers, and what each does when it is patched."""

    numbers: Int[ndarray, " found"]
    effects: Float[ndarray, "query found"]


def edge_rows(
    scores: Moved, exact: Mapping[tuple[str, str], ExactEdges], edges: Sequence[Edge],
    shown: Mapping[tuple[str, str], Sequence[int]], scale: Resampling, depth: int,
) -> pd.DataFrame:  # fmt: skip
    """Rows of a run's table: the `shown` edges of every move to first order, those that were
    patched exactly too, and by layer of sender and receiver the sum of all edges' sizes."""
    parts = []
    for move, values in scores.items():
        numbers = np.asarray(shown[move], dtype=int)
        parts.append(_rows(move, ESTIMATED, [edges[i] for i in numbers], values[:, numbers], scale))
        if move in exact:
            there = exact[move]
            named = [edges[i] for i in there.numbers]
            parts.append(_rows(move, PATCHED, named, there.effects, scale))
        parts.append(_flow_rows(move, np.abs(values.mean(0)), edges, depth, len(values)))
    return pd.concat(parts, ignore_index=True).assign(queries="matched")


def _rows(
    move: tuple[str, str], measure: str, edges: Sequence[Edge], values: ndarray, scale: Resampling
) -> pd.DataFrame:
    """One row per edge: its name is the site, the receiver's layer and head are the row's."""
    estimate = Estimate(*(c[..., 0] for c in ratio(values.astype(float), 1.0, scale).compute()))
    last = [edge.receiver.part == "logits" for edge in edges]
    layers = [None if end else e.receiver.layer for e, end in zip(edges, last, strict=True)]
    return pd.DataFrame(
        {
            "measure": measure,
            "condition": move[0],
            "reference": move[1],
            "site": [str(edge) for edge in edges],
            "layer": pd.array(layers, dtype="Int64"),
            "head": pd.array([edge.receiver.head for edge in edges], dtype="Int64"),
            "position": "all",
            "value": estimate.value,
            "ci_low": estimate.ci_low,
            "ci_high": estimate.ci_high,
            "n": estimate.n,
            "units": MEASURES[measure].units,
        }
    )


def _flow_rows(
    move: tuple[str, str], sizes: ndarray, edges: Sequence[Edge], depth: int, n: int
) -> pd.DataFrame:
    """Sums over the edges from one layer into another; `position`: the sender's layer."""
    sums: dict[tuple[int, int], float] = {}
    for edge, size in zip(edges, sizes, strict=True):
        place = (edge.receiver.layer, edge.sender.layer)
        sums[place] = sums.get(place, 0.0) + float(size)
    return pd.DataFrame(
        {
            "measure": FLOW,
            "condition": move[0],
            "reference": move[1],
            "site": "edges",
            "layer": pd.array([into if into < depth else None for into, _ in sums], dtype="Int64"),
            "position": ["embed" if out < 0 else str(out) for _, out in sums],
            "value": [*sums.values()],
            "n": n,
            "units": MEASURES[FLOW].units,
        }
    )


# --- what was found ------------------------------------------------------------------------------


def edge_overlap(
    scores: Moved, edges: Sequence[Edge], base: str, top: int, permutations: int, seed: int
) -> list[dict[str, Any]]:
    """How far two conditions' strongest edges are the same, by what each wins alone in base's run
    and by what is lost without it in the condition's; p: edges permuted among those of the same two
    layers and parts."""
    kinds = kinds_of(edges)
    found = []
    for by in ("won", "lost"):
        sizes = {
            (t if by == "lost" else s): np.abs(values.mean(0))
            for (s, t), values in scores.items()
            if (s if by == "lost" else t) == base
        }
        k = min(top, len(edges))
        for a, b in combinations(sizes, 2):
            same = ranking_overlap(sizes[a], sizes[b], kinds, k, permutations, seed)
            names = {"by": by, "condition": a, "reference": b}
            found.append({**names, **plain(same._asdict())})
    return found


def edge_agreement(
    scores: Moved, exact: Mapping[tuple[str, str], ExactEdges]
) -> list[dict[str, Any]]:
    """How far the first order is right about the edges that were patched: Spearman's correlation of
    the means, and the share of equal signs."""
    found = []
    for (source, target), there in exact.items():
        estimate = scores[source, target][:, there.numbers].mean(0)
        done = there.effects.mean(0)
        same = float((np.sign(estimate) == np.sign(done)).mean())
        record = {"source": source, "target": target, "edges": len(done), "same_sign": same}
        found.append(plain({**record, "spearman": spearman([*estimate], [*done])}))
    return found


def edge_words(
    pair: tuple[str, str],
    base: str,
    strongest: Mapping[tuple[str, str], Sequence[Edge]],
    overlaps: Sequence[Mapping[str, Any]],
    agreement: Sequence[Mapping[str, Any]],
    most: int = 3,
) -> Iterator[str]:
    """What was found, in sentences made of the numbers."""
    named = "; ".join(f"{', '.join(map(str, strongest[c, base][:most]))} of {c}" for c in pair)
    yield f"The strongest edges into {base}: {named}."
    for by, whose in (("won", f"put into {base}'s run"), ("lost", f"taken out for {base}'s")):
        here = [entry for entry in overlaps if entry["by"] == by]
        own = [e for e in here if {e["condition"], e["reference"]} == {*pair}]
        others = [e for e in here if e not in own]
        for entry in own:
            beside = "; ".join(f"{e['condition']} and {e['reference']} {_share(e)}" for e in others)
            yield (
                f"Of the {entry['k']} strongest edges {whose}, {pair[0]} and {pair[1]} share "
                f"{_share(entry)}" + (f"; beside it {beside}." if beside else ".")
            )
    if agreement:
        known = [e["spearman"] for e in agreement if e["spearman"] is not None]
        signs = np.mean([e["same_sign"] for e in agreement])
        ends = f"{min(known):.2f} to {max(known):.2f}" if known else "undefined"
        yield (
            f"Patched exactly, the {agreement[0]['edges']} strongest edges of each move have the "
            f"estimate's sign in {100 * signs:.0f} % of the cases; rank correlation {ends}."
        )


def _share(entry: Mapping[str, Any]) -> str:
    if entry["share"] is None:
        return "an unknown part"
    return f"{100 * entry['share']:.0f} % (p = {entry['p']:.2g})"
