"""What changes a head's attention scores: its queries' inputs, its keys' inputs, its weights
(docs/reference/metrics.md).

    split = split_scores({frozenset(): base, frozenset({"query"}): ..., ...}, own, noise)
    split.shares                # of query, key, weights, and of what two or three do together
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import factorial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.measures.attention import Content, Rows, unmasked

SPLIT = ("score_query", "score_key", "score_weights", "score_interaction")
"""The shares of `split_scores`, in their order."""

PLAYERS = ("query", "key", "weights")

Coalition = frozenset[str]
"""Which of `PLAYERS` are the condition's; the others are base's."""


class ScoreSplit(NamedTuple):
    """`shares`: the inner product of every term of `SPLIT` with the whole change; `whole`: the
    change's squared norm; `error`: how far the scores of the condition's own queries and keys are
    from those of its run."""

    shares: tuple[Rows, Rows, Rows, Rows]
    whole: Rows
    error: Float[Tensor, ""]


def coalitions(players: tuple[str, ...]) -> list[Coalition]:
    """All subsets, none and all among them."""
    return [frozenset(c) for n in range(len(players) + 1) for c in combinations(players, n)]


def split_scores(scores: Mapping[Coalition, Content], own: Content, noise: float) -> ScoreSplit:
    """The exact split of the change of a row of pre-softmax scores over the query's own keys.

    `scores[S]` are those of queries and keys in which the members of S are the condition's: the
    query row's inputs, the keys' inputs, the weights of both (a condition without weights of its
    own has no such member). A term is the Shapley value of a member, its change averaged over all
    orders (Shapley 1953); the terms add up to the change from `scores[{}]` to `scores[all]`.
    `score_interaction` is what the three do only together, `change - sum of each one's change
    alone`: it is contained in the terms, in equal parts.

    A share is a term's projection on the whole change: query, key and weights add up to 1 (ratio of
    sums over tokens); NaN where the change is within `noise` of base's norm. `error`: the largest
    difference of `scores[all]` from the scores `own` of the condition's run, up to a number for
    every row (which no softmax sees: a bias by position moves with the prefix), over their size.
    """
    whole_set = max(scores, key=len)
    value = {members: unmasked(s) for members, s in scores.items()}
    change = value[whole_set] - value[frozenset()]
    terms = [_shapley(value, player) if player in whole_set else 0 * change for player in PLAYERS]
    alone = [value[frozenset({player})] - value[frozenset()] for player in whole_set]
    terms.append(change - sum(alone, torch.zeros_like(change)))
    whole = change.square().sum(-1)
    before = value[frozenset()].square().sum(-1)
    whole = whole.where(whole > noise**2 * before, torch.nan)
    shares = [(term * change).sum(-1) for term in terms]
    gap = _centred(value[whole_set], own) - _centred(unmasked(own), own)
    size = unmasked(own).abs().max()
    error = gap.abs().max() / size.where(size > 0, 1.0)
    return ScoreSplit((shares[0], shares[1], shares[2], shares[3]), whole, error)


def _shapley(value: Mapping[Coalition, Tensor], player: str) -> Tensor:
    """The change that a player makes, averaged over all orders in which the players come."""
    n = len(max(value, key=len))
    parts = [
        (value[members | {player}] - before)
        * (factorial(len(members)) * factorial(n - len(members) - 1) / factorial(n))
        for members, before in value.items()
        if player not in members
    ]
    return sum(parts[1:], parts[0])


def _centred(known: Tensor, scores: Content) -> Tensor:
    """Less the mean of a row over the keys that it sees."""
    seen = scores != -torch.inf
    mean = (known * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)
    return (known - mean) * seen
