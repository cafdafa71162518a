"""Subspaces of the residual stream that carry a condition: `interp subspace` on a finished run.

    find_subspaces(Subspaces(run="RUN"))        # RUN/subspaces.parquet, findings in its manifest

The run says which model, conditions and queries. Bases are learned on one half of the matched
queries, and scored on the other half and on the held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.answers import encode_again
from interp.design import BASE
from interp.errors import ConfigError
from interp.measures.tally import Key, Tally
from interp.patching.effects import Resampling, halves
from interp.patching.interchange import PatchMove, rows_within
from interp.patching.job import pair_to_patch
from interp.patching.joint import divided
from interp.preparing import open_subject, read_groups, reopen
from interp.progress import Progress, no_progress
from interp.queries import Encoded
from interp.runs.files import add_subspaces, as_table
from interp.runs.subspaces import CROSSED, DIFFERENCE, LEARNED, PRINCIPAL, ROTATION, SHUFFLED
from interp.runs.view import load_run
from interp.statistics import PerQuery
from interp.store import Store
from interp.subject.loading import threads_for
from interp.subspace.findings import SwapScores, recovery_rows, subspace_words
from interp.subspace.learning import learn_basis, principal_directions, random_basis
from interp.subspace.settings import Subspaces
from interp.subspace.swaps import Bases, Swap, SwapJob, loss_of, read_swaps, score_swaps

__all__ = ["find_subspaces"]

_FEWEST = 4
"""Queries that can be halved, with a partner each."""
_PARTNERS = 2
"""Queries that can be each other's partner."""


def find_subspaces(settings: Subspaces, progress: Progress = no_progress) -> Path:
    """Learn and score the subspaces of a finished run's two conditions; returns the run's folder.

    Raises what `interp.study.run_study` raises, each with one line that says what to do.
    """
    manifest = load_run(settings.run).manifest
    with Store.of_run(settings, manifest, "subspace", {"memory"}) as store:
        search = _prepare(settings, manifest, store, progress)
        with threads_for(search.job.subject.n_parameters):
            table, findings = _find(search)
        add_subspaces(settings.run, table, findings)
    return settings.run


def _prepare(
    settings: Subspaces, manifest: Mapping[str, Any], store: Store, progress: Progress
) -> _Search:
    """The model of a run under the two conditions and base alone, and its queries."""
    experiment, built = reopen(settings.run, settings.device, settings.limit)
    a, b = pair_to_patch(settings, manifest, built)
    kept = {name: built[name] for name in (BASE, a, b)}
    asked = read_groups(experiment)
    subject = open_subject(experiment, kept, asked["matched"], progress)
    groups = encode_again(settings.run, subject, kept, asked)
    if len(groups["matched"]) < _FEWEST:
        raise ConfigError(f"{settings.run} has fewer than {_FEWEST} matched queries: too few")
    everyone = [query for queries in groups.values() for query in queries]
    rows = rows_within(subject, list(kept), everyone, settings.memory * 1e9)
    caches = {name: subject.prefill(subject.settings[name]) for name in kept}
    job = SwapJob(subject, caches, rows, experiment.seed)
    dimensions = _dimensions(settings, subject.d_model)
    layers = _layers(settings, subject.n_layers)
    return _Search(settings, job, (a, b), groups, layers, dimensions, store, progress)


def _dimensions(settings: Subspaces, width: int) -> list[int]:
    found = sorted(set(settings.dimensions))
    if not found or found[0] < 1 or found[-1] >= width:
        raise ConfigError(
            f"--dimensions {' '.join(map(str, settings.dimensions))}: a residual stream of {width} "
            f"has proper subspaces of 1 to {width - 1} dimensions; name at least one"
        )
    return found


