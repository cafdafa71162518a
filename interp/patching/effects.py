"""What an interchange did, by query and cell, and the rows of a run's table that come of it.

    scale = Scale.of(keys, replicates=200, permutations=999, seed=0, tolerance=0.02)
    found = effect_rows(effects, scale, base="base")

All divergences and log-odds are those of whole answers: sums over the tokens that predict them, in
nats per answer (without an answer: at the queries' last tokens). All arrays are numpy's, float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray

from interp.errors import ConfigError
from interp.noise import floor, zero
from interp.patching.sites import MeasuredAt, PatchSite
from interp.registry import MEASURES
from interp.significance import SignFlip, benjamini_hochberg, sign_vectors
from interp.statistics import (
    Estimate,
    Ratio,
    generator_of,
    percentile_interval,
    poisson_weights,
)

PATCHING_CONTROLS = ("random_direction", "random_difference")
"""The target's own value, moved as far as the source's lies from it: in a random direction; along
the difference that source and target show at an unrelated query."""


@dataclass(frozen=True)
class Effects:
    """What one source's values did in one target's runs.

    `to_target`: `KL(p_target ‖ p_patched)`, the damage; `to_source`: `KL(p_source ‖ p_patched)`;
    `log_odds`: of the answer in the patched run. `apart`: `KL(p_source ‖ p_target)`; `source_odds`,
    `target_odds`: the answer's log-odds in their own runs. Each is the sum over the answer's
    tokens, forced on all conditions. NaN where a query has no token at the cell's position.
    `control`: "" or one of `PATCHING_CONTROLS`.
    """

    source: str
    target: str
    control: str
    cells: tuple[PatchSite, ...]
    to_target: Float[ndarray, "query cell"]
    to_source: Float[ndarray, "query cell"]
    log_odds: Float[ndarray, "query cell"]
    apart: Float[ndarray, " query"]
    source_odds: Float[ndarray, " query"]
    target_odds: Float[ndarray, " query"]

    def of(self, kept: Bool[ndarray, " cell"]) -> Effects:
        """The same at some of the cells."""
        return replace(
            self,
            cells=tuple(cell for cell, keep in zip(self.cells, kept, strict=True) if keep),
            to_target=self.to_target[:, kept],
            to_source=self.to_source[:, kept],
            log_odds=self.log_odds[:, kept],
        )

    def of_queries(self, kept: Bool[ndarray, " query"]) -> Effects:
        """The same of some of the queries."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {name: v[kept] for name, v in arrays.items() if isinstance(v, ndarray)}
        return replace(self, **chosen)

    def at(self, site: str, *, heads: bool = False, position: str = "all") -> Effects:
        """The same at one site: whole layers, or their heads."""
        kept = [
            cell.site == site and (cell.head is not None) == heads and cell.position == position
            for cell in self.cells
        ]
        return self.of(np.array(kept, dtype=bool))


@dataclass(frozen=True)
class Resampling:
    """How queries are resampled (`weights` `[query, replicate]`, `signs` `[query, rearrangement]`,
    column 0 the data itself), the damage in nats up to which a state counts as equivalent, and the
    size of rounding in the model's number format (`interp.noise`)."""

    weights: Float[ndarray, "query replicate"]
    signs: Float[ndarray, "query signs"]
    tolerance: float
    noise: float = 0.0

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        replicates: int,
        permutations: int,
        seed: int,
        tolerance: float,
        noise: float = 0.0,
    ) -> Resampling:
        """Drawn by the queries' keys: their order does not matter."""
        weights = poisson_weights(keys, replicates, seed)
        return cls(weights, sign_vectors(keys, permutations, seed), tolerance, noise)

    def half(self, queries: Bool[ndarray, " query"]) -> Resampling:
        """The same for some of the queries."""
        return replace(self, weights=self.weights[queries], signs=self.signs[queries])


Pairs = Mapping[tuple[str, str, str], Effects]


def by_move(effects: Sequence[Effects]) -> dict[tuple[str, str, str], Effects]:
    """(source, target, control) -> its effects."""
    return {(e.source, e.target, e.control): e for e in effects}


def ratio(
    above: Float[ndarray, "query cell"],
    below: Float[ndarray, "query cell"] | float,
    scale: Resampling,
) -> Ratio:
    """Sum over sum under every replicate, `[replicate, cell, 1]`."""
    below = below[..., None] if isinstance(below, np.ndarray) else below
    return Ratio.of(above[..., None], below, scale.weights, np.ones((len(above), 1, 1)))


def _recovery(effects: Effects, scale: Resampling) -> Ratio:
    """`1 - KL(source ‖ patched) / KL(source ‖ target)`: 1 is full transfer, 0 none, negative harm.
    A ratio of sums over queries. Undefined where the outputs are already matched: `matched`."""
    apart = np.broadcast_to(effects.apart[:, None], effects.to_source.shape)
    return ratio(apart - effects.to_source, apart, scale)


