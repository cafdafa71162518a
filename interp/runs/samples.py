"""What a run keeps of a few queries: every head's attention, and the tokens that come first.

    kept = Samples.of(load_run("RUN"))          # None where a run keeps none
    kept.pattern(Head(5, 3), "lora", 0)         # float32 [row, column]
    kept.columns("lora", 0)                     # the token of every column
    kept.view(Head(5, 3), [("prompt", "lora")]) # a HeadView of the kept queries, without a model

Weights are kept as bytes: `round(255 √w)`, so that one read back is off by at most
`√w / 255 + 1 / 255²`, below 0.004. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import ConfigError
from interp.names import Head
from interp.runs.heads import HeadView

if TYPE_CHECKING:
    import xarray as xr

    from interp.runs.view import Run

ARRAY = "sample_patterns"
"""The array of a run that has them, one byte a weight."""

ENTRY = "samples"
"""The manifest's entry that says what they are."""


@dataclass(frozen=True)
class SampledQuery:
    """A kept query: its number among the matched ones, its text, its tokens, where its segments
    begin and end among them, how many of its last tokens have a row, its answer (`""`: none)."""

    query: int
    text: str
    tokens: list[str]
    segments: dict[str, list[int]]
    rows: int
    answer: str = ""


@dataclass(frozen=True)
class SampledContext:
    """What precedes the query in a condition: the tokens that have a column of their own, and how
    many `others` share a first column, in which their weights are summed."""

    tokens: list[str]
    others: int = 0

    @property
    def columns(self) -> list[str]:
        """The name of every column."""
        return [*([f"({self.others} other tokens)"] if self.others else []), *self.tokens]


