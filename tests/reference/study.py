"""What a table of rows is about, and what it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .conditions import Condition
from .numbers import Array, top1
from .running import States

UNKNOWABLE = 0.01
"""A value that rounding alone may move by more than this is not compared."""


@dataclass(frozen=True)
class Value:
    """A row's value, on how many queries it stands, how far float32 rounding may move it (much,
    where it is computed from a change that is hardly more than rounding), the size that errors are
    relative to (1: absolute), and between what its p is, where it can be enumerated."""

    value: float
    n: int
    rounding: float = 0.0
    scale: float = 1.0
    p: tuple[float, float] | None = None

    @property
    def meaningful(self) -> bool:
        return self.rounding <= UNKNOWABLE


Key = tuple[str, str, str | None, str, int | None, int | None, str]
KEY = ("measure", "condition", "reference", "site", "layer", "head", "position")
"""What a row is about."""
Table = dict[Key, Value]


SEGMENTS = ("query", "template", "answer")


@dataclass(frozen=True)
class Rows:
    """The rows of a query: its first `text` tokens are its own words, a template's follow up to
    `end`, and the answer is predicted from the last of these on."""

    text: int
    end: int
    length: int

    def of(self, label: str) -> list[int]:
        """Those that a position label covers."""
        last = self.end - 1
        answer = list(range(last, self.length))
        if label.startswith("answer_"):
            return answer[int(label.removeprefix("answer_")) :][:1]
        if label.isdigit():
            return [int(label)] if int(label) < self.end else []
        return {
            "last": [last],
            "mean": list(range(self.end)),
            "query": list(range(min(self.text, last))),
            "template": list(range(min(self.text, last), last)),
            "answer": answer,
        }[label]


@dataclass(frozen=True)
class Study:
    """All that the rows of one group of queries depend on.

    `answers`: token ids or None; `texts`: how many tokens of every query are its own words, where
    queries have segments; `headline`: the pair whose reference stands in for missing answers;
    `families`: name -> conditions; `geometry`: pairs with such rows, for probes of the queries'
    `labels` over these `folds`.
    """

    conditions: Mapping[str, Condition]
    observed: Mapping[str, Sequence[States]]
    pairs: Sequence[tuple[str, str]]
    answers: Sequence[int | tuple[int, ...] | None]
    max_positions: int
    headline: tuple[str, str]
    families: Mapping[str, Sequence[str]]
    geometry: Sequence[tuple[str, str]] = ()
    labels: Sequence[str] = ()
    folds: Sequence[int] = ()
    texts: Sequence[int] | None = None

    @cached_property
    def rows(self) -> list[Rows]:
        """Of every query."""
        base = self.observed["base"]
        texts = self.texts or [states.end for states in base]
        return [Rows(t, s.end, s.length) for t, s in zip(texts, base, strict=True)]

    @cached_property
    def segments(self) -> list[str]:
        """Those that there are."""
        found = [] if self.texts is None else SEGMENTS
        return [label for label in found if any(rows.of(label) for rows in self.rows)]

    @cached_property
    def positions(self) -> list[str]:
        """Labels of the measures that every token has."""
        longest = max(rows.end for rows in self.rows)
        labels = ["last", "mean", *self.segments]
        return labels + [str(i) for i in range(min(longest, self.max_positions))] + self._tokens

    @cached_property
    def answer_positions(self) -> list[str]:
        """Labels of the measures of the answer's tokens."""
        return ["last", *(["answer"] if self.segments else []), *self._tokens]

    @cached_property
    def places(self) -> dict[str, tuple[list[int], list[int]]]:
        """Of every label: places of its tokens among all tokens of all queries, and where among
        these every query that has any begins."""
        return {label: self._places(label) for label in (*self.positions, *self.answer_positions)}

    def _places(self, label: str) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        starts: list[int] = []
        before = 0
        for each in self.rows:
            chosen = [before + token for token in each.of(label)]
            starts += [len(tokens)] if chosen else []
            tokens += chosen
            before += each.length
        return tokens, starts

    @property
    def _tokens(self) -> list[str]:
        longest = max(len(rows.of("answer")) for rows in self.rows)
        return [f"answer_{i}" for i in range(min(longest, self.max_positions)) if self.segments]

    def together(self, *names: str) -> Iterator[tuple[States, ...]]:
        """The same query under several conditions, query after query."""
        return zip(*(self.observed[name] for name in names), strict=True)

    def moves(self, name: str) -> bool:
        """Whether a condition computes anything else than base."""
        return self.conditions[name].computation != self.conditions["base"].computation

    @property
    def has_bos(self) -> bool:
        return bool(self.conditions["base"].prefix)

    @cached_property
    def known(self) -> list[Array]:
        """What every row of an answer should say; NaN where that is not known."""
        given = [(a,) if a is None or isinstance(a, int) else a for a in self.answers]
        return [np.array([np.nan if t is None else t for t in tokens]) for tokens in given]

    @cached_property
    def targets(self) -> list[list[int]]:
        """The same; where it is not known, what the headline's reference puts first."""
        said = [top1(s.logits[s.answer]) for s in self.observed[self.headline[1]]]
        known = zip(self.known, said, strict=True)
        return [
            np.where(np.isnan(tokens), top, tokens).astype(int).tolist() for tokens, top in known
        ]
