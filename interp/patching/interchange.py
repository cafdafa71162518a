"""Interchange: one condition's values put into another's run, cell by cell, on the same queries.

    plan = Sweep("prompt", "lora", "base", whole=("resid_post",), by_head=("z",), positions=())
    effects = run_interchange(subject, plan, chunk, partners, caches, rows=2048)

Every direction between the two and base is run, and two controls: the target's own value moved as
far as the source lies from it, in a random direction, and along the difference that the same two
conditions show at an unrelated query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp import edits
from interp.batch import Tokens
from interp.capture import Reader, capture, keep
from interp.edits import Change, Edit
from interp.errors import SubjectError
from interp.measures.attention import read_rows
from interp.names import Site
from interp.patching.effects import PATCHING_CONTROLS, Effects
from interp.patching.patched import patched_logits
from interp.patching.sequences import sequence_kl, sequence_odds, targets_of
from interp.patching.sites import PatchSite, counterparts, reached
from interp.queries import Encoded
from interp.statistics import generator_of
from interp.subject import Batch, Subject


class PatchMove(NamedTuple):
    """Whose values go into whose run, and which control of that move it is ("" for itself)."""

    source: str
    target: str
    control: str = ""


@dataclass(frozen=True)
class Sweep:
    """What is put where.

    `a`, `b`: the two conditions, `b` the one whose top token stands for a missing answer. `whole`:
    sites replaced as a whole, layer by layer; `by_head`: sites replaced head by head; `positions`:
    labels of the query tokens at which `resid_post` is replaced alone (`last`, `0`, `1`, ...).
    `pattern`: `content` keeps the target's mass before the query, `row` moves whole rows.
    `segments`: where whole sites are replaced too, beside all tokens; `head_segments`: the `z` of
    every head.
    """

    a: str
    b: str
    base: str
    whole: tuple[str, ...]
    by_head: tuple[str, ...]
    positions: tuple[str, ...]
    pattern: str = "content"
    seed: int = 0
    segments: tuple[str, ...] = ()
    head_segments: tuple[str, ...] = ()
    every: int = 1

    @property
    def conditions(self) -> tuple[str, str, str]:
        return self.a, self.b, self.base

    @property
    def read(self) -> tuple[str, ...]:
        """The sites whose values are moved."""
        return (*self.whole, *self.by_head, *(["resid_post"] if self.positions else []))

    @property
    def moves(self) -> list[PatchMove]:
        """Both directions, into base, base into both; then the controls of all but the last."""
        a, b, base = self.conditions
        own = [PatchMove(a, b), PatchMove(b, a), PatchMove(a, base), PatchMove(b, base)]
        controls = [move._replace(control=control) for move in own for control in PATCHING_CONTROLS]
        return [*own, PatchMove(base, a), PatchMove(base, b), *controls]

    def sites(self, subject: Subject, name: str) -> list[Site]:
        """Of the layers that have the site, every so many back from the last."""
        return subject.sites(name)[:: -self.every][::-1]

    def cells(self, subject: Subject, move: PatchMove) -> tuple[PatchSite, ...]:
        """Every place of a move; a control has the whole sites only."""
        places = [
            PatchSite(site.name, site.layer, None, position)
            for name in self.whole
            for position in ("all", *self.segments)
            for site in self.sites(subject, name)
        ]
        if not move.control:
            stream = self.sites(subject, "resid_post")
            places += [
                PatchSite("resid_post", s.layer, None, p) for s in stream for p in self.positions
            ]
            places += [
                PatchSite(site.name, site.layer, head, position)
                for name in self.by_head
                for position in ("all", *(self.head_segments if name == "z" else ()))
                for site in self.sites(subject, name)
                for head in range(n_heads(subject, name))
            ]
        return tuple(places)


def n_heads(subject: Subject, site: str) -> int:
    """How many heads a site has: grouped-query models have fewer keys and values."""
    return subject.n_key_value_heads if site in ("k", "v") else subject.n_heads


def partners(keys: Sequence[object], seed: int | str) -> list[int]:
    """For every query another one, each used once: neighbours on a random circle."""
    order = generator_of(f"partners:{seed}:{len(keys)}").permutation(len(keys))
    found = np.empty(len(keys), np.int64)
    found[order] = np.roll(order, 1)
    return found.tolist()


@dataclass(frozen=True)
class ConditionRun:
    """One condition's run on a batch: its values by site (patterns: content or whole rows), its
    logits `[token, d_vocab]` where answers are predicted, and what preceded the query."""

    values: dict[Site, Tensor]
    logits: Tensor
    cache: Any = field(repr=False)

    @property
    def entries(self) -> dict[Site, Tensor]:
        """What entered every block."""
        return {site: v for site, v in self.values.items() if site.name == "resid_pre"}


def read_conditions(
    subject: Subject,
    batch: Batch,
    caches: Mapping[str, Any],
    names: Sequence[str],
    sites: Sequence[str],
    pattern: str = "content",
) -> dict[str, ConditionRun]:
    """The conditions' own runs, read at these sites and at what enters every block."""
    read: dict[Site, Reader] = {
        site: reader_of(name, pattern)
        for name in dict.fromkeys(["resid_pre", *sites])
        for site in subject.sites(name)
    }
    found, tokens = {}, batch.answer
    for name in names:
        setting, cache = subject.settings[name], caches[name]
        got = capture(subject, setting, batch, cache, read, columns=tokens.columns)
        found[name] = ConditionRun(got.values, tokens.pick_rows(got.logits), cache)
    return found


