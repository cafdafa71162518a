"""Interchange between conditions: plain hooks, one query and one edit at a time, whole sequences.

    everything = look_at_all(folder, conditions, [Asked((5, 6), answer=(7, 8))])
    table = interchange_rows(folder, everything, answers, moves, all_cells(folder, ["0"], ["z"]))

A cell's values under the source replace those of the target's run on the query's tokens and its
forced answer's; the rest runs under the target's own prefix and weights. Queries and keys are
behind the norm of a head, where there is one, and before the rotary embedding; keys and values once
for every group of heads that shares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .conditions import Condition
from .models import (
    attention,
    blocks,
    first,
    hooked,
    open_model,
    output_projection,
    steered,
    writers,
)
from .numbers import Array, content, double, kl_logits, ratio, top1
from .running import States, arguments, biased, first_row, run, virtual
from .study import Table, Value

HIDDEN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
Move = tuple[str, str]
"""Source, whose values move, and target, whose run it is."""


@dataclass(frozen=True)
class Asked:
    """A query's ids: its text, what a template writes after it, the answer that is forced."""

    text: tuple[int, ...]
    tail: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All that is read: nothing is asked of the answer's last token."""
        return self.text + self.tail + self.answer[:-1]

    @property
    def last(self) -> int:
        """The row of the last token before the answer."""
        return len(self.text + self.tail) - 1

    @property
    def answered(self) -> list[int]:
        """The rows that predict the answer's tokens; the last one without an answer."""
        return [*range(self.last, max(self.last + 1, len(self.ids)))]

    def rows(self, position: str) -> list[int]:
        """Those of a label, none where the query has none."""
        segments = {
            "all": range(len(self.ids)),
            "last": [self.last],
            "query": [row for row in range(len(self.text)) if row != self.last],
            "template": range(len(self.text), self.last),
            "answer": self.answered,
        }
        if position in segments:
            return [*segments[position]]
        return [int(position)] if int(position) < len(self.text) else []


@dataclass(frozen=True)
class Cell:
    """What is replaced, and at which of the query's rows (`Asked.rows`)."""

    site: str
    layer: int
    head: int | None = None
    position: str = "all"


