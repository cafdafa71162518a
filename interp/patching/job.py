"""What an interchange works on: a finished run's model, two of its conditions, its queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from interp.answers import encode_again
from interp.conditions import Condition
from interp.config import OfPair
from interp.design import BASE
from interp.errors import ConfigError
from interp.patching.interchange import Sweep, rows_within
from interp.patching.patched import moves_output
from interp.patching.settings import Patching
from interp.positions import position_labels
from interp.preparing import open_subject, present_segments, read_groups, reopen
from interp.progress import Progress, no_progress
from interp.queries import Encoded
from interp.store import SHARD
from interp.subject import Batch, Subject


class Job(NamedTuple):
    """What is patched: the model, the queries, and how many of their rows fit a forward pass."""

    subject: Subject
    plan: Sweep
    queries: Sequence[Encoded]
    caches: Mapping[str, Any]
    rows: int
    notes: Sequence[str] = ()

    @property
    def chunk(self) -> int:
        """Queries that are worked on at once."""
        return min(SHARD, self.rows)

    @property
    def backward_chunk(self) -> int:
        """The same where a backward pass follows, which needs every layer's activations."""
        return max(1, min(SHARD, self.rows // self.subject.n_layers))


def prepare_patching(
    settings: Patching, manifest: Mapping[str, Any], progress: Progress = no_progress
) -> Job:
    """The model of a run under the two conditions and base alone, and its matched queries."""
    experiment, built = reopen(settings.run, settings.device, settings.limit)
    a, b = pair_to_patch(settings, manifest, built)
    kept = {name: built[name] for name in (BASE, a, b)}
    asked = {"matched": read_groups(experiment)["matched"]}
    subject = open_subject(experiment, kept, asked["matched"], progress)
    queries = encode_again(settings.run, subject, kept, asked)["matched"]
    if len(queries) < 2:
        raise ConfigError(f"{settings.run} has one matched query: an interchange needs two or more")
    present = present_segments(experiment, queries)
    beside = ["mixer_out"] if "attn_out" in settings.sites else []  # in the place of attention
    whole = ["resid_post", *settings.sites, *beside]
    by_head = ["z", *settings.head_sites] if settings.head_sites else []
    plan = Sweep(
        a,
        b,
        BASE,
        whole=_present(subject, whole),
        by_head=_present(subject, by_head),
        positions=_positions(queries, settings.positions),
        pattern=settings.pattern,
        seed=experiment.seed,
        segments=tuple(name for name in present if name in settings.segments),
        head_segments=tuple(name for name in present if name in settings.head_segments),
        every=settings.every,
    )
    names = plan.conditions
    caches = {name: subject.prefill(subject.settings[name]) for name in names}
    rows = rows_within(subject, names, queries, settings.memory * 1e9)
    first, bare = Batch.forced(queries[:1], subject.device), subject.settings[BASE]
    inert = [
        name for name in plan.by_head if not moves_output(subject, bare, first, caches[BASE], name)
    ]
    notes = [f"{name} is not patched: this model goes on with its own value" for name in inert]
    plan = replace(plan, by_head=tuple(name for name in plan.by_head if name not in inert))
    return Job(subject, plan, queries, caches, rows, notes)


def _present(subject: Subject, names: Sequence[str]) -> tuple[str, ...]:
    """The sites of these names that the model has, each once."""
    return tuple(name for name in dict.fromkeys(names) if subject.anatomy.layers(name))


def _positions(queries: Sequence[Encoded], most: int) -> tuple[str, ...]:
    """`last` and single indices within the text, where a query has more than one token."""
    if max(len(query.forced) for query in queries) == 1 or not most:
        return ()
    longest = max(query.n_text or len(query.ids) for query in queries)
    return tuple(label for label in position_labels(longest, most) if label != "mean")


def pair_to_patch(
    settings: OfPair, manifest: Mapping[str, Any], built: Mapping[str, Condition]
) -> tuple[str, str]:
    """The two conditions: as asked, or the run's headline."""
    headline = manifest["headline"] or {}
    found = []
    for role in ("condition", "reference"):
        name = getattr(settings, role) or headline.get(role)
        others = ", ".join(other for other in built if other != BASE)
        if name is None:
            raise ConfigError(f"{settings.run} has no headline: name --{role}; it has {others}")
        if name == BASE:
            raise ConfigError(
                f"an interchange in {settings.run} needs two conditions beside base: name "
                f"--{role}; it has {others}"
            )
        if name not in built:
            raise ConfigError(f"no condition {name!r} to patch in {settings.run}: it has {others}")
        if built[name].only_logits:
            raise ConfigError(f"{name} only moves logits: it has no internal state of its own")
        found.append(name)
    a, b = found
    if a == b:
        raise ConfigError(f"--condition and --reference are both {a}: an interchange needs two")
    return a, b