def matched(effects: Effects, scale: Resampling) -> bool:
    """Whether source and target say so nearly the same that there is nothing to recover."""
    return bool(effects.apart.mean() <= scale.tolerance)


def effect_rows(effects: Sequence[Effects], scale: Resampling, base: str) -> pd.DataFrame:
    """Rows of a run's table (`interp.runs.files.COLUMNS`): damage, relative damage, recovery, the
    same of the answer's log-odds and of the controls, and the depths.

    Ratios are sums over queries divided once, intervals from `scale.weights`. `p_adjusted`: paired
    sign flips over queries against the random difference, Benjamini-Hochberg over a site's layers
    and segments.
    """
    table = measured_rows(effects, scale, base)
    depths = pd.DataFrame(list(_depths(by_move(effects), scale, base)))
    return pd.concat([table, depths], ignore_index=True).assign(queries="matched")


def measured_rows(effects: Sequence[Effects], scale: Resampling, base: str = "") -> pd.DataFrame:
    """The rows of every place alone."""
    moves = by_move(effects)
    parts = [
        move_rows((own.source, own.target), own.cells, measure, estimate, p)
        for own in effects
        for measure, estimate, p in _measures(own, moves, scale, base)
    ]
    return pd.concat(parts, ignore_index=True)


_Measured = tuple[str, Estimate, ndarray | None]


def _measures(own: Effects, moves: Pairs, scale: Resampling, base: str) -> Iterator[_Measured]:
    suffix = f"_{own.control}" if own.control else ""
    against = moves.get((own.source, own.target, PATCHING_CONTROLS[1])) if not own.control else None
    yield (
        f"damage{suffix}",
        ratio(own.to_target, 1.0, scale).compute(),
        _tested(own, against, "to_target", scale),
    )
    known = not matched(own, scale)
    recovered = _recovery(own, scale).compute()
    p = _tested(own, against, "to_source", scale) if known else None
    yield f"recovery{suffix}", recovered if known else _undefined(recovered), p
    if own.control:
        return
    change = own.log_odds - own.target_odds[:, None]
    whole = np.broadcast_to((own.source_odds - own.target_odds)[:, None], change.shape)
    yield "answer_change", ratio(change, 1.0, scale).compute(), None
    answer = ratio(change, whole, scale).compute()
    yield "answer_recovery", answer if known else _undefined(answer), None
    worst = moves.get((base, own.target, ""))
    if worst is not None and own.source != base:
        if worst.cells != own.cells:
            raise ValueError(f"moves into {own.target} were made at different cells")
        share = ratio(own.to_target, worst.to_target, scale).compute()
        mean = np.nansum(worst.to_target, axis=0) / len(worst.to_target)
        some = ~zero("damage", scale.noise, mean)
        yield "relative_damage", _undefined(share, but=some[:, None]), None


def _undefined(estimate: Estimate, but: ndarray | bool = False) -> Estimate:
    """NaN on no query, but for the cells that are defined."""
    value, low, high = (np.where(but, column, np.nan) for column in estimate[:3])
    return Estimate(value, low, high, np.where(but, estimate.n, 0))


def _tested(
    own: Effects, control: Effects | None, values: str, scale: Resampling
) -> ndarray | None:
    """p of every cell that its control has too, corrected over its site's layers and segments."""
    if control is None or scale.signs.shape[1] < 2:
        return None
    place = {cell: i for i, cell in enumerate(control.cells)}
    p = np.full(len(own.cells), np.nan)
    for site in {cell.site for cell in control.cells}:
        mine = [i for i, cell in enumerate(own.cells) if cell in place and cell.site == site]
        theirs = [place[own.cells[i]] for i in mine]
        a, b = getattr(own, values)[:, mine], getattr(control, values)[:, theirs]
        ones = np.ones((len(a), 1, 1))
        rounding = floor("damage", scale.noise, a, b)[..., None]
        test = SignFlip.of(a[..., None], b[..., None], scale.signs, ones, rounding)
        p[mine] = benjamini_hochberg(test.compute().p[..., 0])
    return p


def move_rows(
    move: tuple[str, str | None],
    cells: Sequence[MeasuredAt],
    measure: str,
    estimate: Estimate,
    p: ndarray | None = None,
) -> pd.DataFrame:
    """One row per place of a move (source, target, which may be none), from an estimate
    `[cell, 1]`."""
    value, low, high, n = (column[..., 0] for column in estimate)
    return pd.DataFrame(
        {
            "measure": measure,
            "condition": move[0],
            "reference": move[1],
            "site": [cell.site for cell in cells],
            "layer": pd.array([cell.layer for cell in cells], dtype="Int64"),
            "head": pd.array([cell.head for cell in cells], dtype="Int64"),
            "position": [cell.position for cell in cells],
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "n": n,
            "p_adjusted": np.full(len(value), np.nan) if p is None else p,
            "units": MEASURES[measure].units,
        }
    )