def reader_of(site: str, pattern: str) -> Reader:
    """What of a site's value moves: all of it; of a pattern, its content or its whole rows."""
    if site != "pattern":
        return keep
    if pattern == "content":
        return lambda value: read_rows(value.detach()).content
    return lambda value: value.detach().clone()


def change_of(site: str, pattern: str, value: Tensor) -> Change:
    """How what was read of a site takes the place of the target's."""
    if site != "pattern":
        return edits.replace(value)
    return (edits.content_rows if pattern == "content" else edits.whole_rows)(value)


def run_interchange(
    subject: Subject,
    plan: Sweep,
    chunk: Sequence[Encoded],
    others: Sequence[Encoded],
    caches: Mapping[str, Any],
    rows: int,
) -> list[Effects]:
    """All moves on one chunk of queries; `others` are their unrelated partners, one for one, and
    `rows` says how many query rows fit one forward pass."""
    batch, other = Batch.forced(chunk, subject.device), Batch.forced(others, subject.device)
    names, tokens = plan.conditions, batch.answer
    states = read_conditions(subject, batch, caches, names, plan.read, plan.pattern)
    unrelated = read_conditions(subject, other, caches, names, plan.whole)
    targets = targets_of(chunk, states[plan.b].logits)
    values = _Values(plan, chunk, others, states, unrelated)
    found = []
    for target in names:
        moves = [move for move in plan.moves if move.target == target]
        cells = {move: plan.cells(subject, move) for move in moves}
        places = [(move, cell) for move in moves for cell in cells[move]]
        patches = [[values.edit(move, cell)] for move, cell in places]
        measured = np.empty((len(places), 3, len(chunk)))
        setting, own = subject.settings[target], states[target]
        runs = patched_logits(subject, setting, batch, own.cache, own.entries, patches, rows)
        for numbers, logits in runs:
            for number, row in zip(numbers, logits, strict=True):
                said = states[places[number][0].source].logits
                measured[number, 0] = sequence_kl(own.logits, row, tokens).cpu()
                measured[number, 1] = sequence_kl(said, row, tokens).cpu()
                measured[number, 2] = sequence_odds(row, targets, tokens).cpu()
        for number, (move, cell) in enumerate(places):
            if np.isnan(measured[number]).any():
                raise SubjectError(
                    f"{cell.site} of layer {cell.layer}, put from {move.source} into "
                    f"{move.target}'s run, gives logits that are no numbers: use a wider --dtype"
                )
            measured[number, :, ~values.reached[cell.position].any(-1)] = np.nan
        for move in moves:
            mine = [number for number, (owner, _) in enumerate(places) if owner == move]
            found.append(effects_of(move, cells[move], measured[mine], states, targets, tokens))
    return found


def effects_of(
    move: PatchMove,
    cells: tuple[PatchSite, ...],
    measured: np.ndarray,
    states: Mapping[str, ConditionRun],
    targets: Tensor,
    tokens: Tokens,
) -> Effects:
    """From `measured` `[cell, 3, query]`: damage, distance to the source, log-odds."""
    source, target = states[move.source].logits, states[move.target].logits
    damage, distance, odds = measured.transpose(1, 2, 0)
    return Effects(
        *move,
        cells,
        damage,
        distance,
        odds,
        apart=sequence_kl(source, target, tokens).cpu().numpy(),
        source_odds=sequence_odds(source, targets, tokens).cpu().numpy(),
        target_odds=sequence_odds(target, targets, tokens).cpu().numpy(),
    )


