"""How near does a prompt come to a condition's internal state? Virtual tokens, tuned to it.

    targets = {group: inside(evaluation, group) for group in evaluation.queries}
    for reached in reach(evaluation, Reach(budgets=(1, 4)), targets):
        reached.apart["heldout"].relative_l2        # [query, layer]

Virtual tokens are tuned to say what the target says, or also to have its residual stream or its
content patterns at every layer and query token. Text is the special case of virtual tokens that
are embeddings of words (after BOS, where the model has one; virtual tokens stand before it); what
the best of them leave apart, no prompt of that size was found to reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, NamedTuple

from interp.design import BASE
from interp.experiments.internal_distance import InternalDistance, internal_distance
from interp.experiments.trial import estimate_row
from interp.matching.evaluation import Evaluation
from interp.matching.examples import Examples
from interp.matching.virtual import Tuned, Tuning, VirtualKind, tune
from interp.statistics import Estimate

_Goal = Literal["outputs", "states", "patterns"]
_SITES: Mapping[_Goal, tuple[str, ...]] = {
    "outputs": (),
    "states": ("resid_post",),
    "patterns": ("pattern",),
}
"""What is matched beside the outputs, at every layer."""


@dataclass(frozen=True)
class Reach:
    """What is tuned to what, and how: every kind to every goal at every budget of virtual tokens.
    `rate`, `inside`, `seed` are those of `Tuning`; `steps` of every search but that for states by
    the largest budget, which decides and has `longest`."""

    budgets: tuple[int, ...] = (1, 4, 16, 64)
    kinds: tuple[VirtualKind, ...] = ("soft_prompt", "prefix")
    goals: tuple[_Goal, ...] = ("outputs", "states", "patterns")
    steps: int = 60
    longest: int = 240
    rate: float = 0.3
    inside: float = 10.0
    seed: int = 0

    def searches(self) -> list[tuple[VirtualKind, _Goal, int, int]]:
        """Kind, goal, tokens and steps of every search."""
        most = max(self.budgets)
        return [
            (*one, self.longest if one[1:] == ("states", most) else self.steps)
            for one in product(self.kinds, self.goals, self.budgets)
        ]


class Reached(NamedTuple):
    """Virtual tokens that were tuned to a goal on the matched queries, and how far they are from
    the target on every group."""

    kind: VirtualKind
    goal: _Goal
    tuned: Tuned
    apart: dict[str, InternalDistance]


def reach(
    evaluation: Evaluation,
    plan: Reach,
    targets: Mapping[str, Examples],
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Reached]:
    """Tune them all, with a call of `progress` after every step; `targets` are read `inside`, by
    group."""
    subject, size = evaluation.subject, evaluation.settings.batch_size
    base = subject.settings[BASE]
    for kind, goal, tokens, steps in plan.searches():
        wanted = _only(targets["matched"], _SITES[goal])
        weight = plan.inside if wanted.inside else 0.0
        tuning = Tuning(kind, tokens, steps, plan.rate, size, weight, steps, plan.seed)
        tuned = tune(subject, base, wanted, tuning, lambda *_: progress())
        own, cache = tuned.before(subject, base)
        found = {
            group: internal_distance(subject, own, t, size, cache) for group, t in targets.items()
        }
        yield Reached(kind, goal, tuned, found)


def _only(target: Examples, names: tuple[str, ...]) -> Examples:
    """A target of which only some sites are to be matched."""
    return replace(target, inside={s: v for s, v in target.inside.items() if s.name in names})


# --- in numbers ----------------------------------------------------------------------------------

_Levels = Mapping[str, Mapping[str, InternalDistance]]
"""What the distances are read against, by name and group of queries."""


def nearest_kind(found: Sequence[Reached], goal: _Goal = "states") -> Reached:
    """Of the largest budget's, the kind that is nearer to the target's states on the matched
    queries."""
    most = max(one.tuned.tokens for one in found)
    those = [one for one in found if one.goal == goal and one.tuned.tokens == most]
    return min(those, key=lambda one: one.apart["matched"].relative_l2.mean())


def by_budget(
    evaluation: Evaluation, found: Sequence[Reached], levels: _Levels, measure: str
) -> Iterator[dict[str, Any]]:
    """Rows of `relative_l2` or `content_js`, the mean over layers: a panel per group, a series per
    kind and goal, x the number of virtual tokens; levels are the same at all of them."""
    budgets = sorted({one.tuned.tokens for one in found})
    lines = [(f"{o.kind} to {o.goal}", o.apart, [o.tuned.tokens]) for o in found]
    for series, groups, places in [*lines, *((name, g, budgets) for name, g in levels.items())]:
        for group, one in groups.items():
            mean = evaluation.mean(group, getattr(one, measure).mean(1))
            yield from (estimate_row(f"{group} queries", series, x, mean) for x in places)


def layer_by_layer(
    evaluation: Evaluation, found: Sequence[Reached], levels: _Levels, group: str
) -> Iterator[dict[str, Any]]:
    """Rows of `relative_l2` on a group: a panel per budget, a series per goal, x the layer; of the
    kind that comes nearest."""
    kind = nearest_kind(found).kind
    those = [one for one in found if one.kind == kind]
    for tokens in sorted({one.tuned.tokens for one in those}):
        goals = {f"to {o.goal}": o.apart for o in those if o.tuned.tokens == tokens}
        for series, groups in {**goals, **levels}.items():
            estimate = evaluation.mean(group, groups[group].relative_l2)
            for layer, *cell in zip(range(evaluation.subject.n_layers), *estimate, strict=True):
                panel = f"{kind} of {tokens}"
                yield estimate_row(panel, series, layer, Estimate(*cell))
