"""What a ladder works on: a finished run's model, the maps that are asked for, and its queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from interp.answers import encode_again
from interp.conditions import Condition, Neutral, RandomLora, simple_parts
from interp.config import Experiment
from interp.design import BASE
from interp.errors import ConfigError
from interp.patching.effects import halves
from interp.patching.interchange import rows_within
from interp.preparing import open_subject, present_segments, read_groups, reopen
from interp.progress import Progress, no_progress
from interp.queries import Encoded
from interp.rungs.maps import rung_names
from interp.rungs.settings import Ladder
from interp.runs.ladder import INTERCHANGED, UNMAPPED
from interp.statistics import generator_of
from interp.store import SHARD
from interp.subject import Subject

FOLDS = 3
"""Parts of the fitting half; ridges are chosen with one of them left out at a time."""

FEWEST = 4
"""Matched queries without which there is no ladder: two to fit, two to score."""


class LadderMove(NamedTuple):
    """From whose states a map leads to whose, and what it is asked for."""

    source: str
    target: str
    kind: str


class LadderCell(NamedTuple):
    """One rung at one layer and position."""

    layer: int
    position: str
    rung: str


class LadderJob(NamedTuple):
    """`fitted`: the queries that maps are fitted on; `scored`: all others, with the `groups` they
    are of; `rungs`: those of every map, no map first and full interchange last; `block`: how many
    layers are fitted at once; `rows`: how many query rows fit a forward pass."""

    subject: Subject
    sides: tuple[str, ...]
    moves: tuple[LadderMove, ...]
    stands_for: Mapping[str, str]
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    ranks: tuple[int, ...]
    steer: bool
    fitted: Sequence[Encoded]
    scored: Sequence[Encoded]
    groups: Sequence[str]
    caches: Mapping[str, Any]
    rows: int
    block: int
    seed: int
    notes: Sequence[str] = ()

    @property
    def chunk(self) -> int:
        """Queries that are worked on at once."""
        return min(SHARD, self.rows)

    @property
    def rungs(self) -> list[str]:
        """No map, every map, full interchange."""
        return [UNMAPPED, *rung_names(self.ranks, self.subject.d_model), INTERCHANGED]

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """The layers, as many at a time as are fitted at once."""
        starts = range(0, len(self.layers), self.block)
        return [self.layers[start : start + self.block] for start in starts]

    def receivers(self, move: LadderMove) -> tuple[str, ...]:
        """In whose run the mapped state goes on: the target's; base's own, where it is steered."""
        return ("target", "source") if self.steer and move.source == BASE else ("target",)

    def cells(self, layers: Sequence[int]) -> list[LadderCell]:
        """Every rung at these layers."""
        return [LadderCell(i, p, r) for i in layers for p in self.positions for r in self.rungs]


def prepare_ladder(
    settings: Ladder, manifest: Mapping[str, Any], progress: Progress = no_progress
) -> LadderJob:
    """The model of a run under the conditions that maps are between; its queries, halved."""
    experiment, built = reopen(settings.run, settings.device, settings.limit)
    sides = _sides(settings, manifest, built)
    stands_for = _stand_ins(sides, built)
    moves = _moves(settings.maps, sides, stands_for, manifest.get("families") or {}, built)
    if not moves:
        raise ConfigError(f"{settings.run} has no map of {', '.join(settings.maps)}: name --maps")
    names = list(dict.fromkeys([BASE, *(name for m in moves for name in (m.source, m.target))]))
    kept, asked = {name: built[name] for name in names}, read_groups(experiment)
    if len(asked["matched"]) < FEWEST:
        raise ConfigError(
            f"{settings.run} has {len(asked['matched'])} matched queries: a ladder needs {FEWEST} "
            "or more, two to fit its maps and two to score them"
        )
    subject = open_subject(experiment, kept, asked["matched"], progress)
    groups = encode_again(settings.run, subject, kept, asked)
    return _job(settings, experiment, subject, sides, stands_for, moves, groups)


def _job(
    settings: Ladder,
    experiment: Experiment,
    subject: Subject,
    sides: tuple[str, ...],
    stands_for: Mapping[str, str],
    moves: tuple[LadderMove, ...],
    groups: Mapping[str, Sequence[Encoded]],
) -> LadderJob:
    matched = groups["matched"]
    selection, _ = halves([query.key for query in matched], experiment.seed)
    fitted = [query for query, keep in zip(matched, selection, strict=True) if keep]
    others = [query for query, keep in zip(matched, selection, strict=True) if not keep]
    scored = {
        group: queries[: settings.scored]
        for group, queries in {**groups, "matched": others}.items()
    }
    everyone = [query for queries in groups.values() for query in queries]
    present = present_segments(experiment, everyone)
    positions = ("all", *(name for name in settings.segments if name in present))
    names = list(subject.settings)
    tokens, width = sum(len(query.forced) for query in fitted), subject.d_model
    notes = [
        f"{tokens} tokens of {len(fitted)} queries fit maps in {width} dimensions: with so few, "
        "rigid and affine maps rest on their ridge"
    ]
    return LadderJob(
        subject,
        sides,
        moves,
        stands_for,
        layers=tuple(s.layer for s in subject.sites("resid_post")[:: -settings.every][::-1]),
        positions=positions,
        ranks=settings.ranks,
        steer=settings.steer,
        fitted=fitted,
        scored=[query for queries in scored.values() for query in queries],
        groups=[group for group, queries in scored.items() for _ in queries],
        caches={name: subject.prefill(subject.settings[name]) for name in names},
        rows=rows_within(subject, names, everyone, settings.memory * 1e9),
        block=max(1, int(settings.sums * 1e9 / (bytes_per_layer(width) * len(positions)))),
        seed=experiment.seed,
        notes=notes if tokens < 4 * width else (),
    )


def bytes_per_layer(width: int) -> int:
    """What a layer's maps are fitted from, and the maps: two square sums a fold, two whole maps,
    and as much again while they are fitted."""
    return 8 * width**2 * (2 * FOLDS + 2 + 4)


def folds_of(keys: Sequence[str], seed: int) -> Int[ndarray, " query"]:
    """Every fitted query's fold, by its key and not its place; as many of each as can be."""
    drawn = [generator_of(f"fold:{seed}:{key}").random() for key in keys]
    found = np.empty(len(keys), np.int64)
    found[np.argsort(drawn)] = np.arange(len(keys)) % FOLDS
    return found


