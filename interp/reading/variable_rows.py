"""Rows of a run's table on a LoRA's own variables, and the tokens that drive and follow them.

    rows = [*channel_rows(seen, of, neutral, plan), *detection_rows(matched, unrelated, of, plans)]

Torch-free but for the lens of what a direction writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from interp.patching.ablation import layer_of
from interp.queries import Encoded
from interp.reading.channels import IN
from interp.reading.detection import auroc_interval, best_direction
from interp.reading.differences import ReadRow
from interp.reading.variables import SIDES_OF_MODULE, SeenVariables, Variables
from interp.registry import MEASURES
from interp.runs.readings import BLOCK_MODULES, EVERY_MODULE
from interp.statistics import percentile_interval


class QueryDraws(NamedTuple):
    """How the texts of a group are resampled (column 0: the data), and which choose a direction."""

    weights: Float[ndarray, "query replicate"]
    chosen: Bool[ndarray, " query"]


def channel_rows(
    seen: SeenVariables, of: Variables, neutral: str | None, group: str, draws: QueryDraws
) -> Iterator[ReadRow]:
    """Share of the energy of what a run changes of every module's input (`channel_read`) and output
    (`channel_written`) that lies along an owner's directions, by module and in the mean over
    modules; for prompts also over the neutral prompt's (`_excess`) and over that along a random
    LoRA's directions (`_over_random`). `_chance`: rank over dimensions."""
    runs = dict.fromkeys(run for run, _, _ in seen.energy)
    for side in SIDES_OF_MODULE:
        drawn = {
            (run, owner): _shares(seen, run, owner, side, draws.weights)
            for run in runs
            for owner in of.owners
        }
        for (run, owner), own in drawn.items():
            own_place = {"condition": run, "reference": owner, "queries": group}
            yield from _all(f"channel_{side}", own, seen, of, own_place)
            others = {"excess": (neutral, owner), "over_random": (run, _random(of))}
            for ending, other in others.items():
                if owner == of.lora and other in drawn and other != (run, owner):
                    name = f"channel_{side}_{ending}"
                    yield from _all(name, own - drawn[other], seen, of, own_place)
        for module in of.own.modules if group == "matched" else ():  # weights have no group
            rank, d = of.own.basis(module, side).shape
            place: dict[str, Any] = {"condition": of.lora, "queries": None}
            yield _row(f"channel_{side}_chance", module, rank / d, n=None, **place)


def _random(of: Variables) -> str:
    return next((name for name in of.owners if name != of.lora), "")


def _shares(
    seen: SeenVariables, run: str, owner: str, side: str, weights: ndarray
) -> Float[ndarray, "replicate label module"]:
    """Energy along the directions over all energy, sums over queries under every replicate; NaN
    where a run changes nothing."""
    energy, total = (
        np.einsum("qr,qlm->rlm", weights, np.nan_to_num(values))
        for values in (seen.energy[run, owner, side], seen.total[run, side])
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, energy / total, np.nan)


def _all(
    measure: str,
    drawn: Float[ndarray, "replicate label module"],
    seen: SeenVariables,
    of: Variables,
    place: Mapping[str, Any],
) -> Iterator[ReadRow]:
    """A row per label and module, and of the means over the defined modules of each layer
    (`BLOCK_MODULES`) and of all layers (`EVERY_MODULE`)."""
    n = len(seen.coordinates)
    known = ~np.isnan(drawn[0])
    layers = np.array([_layer(module) for module in of.own.modules])
    for at, label in enumerate(seen.labels):
        for module, column in zip(of.own.modules, drawn[:, at].T, strict=True):
            yield _estimate(measure, module, column, position=label, n=n, **place)
        for layer in (*sorted(set(layers)), None):
            kept = known[at] & (True if layer is None else layers == layer)
            if kept.any():
                mean = drawn[:, at, kept].mean(1)
                site = EVERY_MODULE if layer is None else BLOCK_MODULES
                row = _estimate(measure, site, mean, position=label, n=n, **place)
                yield row if layer is None else row | {"layer": int(layer)}


def _layer(module: str) -> int:
    """A module's layer; -1 outside the blocks."""
    found = layer_of(module)
    return -1 if found is None else found


def _estimate(measure: str, site: str, drawn: ndarray, **place: Any) -> ReadRow:
    low, high = percentile_interval(drawn[1:])
    return _row(measure, site, float(drawn[0]), float(low), float(high), **place)