# --- from which layer on -------------------------------------------------------------------------


def equivalence_depth(
    damage: Float[ndarray, "*replicate layer"], tolerance: float
) -> Float[ndarray, "*replicate"]:
    """The first layer from which damage stays within tolerance; the number of layers: at none. NaN
    where damage is undefined."""
    within = damage <= tolerance
    found = within.shape[-1] - np.cumprod(within[..., ::-1], axis=-1).sum(-1)
    return np.where(np.isnan(damage).any(-1), np.nan, found)


def _depths(moves: Pairs, scale: Resampling, base: str) -> Iterator[dict[str, object]]:
    """Every direction's depth, and that of both directions between two conditions."""
    streams = {
        (source, target): own.at("resid_post")
        for (source, target, control), own in moves.items()
        if not control and base not in (source, target)
    }
    curves = {pair: _damage(own, scale) for pair, own in streams.items()}
    layers = [cell.layer for own in list(streams.values())[:1] for cell in own.cells]
    for (source, target), curve in curves.items():
        yield _depth_row("interchange_depth", source, target, curve, layers, scale)
    for number, (source, target) in enumerate(curves):
        if (target, source) in list(curves)[number + 1 :]:
            worse = np.maximum(curves[source, target], curves[target, source])
            yield _depth_row("state_equivalence_depth", source, target, worse, layers, scale)


def _damage(own: Effects, scale: Resampling) -> Float[ndarray, "replicate layer"]:
    """Mean damage by layer under every replicate; NaN under one that has no query."""
    layers = [cell.layer for cell in own.cells]
    if layers != sorted(set(layers)):
        raise ValueError(f"a depth needs layers in order, not {layers}")
    total = ratio(own.to_target, 1.0, scale)
    with np.errstate(invalid="ignore"):
        return (total.numerator / total.denominator)[..., 0]


def _depth_row(
    measure: str,
    source: str,
    target: str,
    curve: ndarray,
    layers: Sequence[int],
    scale: Resampling,
) -> dict[str, object]:
    """`layers`: those of the curve; at none of them is one beyond the last."""
    stops = [*layers, layers[-1] + 1]
    found = np.interp(
        equivalence_depth(curve, scale.tolerance), range(len(stops)), stops
    )  # NaN stays NaN
    never = found[0] > layers[-1]
    ends = (found[0], *percentile_interval(found[1:]))
    value, low, high = (np.nan if never else float(x) for x in ends)
    return {
        "measure": measure,
        "condition": source,
        "reference": target,
        "site": "resid_post",
        "position": "all",
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": len(scale.weights),
        "units": MEASURES[measure].units,
    }


# --- chosen on one half, scored on the other -----------------------------------------------------


def halves(
    keys: Sequence[str], seed: int
) -> tuple[Bool[ndarray, " query"], Bool[ndarray, " query"]]:
    """The queries on which layers and heads are selected, and those on which they are scored: a
    random half each, by the queries' keys and not by their order. ConfigError below two."""
    if len(keys) < 2:
        raise ConfigError(f"{len(keys)} queries cannot be halved: two or more are needed")
    drawn = np.array([generator_of(f"half:{seed}:{key}").random() for key in keys])
    selection = np.zeros(len(keys), dtype=bool)
    selection[np.argsort(drawn)[: len(keys) // 2]] = True
    return selection, ~selection


class _Best(NamedTuple):
    """The layer that was best on one half of the queries, and its value on the other."""

    condition: str
    reference: str
    site: str
    layer: int
    measure: str
    value: float
    ci_low: float
    ci_high: float
    n: int


def best_layer(
    own: Effects, scale: Resampling, selection: Bool[ndarray, " query"], position: str = "all"
) -> _Best:
    """Of `resid_post` (of all tokens, or of a segment) before the last layer, whose state is the
    output: the layer of most recovery; of least damage where outputs are matched."""
    there = own.at("resid_post", position=position)
    least = matched(own, scale)
    values = there.to_target if least else there.to_source
    layer = int(values[selection].mean(0)[: max(1, len(there.cells) - 1)].argmin())
    column = np.arange(len(there.cells)) == layer
    scored = there.of(column).of_queries(~selection)
    other = scale.half(~selection)
    total = ratio(scored.to_target, 1.0, other) if least else _recovery(scored, other)
    value, low, high, n = (float(x[0, 0]) for x in total.compute())
    measure = "damage" if least else "recovery"
    place = there.cells[layer].layer
    return _Best(own.source, own.target, "resid_post", place, measure, value, low, high, int(n))
