"""The rows of a run's table that come of a ladder.

    rows = ladder_rows(job, move, layers, tally, replicates=200, tolerance=0.02, noise=1e-5)

Shares are ratios of sums over queries, each group of queries apart; intervals resample the queries
that score, and leave the maps as they were fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray

from interp.measures.tally import Key, Tally
from interp.patching.effects import move_rows
from interp.rungs.job import LadderCell, LadderJob, LadderMove
from interp.runs.ladder import INTERCHANGED, MEASURE_PREFIX, STREAM_SITE, UNMAPPED
from interp.statistics import Estimate, PerQuery, pooled


class Drawing(NamedTuple):
    """How queries are resampled, and what counts as nothing: a mean KL (nats per answer), a shift
    over a state (of the model's number format)."""

    replicates: int
    seed: int
    tolerance: float
    noise: float


class _Place(NamedTuple):
    """Where a row is measured, as the table has it."""

    site: str
    layer: int
    head: None
    position: str


def ladder_rows(
    job: LadderJob,
    move: LadderMove,
    layers: Sequence[int],
    tally: Tally,
    drawing: Drawing,
) -> Iterator[pd.DataFrame]:
    """Rows of one map at some layers, group of queries by group."""
    cells = job.cells(layers)
    groups = np.array(job.groups)
    for group in dict.fromkeys(job.groups):
        mine = groups == group
        keys = [q.key for q, keep in zip(job.scored, mine, strict=True) if keep]
        for measure, kept, estimate in _measured(job, move, cells, tally, mine, keys, drawing):
            yield _rows(move, cells, measure, kept, estimate).assign(queries=group)
    ridge = _values(tally, move, "ridge")[:1]
    known, unknown = np.isfinite(ridge[0]), np.full(len(cells), np.nan)
    one = Estimate(ridge[0], unknown, unknown, np.full(len(cells), len(job.fitted)))
    yield _rows(move, cells, "mapped_ridge", known, one).assign(queries="matched")


def _measured(
    job: LadderJob,
    move: LadderMove,
    cells: Sequence[LadderCell],
    tally: Tally,
    mine: Bool[ndarray, " query"],
    keys: Sequence[str],
    drawing: Drawing,
) -> Iterator[tuple[str, Bool[ndarray, " cell"], Estimate]]:
    """(measure, the cells that have it, its estimate of every cell)."""
    rungs = np.array([cell.rung for cell in cells])
    maps = (rungs != UNMAPPED) & (rungs != INTERCHANGED)

    def share(above: ndarray, below: ndarray) -> Estimate:
        return pooled(above, below, keys, drawing.replicates, drawing.seed)

    left, shift, size = (_values(tally, move, name)[mine] for name in ("left", "shift", "size"))
    found = share(shift - left, shift)
    some = np.nansum(shift, 0) > drawing.noise**2 * np.nansum(size, 0)
    yield "mapped_variance", maps, _only(found, some)
    for receiver in job.receivers(move):
        prefix, kl = MEASURE_PREFIX[receiver], _values(tally, move, "kl", receiver)[mine]
        unmapped, ceiling = (_of_rung(kl, cells, rung) for rung in (UNMAPPED, INTERCHANGED))
        yield f"{prefix}_kl", rungs != "", share(kl, np.ones_like(kl))
        known = np.nan_to_num(np.nanmean(unmapped, 0)) > drawing.tolerance
        yield f"{prefix}_recovery", rungs != UNMAPPED, _only(share(unmapped - kl, unmapped), known)
        short = share(kl - ceiling, unmapped)
        yield f"{prefix}_shortfall", rungs != INTERCHANGED, _only(short, known)


def _values(
    tally: Tally, move: LadderMove, field: str, receiver: str = ""
) -> Float[ndarray, "query cell"]:
    kept = tally[Key(field, move.source, move.target, receiver)]
    assert isinstance(kept, PerQuery)
    return kept.compute()


def _of_rung(
    values: Float[ndarray, "query cell"], cells: Sequence[LadderCell], rung: str
) -> Float[ndarray, "query cell"]:
    """What one rung has at the layer and position of every cell."""
    place = {cell[:2]: number for number, cell in enumerate(cells) if cell.rung == rung}
    return values[:, [place[cell[:2]] for cell in cells]]


def _only(found: Estimate, kept: Bool[ndarray, " cell"]) -> Estimate:
    """NaN on no query where it is not defined."""
    value, low, high = (np.where(kept, column, np.nan) for column in found[:3])
    return Estimate(value, low, high, np.where(kept, found.n, 0))


def _rows(
    move: LadderMove,
    cells: Sequence[LadderCell],
    measure: str,
    kept: Bool[ndarray, " cell"],
    found: Estimate,
) -> pd.DataFrame:
    some = [cell for cell, keep in zip(cells, kept, strict=True) if keep]
    places = [_Place(f"{STREAM_SITE}:{c.rung}", c.layer, None, c.position) for c in some]
    column = Estimate(*(part[kept][:, None] for part in found))
    return move_rows(move[:2], places, measure, column)