@dataclass(frozen=True)
class Place:
    """These columns of what a module gives out, or of what it takes in; `heads_first`: as `[head,
    pos, d_head]`."""

    module: Any
    columns: list[int]
    takes_in: bool = False
    heads_first: bool = False

    def hook(self, change: Callable[[torch.Tensor], None]) -> Any:
        """`change` sees a copy of `[pos, width]`, heads side by side, and may write into it."""

        def edited(hidden: torch.Tensor) -> torch.Tensor:
            heads = hidden[0].transpose(0, 1) if self.heads_first else hidden[0]
            rows = heads.flatten(1).clone()
            change(rows)
            new = rows.view(heads.shape)
            return (new.transpose(0, 1) if self.heads_first else new)[None]

        def before(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (edited(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edited(kwargs["hidden_states"])}

        def after(module: Any, args: Any, output: Any) -> Any:
            hidden = edited(first(output))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        if self.takes_in:
            return self.module.register_forward_pre_hook(before, with_kwargs=True)
        return self.module.register_forward_hook(after)


def place(model: Any, site: str, layer: int, head: int | None = None) -> Place:
    """Where a site is written; `resid_mid` has no module, it is what attention is added to give."""
    block = blocks(model)[layer]
    if site in HIDDEN:
        modules = writers(block) | {"resid_pre": block, "resid_post": block}
        module = modules["attn_out" if site == "resid_mid" else site]
        return Place(module, [*range(model.config.hidden_size)], takes_in=site == "resid_pre")
    if site in ("z", "pattern"):
        columns = head_columns(model.config, head, n_heads(model.config))
        return Place(output_projection(block), columns, takes_in=True)
    return projection(model, block, site, head)


def projection(model: Any, block: Any, site: str, head: int | None) -> Place:
    """Queries, keys or values of a head, or of all heads one after the other."""
    inside, config = attention(block), model.config
    n = n_heads(config) if site == "q" else kv_heads(config)
    columns = head_columns(config, head, n)
    if hasattr(inside, f"{site}_norm"):
        heads_first = config.model_type.startswith("gemma3")
        return Place(getattr(inside, f"{site}_norm"), columns, heads_first=heads_first)
    if hasattr(inside, f"{site}_proj"):
        return Place(getattr(inside, f"{site}_proj"), columns)
    if hasattr(inside, "query_key_value"):  # q, k, v of one head stand side by side
        d, which = d_head(config), "qkv".index(site)
        heads = range(n) if head is None else [head]
        every = [3 * d * h + d * which + i for h in heads for i in range(d)]
        return Place(inside.query_key_value, every)
    fused = inside.c_attn if hasattr(inside, "c_attn") else inside.qkv_proj
    widths = [0, n_heads(config), n_heads(config) + kv_heads(config)]
    start = widths["qkv".index(site)] * d_head(config)
    return Place(fused, [start + column for column in columns])


def n_heads(config: Any) -> int:
    return config.num_attention_heads


def kv_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or n_heads(config)


def d_head(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // n_heads(config)


def head_columns(config: Any, head: int | None, n: int) -> list[int]:
    d = d_head(config)
    return [*range(n * d)] if head is None else [*range(head * d, (head + 1) * d)]


# --- one query under one condition ---------------------------------------------------------------


@dataclass(frozen=True)
class Observed:
    """One query under one condition: `states`, and `parts`: q, k, v `[layer, pos, width]`."""

    condition: Condition
    query: Asked
    states: States
    parts: Mapping[str, Array]

    @property
    def logits(self) -> Array:
        """`[answer token, vocab]`."""
        return self.states.logits[self.query.answered]

    def values(self, cell: Cell) -> Array:
        """`[pos, columns]` of a cell other than a pattern, all query rows."""
        if cell.site == "resid_mid":
            return self.states.resid_pre[cell.layer] + self.states.attn_out[cell.layer]
        if cell.site in HIDDEN:
            return getattr(self.states, cell.site)[cell.layer]
        if cell.site == "z":
            return self.states.z[cell.layer, cell.head]
        width = self.states.z.shape[-1]
        start = cell.head * width
        return self.parts[cell.site][cell.layer, :, start : start + width]


def look(base: str, condition: Condition, query: Asked) -> Observed:
    model = open_model(base, *condition.weights)
    seen: dict[tuple[str, int], Array] = {}

    def keep(*key: Any) -> Callable[[torch.Tensor], None]:
        def change(hidden: torch.Tensor) -> None:
            seen[key] = double(hidden[-len(query.ids) :, place(model, *key).columns])

        return change

    layers = range(len(blocks(model)))
    keys = [(site, layer) for site in "qkv" for layer in layers]
    with hooked([place(model, *key).hook(keep(*key)) for key in keys]):
        states = run(model, condition, query.ids, base)
    parts = {site: np.stack([seen[site, layer] for layer in layers]) for site in "qkv"}
    return Observed(condition, query, states, parts)


def patched(
    base: str, source: Observed, target: Observed, cell: Cell, pattern: str = "content"
) -> Array:
    """The logits `[answer token, vocab]` of the target's run with one cell from the source."""
    model, query = open_model(base, *target.condition.weights), target.query
    rows = query.rows(cell.position)
    new = torch.from_numpy(replacement(source, target, cell, pattern)[rows])
    where = place(model, cell.site, cell.layer, cell.head)
    offset = -len(query.ids)

    def change(hidden: torch.Tensor) -> None:
        for row, value in zip(rows, new, strict=True):
            hidden[offset + row, where.columns] = value.to(hidden.dtype)

    condition = target.condition
    before = virtual(base, condition, len(blocks(model)))
    with (
        torch.no_grad(),
        steered(model, first_row(condition, before), condition.steering),
        hooked([where.hook(change)]),
    ):
        out = model(**arguments(model, condition, query.ids, before))
    return biased(double(out.logits[0])[offset:], condition)[query.answered]


def replacement(source: Observed, target: Observed, cell: Cell, pattern: str) -> Array:
    """What is written at the cell's place, `[pos, columns]`."""
    if cell.site == "pattern":
        rows = moved_pattern(source.states, target.states, cell, pattern)
        return rows @ target.states.values[cell.layer, cell.head]
    if cell.site == "resid_mid":  # what attention would have had to write
        return source.values(cell) - target.states.resid_pre[cell.layer]
    return source.values(cell)


def moved_pattern(source: States, target: States, cell: Cell, pattern: str) -> Array:
    """`[pos, key]`: whole rows of the source; or the target's rows, what they give to the query's
    own tokens divided among these as the source divides it."""
    theirs, own = (s.pattern[cell.layer, cell.head] for s in (source, target))
    if pattern == "row":
        return theirs
    length = len(own)
    mass = own[:, -length:].sum(-1, keepdims=True)
    return np.concatenate([own[:, :-length], mass * content(theirs)], axis=-1)


# --- effects of one query, and rows of all -------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What one edit does to one query: nats per answer."""

    damage: float
    to_source: float
    apart: float
    change: float
    gap: float


def log_odds(logits: Array, token: int) -> float:
    others = np.delete(logits, token)
    top = others.max()
    return float(logits[token] - top - np.log(np.exp(others - top).sum()))


def effect(source: Array, target: Array, edited: Array, answer: Sequence[int]) -> Effect:
    """From the logits `[answer token, vocab]` of both conditions and of the edited run: every token
    given those before it, and then their sum."""
    says = [
        sum(log_odds(row, token) for row, token in zip(logits, answer, strict=True))
        for logits in (source, target, edited)
    ]
    return Effect(
        damage=float(kl_logits(target, edited).sum()),
        to_source=float(kl_logits(source, edited).sum()),
        apart=float(kl_logits(source, target).sum()),
        change=says[2] - says[1],
        gap=says[0] - says[1],
    )


def measures(effects: Sequence[Effect]) -> Iterator[tuple[str, Value]]:
    """Means over queries and ratios of sums."""

    def total(name: str) -> Array:
        return np.array(sum(getattr(each, name) for each in effects))

    n = len(effects)
    yield "damage", Value(float(total("damage")) / n, n)
    yield "recovery", Value(1 - float(ratio(total("to_source"), total("apart"))), n)
    yield "answer_change", Value(float(total("change")) / n, n)
    yield "answer_recovery", Value(float(ratio(total("change"), total("gap"))), n)


def relative_damage(own: Sequence[Effect], base: Sequence[Effect]) -> Value:
    """Damage over that of base's state; undefined where that one does none. A logit off by
    `LOGIT` moves a KL of D by as much times sqrt(2 D)."""
    up, down = (sum(each.damage for each in effects) / len(effects) for effects in (own, base))
    if down <= NO_DAMAGE:
        return Value(float("nan"), 0)
    error = LOGIT * ((2 / max(up, NO_DAMAGE)) ** 0.5 + (2 / down) ** 0.5)
    return Value(up / down, len(own), rounding=error * up / down)


NO_DAMAGE = 1e-9
"""Nats: what float32 logits that should be the same may differ by, and far below any effect."""
LOGIT = 4e-6
MEASURES = ("damage", "recovery", "answer_change", "answer_recovery", "relative_damage")
Everything = Mapping[str, Sequence[Observed]]
"""Every query under every condition."""


def plain(base: str) -> Any:
    """The model as it is."""
    return open_model(base, None, 1.0, None)


def sites(base: str) -> tuple[str, ...]:
    """Blocks whose attention and MLP read the same state have nothing between them."""
    parallel = getattr(plain(base).config, "use_parallel_residual", False)
    return tuple(site for site in HIDDEN if not (parallel and site == "resid_mid"))


def all_cells(
    base: str, positions: Sequence[str], by_head: Sequence[str], segments: Sequence[str] = ()
) -> list[Cell]:
    """Whole sites (all rows, and by segment), single positions of `resid_post`, and heads (`z` by
    segment too), of every layer."""
    model = plain(base)
    few, many = kv_heads(model.config), n_heads(model.config)
    heads = {site: few if site in ("k", "v") else many for site in by_head}
    layers = range(len(blocks(model)))
    return [
        *(
            Cell(site, layer, None, p)
            for site in sites(base)
            for layer in layers
            for p in ("all", *segments)
        ),
        *(Cell("resid_post", layer, None, p) for layer in layers for p in positions),
        *(
            Cell(site, layer, head, p)
            for site, n in heads.items()
            for layer in layers
            for head in range(n)
            for p in ("all", *(segments if site == "z" else ()))
        ),
    ]


def look_at_all(
    base: str, conditions: Mapping[str, Condition], queries: Sequence[Asked]
) -> Everything:
    return {name: [look(base, c, query) for query in queries] for name, c in conditions.items()}


def targets(observed: Sequence[Observed]) -> list[list[int]]:
    """Every query's answer; without one, what this condition puts first."""
    return [[*(o.query.answer or map(int, top1(o.logits)))] for o in observed]


def interchange_rows(
    base: str,
    everything: Everything,
    answers: Sequence[Sequence[int]],
    moves: Sequence[Move],
    cells: Sequence[Cell],
    pattern: str = "content",
) -> Table:
    """Every move of every cell; `base` must be among the conditions and is its own control."""
    table: Table = {}
    for cell in cells:
        found = {move: effects(base, everything, answers, move, cell, pattern) for move in moves}
        for (a, b), own in found.items():
            values = dict(measures(own))
            if a != "base" and ("base", b) in found:
                values["relative_damage"] = relative_damage(own, found["base", b])
            where = (a, b, cell.site, cell.layer, cell.head, cell.position)
            table |= {(name, *where): value for name, value in values.items()}
    return table


def effects(
    base: str,
    everything: Everything,
    answers: Sequence[Sequence[int]],
    move: Move,
    cell: Cell,
    pattern: str,
) -> list[Effect]:
    """Of every query that has the cell."""
    sources, ends = (everything[name] for name in move)
    return [
        effect(s.logits, t.logits, patched(base, s, t, cell, pattern), answer)
        for s, t, answer in zip(sources, ends, answers, strict=True)
        if t.query.rows(cell.position)
    ]
