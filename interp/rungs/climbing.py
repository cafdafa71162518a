"""Maps fitted on one half of the queries, and what they do to the others: in states, in outputs.

    maps = fitted_maps(job, move, layers)                   # (layer, position) -> rung -> map
    tally = rung_scores(job, move, layers, maps, numbers)        # sums and KLs, query by query

The mapped state of the source takes the place of the receiving run's own, at all tokens of a
position and in one layer, and the run goes on from there: the target's (do the layers above take it
for the target's?), or the source's own (does it steer?). Either way the KL is that of the target's
whole answer from the patched run's: none of it is left with the target's own state in the target's
run; `none` is the source's state as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp import edits
from interp.capture import capture, chunks, keep
from interp.edits import Change, Edit
from interp.engines import Engine
from interp.errors import SubjectError
from interp.measures import wide
from interp.measures.tally import Key, Tally
from interp.moments import ShiftMoments
from interp.names import Site
from interp.patching.interchange import ConditionRun, read_conditions
from interp.patching.patched import patched_logits
from interp.patching.sequences import sequence_kl
from interp.patching.sites import reached
from interp.progress import Progress
from interp.queries import Encoded
from interp.rungs.job import LadderCell, LadderJob, LadderMove, folds_of
from interp.rungs.maps import StateMap, fit_maps
from interp.runs.ladder import INTERCHANGED, STREAM_SITE, UNMAPPED
from interp.statistics import PerQuery
from interp.store import Store
from interp.subject import Batch, Subject

LayerMaps = Mapping[tuple[int, str], Mapping[str, StateMap]]
"""(layer, position) -> rung -> its map."""


def climb(
    job: LadderJob, engine: Engine[LadderJob], store: Store, progress: Progress
) -> Iterator[tuple[LadderMove, Sequence[int], Tally]]:
    """Every map, some layers at a time, on all scored queries; shards that are done are not done
    again."""
    total = len(job.scored) * len(job.moves) * len(job.blocks)
    for number, move in enumerate(job.moves):
        for block, layers in enumerate(job.blocks):
            begin = partial(_climbing, move, layers)
            place, count = f"ladder-{number:02d}-{block:03d}", len(job.scored)
            done = partial(_told, progress, total)
            yield move, layers, store.sharded(place, count, begin, job.chunk, done, engine)


def _told(progress: Progress, total: int, newly: int) -> None:
    progress("ladder", newly, total)


def _climbing(
    move: LadderMove, layers: Sequence[int], job: LadderJob
) -> Callable[[Sequence[int]], Tally]:
    maps = fitted_maps(job, move, layers)
    return partial(rung_scores, job, move, layers, maps)


# --- fitted --------------------------------------------------------------------------------------


def fitted_maps(job: LadderJob, move: LadderMove, layers: Sequence[int]) -> LayerMaps:
    """All rungs of a map at these layers, from one pass over the fitting half."""
    folds = folds_of([query.key for query in job.fitted], job.seed)
    sums: dict[tuple[int, str], dict[int, ShiftMoments]] = {}
    for numbers in chunks(range(len(job.fitted)), job.chunk):
        chunk = [job.fitted[number] for number in numbers]
        states = _streams(job, move, chunk, layers)
        for position in job.positions:
            rows = reached(chunk, position)
            for fold in sorted(set(folds[list(numbers)])):
                kept = torch.from_numpy(rows & (folds[list(numbers)] == fold)[:, None])
                for layer, (x, y) in states.items():
                    own = sums.setdefault((layer, position), {})
                    new = ShiftMoments.of(*_tokens(job.subject, layer, x, y, kept))
                    own[fold] = own[fold].merge(new) if fold in own else new
    return {
        place: fit_maps([own[fold] for fold in sorted(own)], job.ranks)
        for place, own in sums.items()
    }


def _streams(
    job: LadderJob, move: LadderMove, chunk: Sequence[Encoded], layers: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Layer -> the source's and the target's states; blocks above the last of them do not run."""
    batch = Batch.forced(chunk, job.subject.device)
    read = {Site(STREAM_SITE, layer): keep for layer in layers}
    found = [
        capture(
            job.subject, job.subject.settings[name], batch, job.caches[name], read,
            end=max(layers) + 1, last=True,
        ).values
        for name in (move.source, move.target)
    ]  # fmt: skip
    return {site.layer: (found[0][site], found[1][site]) for site in read}


