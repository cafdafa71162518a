"""Who writes to the residual stream, who reads it, and which pairs of them are edges. Torch-free.

    edges = edges_between(senders, receivers)
    str(edges[0])                       # "L2H3 > L5H1.q"

Senders: what enters the first block (`embed`), heads, attention's bias, mixers, MLPs, steering
vectors. Receivers: the queries, keys and values of a head, mixers, MLPs, and the logits, each
with an input of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_PER_BLOCK = 3
"""Moments of a block: attention reads (0), the MLP reads what attention wrote too (1), the next
block (3)."""


class Sender(NamedTuple):
    """What is written: `part` is `embed`, `head`, `bias` (of attention), `mixer`, `mlp` or
    `steering`; `layer` -1 of what enters the first block."""

    part: str
    layer: int = -1
    head: int | None = None

    def __str__(self) -> str:
        if self.part == "embed":
            return self.part
        return f"L{self.layer}" + (f".{self.part}" if self.head is None else f"H{self.head}")

    @property
    def since(self) -> int:
        """The moment from which on it can be read."""
        if self.part in ("mlp", "steering", "embed"):
            return _PER_BLOCK * (self.layer + 1)
        return _PER_BLOCK * self.layer + 1


class InputNode(NamedTuple):
    """What is read into: `part` is `q`, `k`, `v` (of a head; for `k` and `v` a key/value head),
    `mixer`, `mlp` or `logits`; `beside`: an MLP that reads what attention reads."""

    part: str
    layer: int
    head: int | None = None
    beside: bool = False

    def __str__(self) -> str:
        if self.part == "logits":
            return self.part
        return f"L{self.layer}" + ("" if self.head is None else f"H{self.head}") + f".{self.part}"

    @property
    def at(self) -> int:
        """The moment at which it reads."""
        late = self.part == "mlp" and not self.beside
        return _PER_BLOCK * self.layer + late


class Edge(NamedTuple):
    """From what is written to where it is read."""

    sender: Sender
    receiver: InputNode

    def __str__(self) -> str:
        return f"{self.sender} > {self.receiver}"

    @property
    def kind(self) -> tuple[int, str, int, str]:
        """Both layers and both parts: edges of one kind are permuted among each other."""
        return self.sender.layer, self.sender.part, self.receiver.layer, self.receiver.part


def edges_between(senders: Sequence[Sender], receivers: Sequence[InputNode]) -> list[Edge]:
    """InputNode by receiver, every sender that is there when it reads."""
    return [
        Edge(sender, receiver)
        for receiver in receivers
        for sender in senders
        if sender.since <= receiver.at
    ]


def kinds_of(edges: Sequence[Edge]) -> list[int]:
    """The number of every edge's kind."""
    numbers: dict[tuple[int, str, int, str], int] = {}
    return [numbers.setdefault(edge.kind, len(numbers)) for edge in edges]
