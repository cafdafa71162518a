"""From effects to what a run's manifest says of them: best layers, heads, a sentence. Torch-free.

heads = head_overlap(moves, ("prompt", "lora"), "base", scale, keys, permutations=999, seed=0)
patching_verdict(table, ("prompt", "lora"), "base")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.design import ConditionPair
from interp.patching.effects import Pairs, Resampling, best_layer, halves, matched
from interp.patching.ranking import (
    heads_of_sweep,
    how_many,
    important_heads,
    necessity,
    ranking_overlap,
    sufficiency,
)


def chosen_layers(
    moves: Pairs, pair: ConditionPair, base: str, scale: Resampling, keys: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Per direction, the layer chosen on one half of the queries and scored on the other."""
    selection, _ = halves(keys, seed)
    a, b = pair
    directions = [(a, b), (b, a), (a, base), (b, base)]
    return [plain(best_layer(moves[s, t, ""], scale, selection)._asdict()) for s, t in directions]


def by_segment(
    moves: Pairs,
    pair: ConditionPair,
    base: str,
    scale: Resampling,
    segments: Sequence[str],
    keys: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """What each segment's states of either condition recover in base's run, at the layer chosen on
    one half of the queries and scored on the other; nothing of a condition that says the same."""
    selection, _ = halves(keys, seed)
    found = []
    for condition in pair:
        own = moves[condition, base, ""]
        for position in segments if not matched(own, scale) else ():
            best = best_layer(own, scale, selection, position)
            found.append(plain({**best._asdict(), "position": position}))
    return found


def head_overlap(
    moves: Pairs,
    pair: ConditionPair,
    base: str,
    scale: Resampling,
    keys: Sequence[str],
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The strongest heads under both conditions, by what is lost without them and by what is won
    by them alone, and how far the two conditions agree."""
    selection, _ = halves(keys, seed)
    everyone = np.ones(len(keys), dtype=bool)
    found = []
    for name in ("lost", "won"):
        rankings, chosen = {}, {}
        for condition in pair:
            move = (base, condition, "") if name == "lost" else (condition, base, "")
            heads = heads_of_sweep(moves[move])
            values = [
                necessity(moves[move], queries, scale)
                if name == "lost"
                else sufficiency(moves[move], queries, scale)
                for queries in (everyone, selection)
            ]
            rankings[condition], chosen[condition] = values
        k = how_many(len(heads))
        x, y = (rankings[condition] for condition in pair)
        same = ranking_overlap(x, y, [head.layer for head in heads], k, permutations, seed)
        found.append(
            {
                "by": name,
                **plain(same._asdict()),
                "under": {
                    c: [str(heads[i]) for i in important_heads(v, k)] for c, v in rankings.items()
                },
                "selected": {
                    c: [str(heads[i]) for i in important_heads(v, k)] for c, v in chosen.items()
                },
            }
        )
    return found


def patching_verdict(table: pd.DataFrame, pair: ConditionPair, base: str, n_layers: int) -> str:
    """What the sweep of the residual stream says, from its numbers."""
    a, b = pair
    whole = table[
        (table["site"] == "resid_post") & table["head"].isna() & (table["position"] == "all")
    ]

    def row(measure: str, source: str, target: str, layer: int | None = None) -> pd.Series:
        kept = whole[(whole["measure"] == measure) & (whole["condition"] == source)]
        kept = kept[kept["reference"] == target]
        if layer is not None:
            kept = kept[kept["layer"] == layer]
        return kept.iloc[0]

    both = row("state_equivalence_depth", a, b)
    words = [
        f"{s}'s state works in {t}'s run {_from(row('interchange_depth', s, t), n_layers)}"
        for s, t in ((a, b), (b, a))
    ]
    first = both["value"]
    layer = int(whole["layer"].min() if np.isnan(first) else first)
    damage = [row("damage", s, t, layer) for s, t in ((a, b), (b, a))]
    worst = max(damage, key=lambda r: r["value"])
    source, target = worst["condition"], worst["reference"]
    control = row("damage", base, target, layer)
    unrelated = row("damage_random_difference", source, target, layer)
    words.append(
        f"at layer {layer} the swap costs at most {_number(worst)} nats, an unrelated query's "
        f"difference of the same length {_number(unrelated)}, {base}'s state {_number(control)}"
    )
    for condition in pair:
        recovered = row("recovery", condition, base, layer)
        if not np.isnan(recovered["value"]):
            words.append(
                f"{condition}'s state alone gives {base} {_number(recovered)} of its behaviour"
            )
    return "; ".join(words) + "."


def _from(depth: pd.Series, n_layers: int) -> str:
    if np.isnan(depth["value"]):
        return "from no layer on"
    where = f"from layer {depth['value']:.0f} on"
    if np.isnan(depth["ci_low"]):
        return where
    high = f"{depth['ci_high']:.0f}" if round(depth["ci_high"]) < n_layers else "none"
    return f"{where} [{depth['ci_low']:.0f}, {high}]"


def _number(row: pd.Series) -> str:
    interval = f" [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"
    return f"{row['value']:.3g}" + ("" if np.isnan(row["ci_low"]) else interval)


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON has it: no NaN, no numpy, lists for tuples."""
    return {name: _plain(value) for name, value in record.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value