def _tokens(
    subject: Subject, layer: int, source: Tensor, target: Tensor, kept: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """States and shifts of some tokens, float64."""
    at = kept.to(source.device)
    x = wide(source[at])
    shift = wide(target[at]) - x
    if not bool(torch.isfinite(x).all() & torch.isfinite(shift).all()):
        raise SubjectError(
            f"{subject.name}: states of layer {layer} are no numbers: use a wider --dtype"
        )
    return x.cpu().double().numpy(), shift.cpu().double().numpy()


# --- scored --------------------------------------------------------------------------------------


class MappedStates(NamedTuple):
    """Both conditions' own runs on a batch, and the maps from one to the other."""

    source: ConditionRun
    target: ConditionRun
    maps: LayerMaps

    def change(self, cell: LadderCell) -> Change | None:
        """What takes the place of a receiving run's state; None where the map was not fitted."""
        site = Site(STREAM_SITE, cell.layer)
        if cell.rung == INTERCHANGED:
            return edits.replace(self.target.values[site])
        states = self.source.values[site]
        if cell.rung == UNMAPPED:
            return edits.replace(states)
        one = self.maps[cell.layer, cell.position].get(cell.rung)
        return None if one is None else _mapped(one, states)


def _mapped(one: StateMap, states: Tensor) -> Change:
    """Mapped when it is needed: all maps of all layers at once would be the largest memory."""
    return lambda own: one(states).to(own.dtype)


def rung_scores(
    job: LadderJob,
    move: LadderMove,
    layers: Sequence[int],
    maps: LayerMaps,
    numbers: Sequence[int],
) -> Tally:
    """Of the scored queries of these numbers, cell by cell: `left` and `shift`, sums of squares
    that a map leaves and that there were; `size`, of the states; `kl` in every receiving run."""
    chunk = [job.scored[number] for number in numbers]
    batch = Batch.forced(chunk, job.subject.device)
    names = (move.source, move.target)
    runs = read_conditions(job.subject, batch, job.caches, names, [STREAM_SITE])
    states = MappedStates(runs[move.source], runs[move.target], maps)
    cells = job.cells(layers)
    found = dict(zip(("left", "shift", "size"), state_squares(states, cells, chunk), strict=True))
    found["ridge"] = np.tile([_ridge(maps, cell) for cell in cells], (len(chunk), 1))
    kept: Tally = {}
    for name, array in found.items():
        kept[Key(name, *names, "")] = PerQuery.of(numbers, array)
    for receiver in job.receivers(move):
        own = names[receiver == "target"]
        kl = output_kl(job, states, own, runs[own], cells, chunk)
        kept[Key("kl", *names, receiver)] = PerQuery.of(numbers, kl)
    return kept


def _ridge(maps: LayerMaps, cell: LadderCell) -> float:
    one = maps[cell.layer, cell.position].get(cell.rung)
    return float("nan") if one is None else one.ridge


def state_squares(
    states: MappedStates, cells: Sequence[LadderCell], chunk: Sequence[Encoded]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over a query's tokens, `[query, cell]` each, NaN where it has none or a rung no map:
    `|target - map(source)|^2`, `|target - source|^2`, `|source|^2`."""
    left, shift, size = (np.full((len(chunk), len(cells)), np.nan) for _ in range(3))
    for number, cell in enumerate(cells):
        change, rows = states.change(cell), reached(chunk, cell.position)
        if change is None:
            continue
        site = Site(STREAM_SITE, cell.layer)
        x, y = (wide(run.values[site]) for run in (states.source, states.target))
        own = rows.any(-1)
        for array, values in ((left, y - change(x)), (shift, y - x), (size, x)):
            sums = values.square().sum(-1).cpu().numpy()
            array[own, number] = np.where(rows, sums, 0.0).sum(-1)[own]
    return left, shift, size


def output_kl(
    job: LadderJob,
    states: MappedStates,
    receiver: str,
    own: ConditionRun,
    cells: Sequence[LadderCell],
    chunk: Sequence[Encoded],
) -> np.ndarray:
    """`KL(target || the receiver's run with the cell's state)`, nats per answer, `[query, cell]`;
    NaN where a query has no token there, or a rung no map. A state that is the run's own leaves it
    as it is, and nothing is run."""
    batch = Batch.forced(chunk, job.subject.device)
    said, tokens = states.target.logits, batch.answer
    measured = np.full((len(cells), len(chunk)), np.nan)
    itself = INTERCHANGED if own is states.target else UNMAPPED
    measured[[cell.rung == itself for cell in cells]] = sequence_kl(said, own.logits, tokens).cpu()
    changes = {n: states.change(cell) for n, cell in enumerate(cells) if cell.rung != itself}
    numbered = [number for number, change in changes.items() if change is not None]
    patches = [[_edit(cells[number], changes[number], chunk, batch)] for number in numbered]
    setting = job.subject.settings[receiver]
    runs = patched_logits(job.subject, setting, batch, own.cache, own.entries, patches, job.rows)
    for some, logits in runs:
        for number, row in zip(some, logits, strict=True):
            cell, kl = cells[numbered[number]], sequence_kl(said, row, tokens).cpu().numpy()
            if np.isnan(kl).any():
                raise SubjectError(
                    f"{cell.rung} map of layer {cell.layer}, put into {receiver}'s run, gives "
                    "logits that are no numbers: use a wider --dtype"
                )
            measured[numbered[number]] = kl
    for number, cell in enumerate(cells):
        measured[number, ~reached(chunk, cell.position).any(-1)] = np.nan
    return measured.T


def _edit(cell: LadderCell, change: Change | None, chunk: Sequence[Encoded], batch: Batch) -> Edit:
    assert change is not None
    mask = torch.from_numpy(reached(chunk, cell.position)).to(batch.ids.device)
    return Edit(
        Site(STREAM_SITE, cell.layer), change, where=None if cell.position == "all" else mask
    )