# --- which maps ----------------------------------------------------------------------------------


def _sides(
    settings: Ladder, manifest: Mapping[str, Any], built: Mapping[str, Condition]
) -> tuple[str, ...]:
    """The two conditions that are compared, or the one beside base."""
    headline = manifest["headline"] or {}
    roles = ("condition", "reference")
    asked = [getattr(settings, role) or headline.get(role) for role in roles]
    names = [name for name in dict.fromkeys(asked) if name not in (None, BASE)]
    others = ", ".join(name for name in built if name != BASE)
    if not names:
        raise ConfigError(f"{settings.run} has no headline: name --condition; it has {others}")
    for name in names:
        if name not in built:
            raise ConfigError(f"no condition {name!r} in {settings.run}: it has {others}")
        if built[name].only_logits:
            raise ConfigError(f"{name} only moves logits: it has no internal state of its own")
    return tuple(names)


def _stand_ins(sides: Sequence[str], built: Mapping[str, Condition]) -> dict[str, str]:
    """Control -> the side that it stands for: neutral text for what leaves the weights alone, a
    random LoRA for what changes them."""
    found = {}
    for name, condition in built.items():
        if condition.role == "control" and name not in sides:
            parts = simple_parts(condition)
            random = any(isinstance(part, RandomLora) for part in parts)
            neutral = any(isinstance(part, Neutral) for part in parts)
            for side in sides:
                if random if built[side].reweights else neutral:
                    found[name] = side
    return found


def _moves(
    kinds: Sequence[str],
    sides: Sequence[str],
    stands_for: Mapping[str, str],
    families: Mapping[str, Sequence[str]],
    built: Mapping[str, Condition],
) -> tuple[LadderMove, ...]:
    """Every map that is asked for, each once."""
    both = [sides, sides[::-1]] if len(sides) == 2 else []

    def found() -> Iterator[LadderMove]:
        yield from (LadderMove(BASE, side, "base") for side in sides)
        yield from (LadderMove(a, b, "pair") for a, b in both)
        for side in sides:
            for members in families.values():
                known = [name for name in members if name in built]
                if side in known and len(known) > 1:
                    other = known[(known.index(side) + 1) % len(known)]
                    yield LadderMove(side, other, "within")
        for control, side in stands_for.items():
            yield LadderMove(BASE, control, "nulls")
            for a, b in both:
                swapped = [control if name == side else name for name in (a, b)]
                yield LadderMove(swapped[0], swapped[1], "nulls")

    asked = (move for move in found() if move.kind in kinds)
    return tuple({move[:2]: move for move in reversed([*asked])}.values())[::-1]