def _layers(settings: Subspaces, depth: int) -> list[int]:
    usual = {depth // 4, depth // 2, 3 * depth // 4}
    found = sorted(set(settings.layers) or usual)
    if wrong := [layer for layer in found if not 0 <= layer < depth]:
        raise ConfigError(f"--layers {wrong[0]}: the model has layers 0 to {depth - 1}")
    return found


@dataclass(frozen=True)
class _Search:
    """What is learned and scored, and where what is done is kept."""

    settings: Subspaces
    job: SwapJob
    pair: tuple[str, str]
    groups: Mapping[str, Sequence[Encoded]]
    layers: Sequence[int]
    dimensions: Sequence[int]
    store: Store
    progress: Progress

    @cached_property
    def scored(self) -> dict[str, list[Encoded]]:
        """The queries that score: those that no basis was learned on."""
        return {
            "matched": self._halved[1],
            **{n: [*q] for n, q in self.groups.items() if n != "matched"},
        }

    @property
    def learned_on(self) -> list[Encoded]:
        """One half of the matched queries."""
        return self._halved[0]

    @cached_property
    def parts(self) -> list[list[Encoded]]:
        """The queries of this half that give gradients, and a quarter of it that says when to stop;
        too few queries do both."""
        own = self.learned_on
        few = own[3::4]
        return [own, own] if len(few) < _PARTNERS else [[q for q in own if q not in few], few]

    @cached_property
    def _halved(self) -> tuple[list[Encoded], list[Encoded]]:
        queries = self.groups["matched"]
        selection, _ = halves([query.key for query in queries], self.job.seed)
        return divided(queries, selection)

    @cached_property
    def moves(self) -> list[PatchMove]:
        """Into base, and into each other, where outputs are apart."""
        a, b = self.pair
        every = [PatchMove(a, BASE), PatchMove(b, BASE), PatchMove(a, b), PatchMove(b, a)]
        return [move for move in every if self._apart(move) > self.settings.tolerance]

    def _apart(self, move: PatchMove) -> float:
        swaps = read_swaps(self.job, move, self.layers[0], self.groups["matched"], self.job.rows)
        return float(torch.cat([swap.apart for swap in swaps]).mean())

    def kept(self, name: str, make: Callable[[], Tally]) -> Tally:
        """What was made under this name before, or is now."""
        found = self.store.get(name)
        if found is None:
            found = make()
            self.store.put(name, found)
        return found


def _find(search: _Search) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the run's table, and what its manifest says of them."""
    settings, width = search.settings, search.job.subject.d_model
    scales = {
        group: Resampling.of(
            [q.key for q in queries], settings.bootstrap, 0, search.job.seed, settings.tolerance
        )
        for group, queries in search.scored.items()
    }
    tables = [
        recovery_rows(scores, search.dimensions, width, scales[scores.queries], settings.margin)
        for scores in _scores(search)
    ]
    table = pd.concat(tables, ignore_index=True) if tables else as_table([])
    a, b = search.pair
    moves = [(move.source, move.target) for move in search.moves]
    silent = [pair for pair in ((a, BASE), (b, BASE), (a, b)) if pair not in moves]
    findings = {
        "condition": a,
        "reference": b,
        "moves": moves,
        "layers": search.layers,
        "dimensions": search.dimensions,
        "width": width,
        "margin": settings.margin,
        "learned_on": len(search.learned_on),
        "n": {group: len(queries) for group, queries in search.scored.items()},
        "interval": {"replicates": settings.bootstrap},
        "verdict": [*subspace_words(table, moves, search.dimensions, settings.margin)],
        "notes": [
            f"{source} and {target} say the same (up to {settings.tolerance:g} nats per answer): "
            "there is nothing to recover between them"
            for source, target in silent
        ],
    }
    return table, findings


def _scores(search: _Search) -> Iterator[SwapScores]:
    """Every move at every layer, on every group of queries that scores."""
    for layer in search.layers:
        bases = {move: _learned(search, move, layer) for move in search.moves}
        for move in search.moves:
            kinds = dict(bases[move])
            other = next((m for m in search.moves if m.target == move.target and m != move), None)
            if other is not None:
                kinds[CROSSED] = bases[other][LEARNED]
            for group, queries in search.scored.items():
                near = _scored(search, move, layer, group, queries, kinds)
                yield SwapScores(move.source, move.target, layer, group, near)


def _learned(search: _Search, move: PatchMove, layer: int) -> dict[str, Bases]:
    """All kinds of bases of a move at a layer."""
    job, size = search.job, max(1, search.job.rows // search.job.subject.n_layers)
    swaps = [read_swaps(job, move, layer, queries, size) for queries in search.parts]
    leading = {
        LEARNED: principal_directions(torch.cat([swap.tokens for swap in swaps[0]])),
        SHUFFLED: principal_directions(torch.cat([swap.tokens_of_others for swap in swaps[0]])),
    }
    found: dict[str, list[list[Tensor]]] = {kind: [] for kind in (LEARNED, SHUFFLED)}
    for k in search.dimensions:
        for kind in (LEARNED, SHUFFLED):
            basis = _one(search, move, layer, kind, swaps, leading[kind][:, :k])
            found[kind].append([basis])
            search.progress("subspaces learned", 1, _count(search))
    width, like = job.subject.d_model, leading[LEARNED]
    return {
        **found,
        PRINCIPAL: [[leading[LEARNED][:, :k]] for k in search.dimensions],
        ROTATION: [
            [
                random_basis(f"rotation:{job.seed}:{layer}:{k}:{i}", width, k, like)
                for i in range(search.settings.draws)
            ]
            for k in search.dimensions
        ],
        DIFFERENCE: found[LEARNED],
    }


def _count(search: _Search) -> int:
    return 2 * len(search.layers) * len(search.moves) * len(search.dimensions)


def _one(
    search: _Search,
    move: PatchMove,
    layer: int,
    kind: str,
    swaps: Sequence[Sequence[Swap]],
    start: Tensor,
) -> Tensor:
    """One basis, learned now or before; `swaps`: to learn from, and to judge by."""
    settings, k = search.settings, start.shape[1]
    place = Key(f"basis {kind}", move.source, move.target, f"{layer} {k}")

    def learn() -> Tally:
        loss = loss_of(search.job, move, swaps[0], shuffled=kind == SHUFFLED)
        how = (settings.steps, settings.patience, settings.rate)
        found = learn_basis(loss, start, *how, partial(_judged, search, move, kind, swaps[1]))
        return {place: PerQuery.of(range(len(start)), found.basis.cpu().numpy())}

    number = search.moves.index(move)
    kept = search.kept(f"{kind}-{number}-{layer}-{k}", learn)[place]
    assert isinstance(kept, PerQuery)
    return torch.from_numpy(kept.compute()).to(start)


def _judged(
    search: _Search, move: PatchMove, kind: str, swaps: Sequence[Swap], basis: Tensor
) -> float:
    """Mean divergence on queries that give no gradient."""
    return float(score_swaps(search.job, move, swaps, {kind: [[basis]]})[kind].mean())


def _scored(
    search: _Search,
    move: PatchMove,
    layer: int,
    group: str,
    queries: Sequence[Encoded],
    bases: Mapping[str, Bases],
) -> dict[str, np.ndarray]:
    """Divergences of a group's queries by kind, measured now or before."""

    def score() -> Tally:
        swaps = read_swaps(search.job, move, layer, queries, search.job.rows)
        near = score_swaps(search.job, move, swaps, bases)
        return {
            Key(kind, move.source, move.target, group): PerQuery.of(range(len(queries)), values)
            for kind, values in near.items()
        }

    number = search.moves.index(move)
    found = search.kept(f"score-{number}-{layer}-{group}", score)
    search.progress(
        "subspaces scored", 1, len(search.layers) * len(search.moves) * len(search.scored)
    )
    return {key.measure: one.compute() for key, one in found.items() if isinstance(one, PerQuery)}
