"""A LoRA's own variables on a run: does the prompt use the channel that the LoRA opened?

    rows, tokens, found = own_variables(job, states_of, plan)

Energy shares of what prompts change along the LoRA's directions, the texts and tokens that drive
each direction, and whether a direction tells the run's queries from unrelated text; each beside a
neutral prompt and the directions of a random LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from interp.design import BASE
from interp.measures import DTYPE_NOISE
from interp.measures.tally import Key, Tally
from interp.queries import Encoded
from interp.reading.channels import (
    IN,
    OUT,
    Channels,
    changes,
    coordinates,
    energies,
    energy_by_module,
    watched_modules,
)
from interp.reading.job import ReadJob
from interp.reading.states import token_shares
from interp.statistics import PerQuery
from interp.subject import Batch

SIDES_OF_MODULE = (IN, OUT)


class Variables(NamedTuple):
    """Whose directions are followed, and in which runs.

    `lora`: the condition whose LoRA it is; `owners`: it and a random LoRA, where the run has one;
    `users`: the conditions that leave the weights alone (prompt, neutral prompt)."""

    lora: str
    owners: Mapping[str, Channels]
    users: tuple[str, ...]

    @property
    def own(self) -> Channels:
        """The LoRA's."""
        return self.owners[self.lora]


@dataclass(frozen=True)
class SeenVariables:
    """What one group of texts showed, query by query.

    `energy`: (run, owner, side) -> energy of the changes from base along the owner's directions,
    `[query, label, module]`, `total`: (run, side) -> all of it; means over a label's tokens.
    `cosines`: (run, owner, side) -> mean over text tokens of `|V_k x| / ‖x‖`, `[query, direction]`.
    `coordinates`: `V_k x` in the LoRA's own run, `[query, query_pos, direction]`.
    """

    labels: Sequence[str]
    energy: Mapping[tuple[str, str, str], Float[ndarray, "query label module"]]
    total: Mapping[tuple[str, str], Float[ndarray, "query label module"]]
    cosines: Mapping[tuple[str, str, str], Float[ndarray, "query direction"]]
    coordinates: Float[ndarray, "query query_pos direction"]


def variables_of(job: ReadJob) -> Variables | None:
    """The first side that is one plain LoRA; None without one."""
    from interp.subject.directions import ranks

    weights, settings = job.subject.weights, job.subject.settings

    def plain(name: str) -> bool:
        return bool(ranks(weights, weights.only_adapter(settings[name])))

    lora = next((side for side in job.sides if plain(side)), None)
    if lora is None:
        return None
    names = [lora, *([job.random] if job.random and plain(job.random) else [])]
    owners = {name: Channels.of(job.subject, name) for name in names}
    if len({tuple(own.places) for own in owners.values()}) > 1:  # not of the same modules
        del owners[names[1]]
    base = settings[BASE].weights
    users = [name for name in (*job.sides, job.neutral) if name and settings[name].weights == base]
    return Variables(lora, owners, tuple(dict.fromkeys(users)))


def following(group: str, variables: Variables, job: ReadJob) -> Callable[[Sequence[int]], Tally]:
    """What is kept of some queries of a group."""
    queries = job.groups[group]
    width = max(len(query.forced) for query in queries)

    def compute(numbers: Sequence[int]) -> Tally:
        some = [queries[number] for number in numbers]
        found = _followed(job, variables, some, job.labels[group], width)
        return {key: PerQuery.of(numbers, value) for key, value in found}

    return compute


def _followed(
    job: ReadJob, of: Variables, queries: Sequence[Encoded], labels: Sequence[str], width: int
) -> Iterator[tuple[Key, ndarray]]:
    subject, modules = job.subject, list(of.own.modules)
    batch = Batch.forced(queries, subject.device)
    shares = token_shares(queries, labels).to(subject.device)
    mean = partial(torch.einsum, "qpl,qpm->qlm", shares)
    watch = partial(watched_modules, subject, batch=batch, modules=modules)
    base = watch(BASE, cache=job.caches[BASE])
    text = shares[:, :, list(labels).index(text_label(labels))]
    for run in dict.fromkeys([BASE, of.lora, *of.users]):
        seen = base if run == BASE else watch(run, cache=job.caches[run])
        moved = None if run == BASE else changes(seen, base, DTYPE_NOISE[subject.dtype])
        for side in SIDES_OF_MODULE:
            if moved is not None:
                yield Key("total", run, "", side), _array(mean(energies(moved, modules, side)))
            for owner, channels in of.owners.items():
                if moved is not None:
                    along = coordinates(channels, moved, side).square()
                    energy = mean(energy_by_module(along, channels.ranks))
                    yield Key("energy", run, owner, side), _array(energy)
                if run in (BASE, of.lora):
                    cosines = _cosines(channels, seen, side)
                    kept = torch.einsum("qp,qpd->qd", text, cosines)
                    yield Key("cosine", run, owner, side), _array(kept)
        if run == of.lora:
            own = _array(coordinates(of.own, seen))
            padded = np.full((len(queries), width, own.shape[-1]), np.nan, dtype=np.float32)
            for row, query in enumerate(queries):
                padded[row, : len(query.forced)] = own[row, : len(query.forced)]
            yield Key("coordinate", run, run, IN), padded


def text_label(labels: Sequence[str]) -> str:
    """The label of the text's own tokens."""
    return "query" if "query" in labels else "mean"


def _cosines(channels: Channels, seen: Any, side: str) -> torch.Tensor:
    """`|V_k x| / ‖x‖` per token and direction, 0 of a state that is 0."""
    length = energies(seen, list(channels.modules), side).sqrt()
    each = torch.tensor(channels.ranks, device=length.device)
    repeated = length.repeat_interleave(each, dim=-1)
    tiny = torch.finfo(torch.float64).tiny
    return coordinates(channels, seen, side).abs() / repeated.clamp(min=tiny)


def _array(value: torch.Tensor) -> ndarray:
    return np.asarray(value.cpu().numpy())


def collected(tally: Tally, labels: Sequence[str]) -> SeenVariables:
    """From accumulators to arrays."""
    found: dict[str, dict[Any, ndarray]] = {"energy": {}, "total": {}, "cosine": {}}
    own = np.zeros((0, 0, 0))
    for key, kept in tally.items():
        assert isinstance(kept, PerQuery)
        place = (key.condition, key.site) if key.measure == "total" else tuple(key[1:])
        if key.measure == "coordinate":
            own = kept.compute()
        else:
            found[key.measure][place] = kept.compute()
    return SeenVariables(labels, found["energy"], found["total"], found["cosine"], own)