@dataclass(frozen=True)
class _Values:
    """What takes the place of the target's value at a cell."""

    plan: Sweep
    chunk: Sequence[Encoded]
    others: Sequence[Encoded]
    states: Mapping[str, ConditionRun]
    unrelated: Mapping[str, ConditionRun]

    @cached_property
    def reached(self) -> dict[str, np.ndarray]:
        """Every position's tokens, bool `[query, query_pos]`."""
        plan = self.plan
        labels = dict.fromkeys(["all", *plan.segments, *plan.head_segments, *plan.positions])
        return {label: reached(self.chunk, label) for label in labels}

    def edit(self, move: PatchMove, cell: PatchSite) -> Edit:
        site = Site(cell.site, cell.layer)
        value = self.states[move.source].values[site]
        if move.control:
            value = self._control(move, site)
        if cell.head is not None:
            value = value[:, cell.head]
        change = change_of(cell.site, self.plan.pattern, value)
        mask = torch.from_numpy(self.reached[cell.position]).to(value.device)
        return Edit(site, change, cell.head, None if cell.position == "all" else mask)

    def _control(self, move: PatchMove, site: Site) -> Tensor:
        """The target's value, moved as far as the source's lies from it."""
        own = self.states[move.target].values[site]
        distance = (self.states[move.source].values[site] - own).norm(dim=-1, keepdim=True)
        if move.control == "random_direction":
            step = self._noise(own)
        else:
            there = self.unrelated
            difference = there[move.source].values[site] - there[move.target].values[site]
            step = aligned_tokens(difference, self.chunk, self.others)
        return moved(own, step, distance)

    def _noise(self, like: Tensor) -> Tensor:
        """One random direction per query token, the same at every site and layer."""
        width, size = like.shape[1], like.shape[-1]
        drawn = [
            generator_of(f"direction:{self.plan.seed}:{query.key}").standard_normal((width, size))
            for query in self.chunk
        ]
        return torch.tensor(np.stack(drawn), device=like.device, dtype=like.dtype)


def moved(own: Tensor, step: Tensor, distance: Tensor) -> Tensor:
    """Every token's own value, moved in the direction of a step, as far as a distance `[..., 1]`;
    not at all where the step has no direction."""
    length = step.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(length.dtype).tiny
    return own + step / length.clamp(min=tiny) * distance


def aligned_tokens(value: Tensor, chunk: Sequence[Encoded], others: Sequence[Encoded]) -> Tensor:
    """Other queries' tokens under these queries', segment by segment."""
    rows = [torch.tensor(counterparts(*pair)) for pair in zip(chunk, others, strict=True)]
    place = pad_sequence(rows, batch_first=True).to(value.device)
    return value.gather(1, place[..., None].expand(-1, -1, value.shape[-1]))


def no_op_change(
    subject: Subject, plan: Sweep, chunk: Sequence[Encoded], caches: Mapping[str, Any]
) -> float:
    """The largest change of a logit when base's own values are put back into base's run, every site
    (whole, at segments and single positions, all of its heads one by one) in a forward pass of its
    own: exactly 0, or the instrument itself does damage."""
    batch = Batch.forced(chunk, subject.device)
    states = read_conditions(subject, batch, caches, [plan.base], plan.read, plan.pattern)
    values = _Values(plan, chunk, chunk, states, {})
    own, itself = states[plan.base], PatchMove(plan.base, plan.base)
    together: dict[tuple[str, int, str], list[Edit]] = {}
    for cell in plan.cells(subject, itself):
        place = (cell.site, cell.layer, cell.position)
        together.setdefault(place, []).append(values.edit(itself, cell))
    patches = list(together.values())
    runs = patched_logits(
        subject, subject.settings[plan.base], batch, own.cache, own.entries, patches, len(chunk)
    )
    return max(float((logits[0] - own.logits).abs().max()) for _, logits in runs)


def rows_within(
    subject: Subject, names: Sequence[str], queries: Sequence[Encoded], budget: float
) -> int:
    """How many queries of a patched run fit a budget of bytes, by the longest of them: the repeated
    prefix, one block's activations, logits."""
    longest = max(len(query.forced) for query in queries)
    answer = max(1, *(len(query.answer_ids) for query in queries))
    prefix = max(subject.settings[name].n_prefix for name in names)
    kv = subject.n_key_value_heads * subject.d_head
    cache = 4 * subject.n_layers * kv * (prefix + longest)
    attention = 3 * subject.n_heads * longest * (prefix + longest)
    states = longest * (8 * subject.d_model + 3 * subject.d_mlp)
    logits = 4 * answer * subject.d_vocab
    return max(1, int(budget / (4 * (cache + attention + states + logits))))
