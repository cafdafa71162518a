"""How near does a prompt come to a condition's internal state? Virtual tokens, tuned to it.

    targets = {group: inside(bench, group) for group in bench.queries}
    for reached in reach(bench, Reach(budgets=(1, 4)), targets):
        reached.apart["heldout"].relative_l2        # [query, layer]

Virtual tokens are tuned to say what the target says, or also to have its residual stream or its
content patterns at every layer and query token. Text is the special case of virtual tokens that
are embeddings of words (after BOS, where the model has one; virtual tokens stand before it); what
the best of them leave apart, no prompt of that size was found to reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple

from interp.matching.bench import BASE, Bench
from interp.matching.examples import Examples
from interp.matching.inside import Apart, apart
from interp.matching.virtual import Kind, Tuned, Tuning, after_virtual, as_virtual, tune

Goal = Literal["outputs", "states", "patterns"]
SITES: Mapping[Goal, tuple[str, ...]] = {
    "outputs": (),
    "states": ("resid_post",),
    "patterns": ("pattern",),
}
"""What is matched beside the outputs, at every layer."""


@dataclass(frozen=True)
class Reach:
    """What is tuned to what, and how: every kind to every goal at every budget of virtual tokens.
    `rate`, `steps`, `inside`, `seed` are those of `Tuning`."""

    budgets: tuple[int, ...] = (1, 4, 16, 64)
    kinds: tuple[Kind, ...] = ("soft_prompt", "prefix")
    goals: tuple[Goal, ...] = ("outputs", "states", "patterns")
    steps: int = 80
    rate: float = 0.3
    inside: float = 10.0
    seed: int = 0

    @property
    def total(self) -> int:
        """Steps of all searches together."""
        return self.steps * len(self.budgets) * len(self.kinds) * len(self.goals)


class Reached(NamedTuple):
    """Virtual tokens that were tuned to a goal on the matched queries, and how far they are from
    the target on every group."""

    kind: Kind
    goal: Goal
    tuned: Tuned
    apart: dict[str, Apart]


def reach(
    bench: Bench,
    plan: Reach,
    targets: Mapping[str, Examples],
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Reached]:
    """Tune them all, with a call of `progress` after every step; `targets` are read `inside`, by
    group."""
    subject, size = bench.subject, bench.settings.batch_size
    base = subject.settings[BASE]
    for kind, goal, tokens in product(plan.kinds, plan.goals, plan.budgets):
        wanted = _only(targets["matched"], SITES[goal])
        weight = plan.inside if wanted.inside else 0.0
        tuning = Tuning(kind, tokens, plan.steps, plan.rate, size, weight, plan.steps, plan.seed)
        tuned = tune(subject, base, wanted, tuning, lambda *_: progress())
        own = after_virtual(base, kind, tokens)
        cache = subject.prefill(own, as_virtual(kind, tuned.values))
        found = {group: apart(subject, own, t, size, cache) for group, t in targets.items()}
        yield Reached(kind, goal, tuned, found)


def _only(target: Examples, names: tuple[str, ...]) -> Examples:
    """A target of which only some sites are to be matched."""
    return replace(target, inside={s: v for s, v in target.inside.items() if s.name in names})