def _row(
    measure: str, site: str, value: float, low: float = np.nan, high: float = np.nan, **place: Any
) -> ReadRow:
    layer = None if site in (BLOCK_MODULES, EVERY_MODULE) else layer_of(site)
    names = {"measure": measure, "site": site, "layer": layer, "units": MEASURES[measure].units}
    return {**names, "value": value, "ci_low": low, "ci_high": high, **place}


# --- does a direction tell the run's queries from unrelated text? --------------------------------


def detection_rows(
    matched: SeenVariables,
    unrelated: SeenVariables,
    of: Variables,
    draws: QueryDraws,
    others: QueryDraws,
) -> Iterator[ReadRow]:
    """AUROC of `|V_k x| / ‖x‖` (mean over a text's tokens), matched against unrelated texts:
    `direction_auroc` of every direction, and `direction_auroc_best` of the one that is best on one
    half of the texts of both groups, on the other half (turned so that above 0.5 is as on the
    first). `condition`: whose run; `reference`: whose directions."""
    for (run, owner, side), inside in matched.cosines.items():
        outside = unrelated.cosines[run, owner, side]
        n = len(inside) + len(outside)
        where = {"condition": run, "reference": owner, "queries": "matched"}
        place: dict[str, Any] = {**where, "n": n}
        every = auroc_interval(inside, outside, draws.weights, others.weights)
        for (module, k), *found in zip(of.own.places, *every, strict=True):
            position = f"direction {k} {side}"
            yield _row("direction_auroc", module, *map(float, found), position=position, **place)
        best, sign = best_direction(inside, outside, draws.chosen, others.chosen)
        left = (~draws.chosen, ~others.chosen)
        scores = (
            sign * x[kept][:, [best]] for x, kept in zip((inside, outside), left, strict=True)
        )
        weights = (d.weights[kept] for d, kept in zip((draws, others), left, strict=True))
        value, low, high = (float(x[0]) for x in auroc_interval(*scores, *weights))
        module, k = of.own.places[best]
        place["n"] = int(left[0].sum() + left[1].sum())
        position = f"direction {k} {side}"
        yield _row("direction_auroc_best", module, value, low, high, position=position, **place)


# --- what drives a direction ---------------------------------------------------------------------


def strongest_directions(
    seen: SeenVariables, of: Variables, most: int
) -> list[tuple[int, float, int]]:
    """Number (in `Channels.places`), root mean square of what it writes (`s_k |V_k x|`), and sign
    of its mean coordinate, of the directions that write most in the LoRA's own run."""
    s = np.concatenate([own.s.cpu().numpy() for own in of.own.modules.values()])
    flat = seen.coordinates.reshape(-1, seen.coordinates.shape[-1]).astype(np.float64)
    written = s * np.sqrt(np.nanmean(flat**2, axis=0))
    signs = np.where(np.nanmean(flat, axis=0) < 0, -1, 1)
    order = np.argsort(-written, kind="stable")[:most]
    return [(int(k), float(written[k]), int(signs[k])) for k in order]


def driver_tokens(
    seen: SeenVariables,
    of: Variables,
    queries: Sequence[Encoded],
    names: Sequence[str],
    group: str,
    directions: Sequence[tuple[int, float, int]],
    top: int,
) -> Iterator[ReadRow]:
    """The tokens with the largest coordinate along each direction (turned so that its mean is
    positive): `score` is `V_k x`, `vector` names the query that the token stands in."""
    for number, _, sign in directions:
        module, k = of.own.places[number]
        along = sign * seen.coordinates[..., number].astype(np.float64)
        flat = np.where(np.isnan(along), -np.inf, along)
        order = np.argsort(-flat, axis=None, kind="stable")[:top]
        for rank, (row, column) in enumerate(
            zip(*np.unravel_index(order, flat.shape), strict=True)
        ):
            token = queries[row].forced[column]
            yield {
                "lens": "drivers",
                "condition": of.lora,
                "queries": group,
                "site": module,
                "layer": layer_of(module),
                "position": f"direction {k} {IN}",
                "vector": f"query {row}, token {column}",
                "rank": rank + 1,
                "token_id": token,
                "token": names[token],
                "score": float(along[row, column]),
            }