@dataclass(frozen=True)
class Samples:
    """Patterns of all heads on a few queries and what each condition says to them.

    `packed`: uint8, for every query and every condition in turn
    `[layer, head, row, column]`; columns are those of the context, then the query's tokens. `says`:
    condition -> per query, tokens with the largest probability and that, largest first.
    """

    queries: list[SampledQuery]
    layers: list[int]
    n_heads: int
    contexts: dict[str, SampledContext]
    says: dict[str, list[list[tuple[str, float]]]]
    packed: np.ndarray

    @classmethod
    def of(cls, run: Run) -> Samples | None:
        """What a run keeps; None where it keeps none."""
        entry = run.manifest.get(ENTRY)
        if entry is None:
            return None
        packed = run.arrays.get(ARRAY)
        return cls(
            queries=[SampledQuery(**one) for one in entry["queries"]],
            layers=entry["layers"],
            n_heads=entry["n_heads"],
            contexts={name: SampledContext(**one) for name, one in entry["contexts"].items()},
            says={c: [[(t, p) for t, p in top] for top in own] for c, own in entry["says"].items()},
            packed=np.empty(0, np.uint8) if packed is None else packed.values,
        )

    def manifest(self) -> dict[str, Any]:
        """What is not an array."""
        return {
            "queries": [asdict(one) for one in self.queries],
            "layers": self.layers,
            "n_heads": self.n_heads,
            "contexts": {name: asdict(one) for name, one in self.contexts.items()},
            "says": {
                name: [[list(t) for t in top] for top in own] for name, own in self.says.items()
            },
        }

    def arrays(self) -> dict[str, xr.DataArray]:
        """The array a run keeps; none where no pattern was read."""
        import xarray as xr

        return {ARRAY: xr.DataArray(self.packed, dims=("byte",))} if self.packed.size else {}

    # --- patterns --------------------------------------------------------------------------------

    def columns(self, condition: str, at: int) -> list[str]:
        """The token of every column of the `at`-th kept query."""
        return [*self.contexts[condition].columns, *self.queries[at].tokens]

    def has(self, head: Head) -> bool:
        """Whether its patterns are kept."""
        return bool(self.packed.size) and head.layer in self.layers and head.head < self.n_heads

    def pattern(self, head: Head, condition: str, at: int) -> np.ndarray:
        """float32 `[row, column]` of the `at`-th kept query; rows are its last tokens."""
        start = self._starts[condition, at]
        shape = self._shape(condition, self.queries[at])
        block = self.packed[start : start + int(np.prod(shape))].reshape(shape)
        return byte_weights(block[self.layers.index(head.layer), head.head])

    @cached_property
    def _starts(self) -> dict[tuple[str, int], int]:
        """Where the block of a condition on a query begins."""
        keys = [(name, at) for at in range(len(self.queries)) for name in self.contexts]
        sizes = [int(np.prod(self._shape(name, self.queries[at]))) for name, at in keys]
        return dict(zip(keys, accumulate(sizes, initial=0), strict=False))

    def _shape(self, condition: str, query: SampledQuery) -> tuple[int, int, int, int]:
        columns = len(self.contexts[condition].columns) + len(query.tokens)
        return len(self.layers), self.n_heads, query.rows, columns

    # --- one head --------------------------------------------------------------------------------

    def position(self, query: int | None) -> int:
        """Where a query of this number is kept (None: the first); a `ConfigError` that names those
        that are."""
        numbers = [one.query for one in self.queries]
        if query is None:
            return 0
        if query not in numbers:
            kept = ", ".join(map(str, numbers))
            raise ConfigError(f"query {query} is not kept; kept are {kept}: add --all-queries")
        return numbers.index(query)

    def view(
        self, head: Head, pairs: Sequence[tuple[str, str]], query: int | None = None
    ) -> HeadView:
        """The head on the kept queries; what it attends to most is that of one of them, by name."""
        at = self.position(query)
        kept: list[tuple[str, str]] = [p for p in pairs if set(p) <= self.contexts.keys()]
        own = {c: [self._own(head, c, q) for q in range(len(self.queries))] for c in self.contexts}
        return HeadView(
            head=head,
            conditions=list(self.contexts),
            pairs=kept,
            tokens=[one.tokens for one in self.queries],
            patterns=_stacked(list(own.values())),
            content_js=np.array(
                [
                    [_row_js(x[-1, 1:], y[-1, 1:]) for x, y in zip(own[a], own[b], strict=True)]
                    for a, b in kept
                ]
            ).reshape(len(kept), len(self.queries)),
            attended=[row for c in self.contexts for row in self._attended(head, c, at)],
            over=f"query {self.queries[at].query}: “{self.queries[at].text}”",
            texts=tuple(one.text for one in self.queries),
        )

    def _own(self, head: Head, condition: str, at: int) -> np.ndarray:
        """`[query_pos, 1 + query_pos]`: the context's mass, then the query's own keys; NaN rows
        where none are kept."""
        whole, length = self.pattern(head, condition, at), len(self.queries[at].tokens)
        own = np.full((length, 1 + length), np.nan, np.float32)
        own[length - len(whole) :, 1:] = whole[:, -length:]
        own[length - len(whole) :, 0] = whole[:, :-length].sum(1)
        return own

    def _attended(
        self, head: Head, condition: str, at: int, most: int = 10
    ) -> list[dict[str, Any]]:
        last = self.pattern(head, condition, at)[-1]
        names, context = self.columns(condition, at), len(self.contexts[condition].columns)
        return [
            {
                "condition": condition,
                "token": names[column],
                "where": "prefix" if column < context else "query",
                "position": int(column if column < context else column - context),
                "mass": float(last[column]),
            }
            for column in np.argsort(-last, kind="stable")[:most]
        ]


def byte_weights(packed: np.ndarray) -> np.ndarray:
    """Weights from bytes, float32."""
    return np.square(packed.astype(np.float32) / 255)


def _stacked(patterns: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """`[condition, query, query_pos, 1 + key]`, NaN past a query's end."""
    longest = max(len(one) for group in patterns for one in group)
    shape = (len(patterns), len(patterns[0]), longest, longest + 1)
    filled = np.full(shape, np.nan, np.float32)
    for at, group in enumerate(patterns):
        for query, one in enumerate(group):
            filled[at, query, : one.shape[0], : one.shape[1]] = one
    return filled


def _row_js(a: np.ndarray, b: np.ndarray) -> float:
    """JS divergence of two rows, each renormalised, nats; NaN where one has no mass."""
    if not (a.sum() > 0 and b.sum() > 0):
        return float("nan")
    p, q = a.astype(float) / a.sum(), b.astype(float) / b.sum()
    m = (p + q) / 2
    parts = [np.sum(x[x > 0] * np.log(x[x > 0] / m[x > 0])) for x in (p, q)]
    return float(sum(parts) / 2)


def segments_of(segments: Mapping[str, range], length: int) -> dict[str, list[int]]:
    """Where segments begin and end among a query's tokens; empty ones are left out."""
    ends = {name: [part.start, min(part.stop, length)] for name, part in segments.items()}
    return {name: [start, stop] for name, (start, stop) in ends.items() if start < stop}
