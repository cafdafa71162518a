"""What a run would cost, before it is made: one chunk of it is measured, and nothing is written.

    forecast = foresee(Experiment(...))
    print("\\n".join(forecast.lines()))

The model is opened and compared with plain Hugging Face as a run does it. The chunk that is
measured is the one with the most tokens, so that no other needs more memory. Passes and tokens are
counted as they happen; the seconds of all chunks follow from those of one by their tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from torch import nn

from interp.capabilities import find
from interp.capture import chunks
from interp.conditions import Condition, FittedBias, simple_parts
from interp.config import Experiment
from interp.design import BASE, Design
from interp.engines import InProcess
from interp.halving import memory_errors
from interp.measures.plan import Plan
from interp.measures.tally import Tally
from interp.memory import bytes_words, peak_memory
from interp.preparing import FIT_BATCH, FITTED, inputs_of, make_plan, open_subject, probe_of
from interp.progress import Progress, no_progress
from interp.queries import Encoded, Groups
from interp.runs.files import ARRAYS, TABLE, as_table
from interp.samples import CONTEXT_COLUMNS, SAMPLED
from interp.selection import ALL_GROUPS, GROUP_OF, measure_of
from interp.store import SHARD, Store
from interp.subject import Subject
from interp.subject.aligning import encode_groups
from interp.subject.loading import device_of, threads_for
from interp.sweep import kept_labels, sweep
from interp.tabulate import grams, table_rows

_Result = TypeVar("_Result")

MEMORY_FACTOR = 1.5
"""The largest memory of a run is within this factor of what is foretold, either way."""


class Cost(NamedTuple):
    """Forward passes of the model, the tokens that it reads in them (padding included), seconds."""

    passes: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def plus(self, other: Cost, times: float = 1, share: float | None = None) -> Cost:
        """This, and so many `times` the passes of another, whose tokens and seconds go by `share`
        (none: `times`)."""
        share = times if share is None else share
        return Cost(
            self.passes + round(other.passes * times),
            self.tokens + round(other.tokens * share),
            self.seconds + other.seconds * share,
        )


@dataclass(frozen=True)
class Forecast:
    """What a run would do.

    `conditions`: name -> what it is, and how many tokens stand before the query. `chunks`: how
    many, of at most `batch_size` queries; `chunk`: the cost of the largest. `stages`: all that is
    computed once the model is open, which takes `opening` seconds. `memory`: bytes at most, of the
    process or of the cuda device, `before`: of the model and the program alone. `computed`: groups
    of measures; `withheld`: those that the model does not allow, and why. `files`: name -> bytes,
    roughly.
    """

    experiment: Experiment
    conditions: Mapping[str, tuple[str, int]]
    queries: Mapping[str, int]
    batch_size: int
    chunks: int
    chunk: Cost
    stages: Mapping[str, Cost]
    opening: float
    memory: int
    before: int
    computed: tuple[str, ...]
    withheld: Mapping[str, str]
    files: Mapping[str, int]

    @property
    def total(self) -> Cost:
        """All stages together."""
        total = Cost()
        for cost in self.stages.values():
            total = total.plus(cost)
        return total

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        counts = ", ".join(f"{n} {group}" for group, n in self.queries.items())
        yield f"{self.experiment.model}: {counts} queries under {len(self.conditions)} conditions"
        for name, (words, prefix) in self.conditions.items():
            yield f"  {name:<16} {prefix:>7,} tokens before the query; {words}"
        yield f"computed: {', '.join(self.computed)}"
        if left := self.experiment.unasked:
            yield f"not asked for: {', '.join(name for name in ALL_GROUPS if name in left)}"
        for name, reason in self.withheld.items():
            yield f"withheld: {name} ({reason})"
        yield f"chunks: {self.chunks} of at most {self.batch_size} queries"
        yield f"  {'the largest':<16} {_words(self.chunk)}"
        for name, cost in {**self.stages, "in all": self.total}.items():
            yield f"  {name:<16} {_words(cost)}"
        yield (
            f"time: about {_seconds(self.opening + self.total.seconds)}, "
            f"{_seconds(self.opening)} of it to open and check the model; the geometry of queries "
            "and the report come on top"
        )
        yield (
            f"memory: about {bytes_words(self.memory)}, {bytes_words(self.before)} of it for the "
            "model and the program"
        )
        files = ", ".join(f"{name} {bytes_words(size)}" for name, size in self.files.items())
        yield f"{self.experiment.out} would hold about: {files}, and the report"
        yield "nothing was written: leave --plan away to run it"


def _words(cost: Cost) -> str:
    return f"{cost.passes:,} forward passes, {cost.tokens:,} tokens, {_seconds(cost.seconds)}"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def foresee(
    experiment: Experiment, progress: Progress = no_progress, subject: Subject | None = None
) -> Forecast:
    """Open the model, measure one chunk, and say what the run would do; `subject`: the model, where
    it is open already. Raises what `interp.study.run_study` raises before it measures."""
    start = time.perf_counter()
    built, asked, _ = inputs_of(experiment)
    with peak_memory(device_of(experiment.device)) as memory:
        subject = subject or open_subject(experiment, built, asked["matched"], progress)
    opening = time.perf_counter() - start, memory.most
    with threads_for(subject.n_parameters), memory_errors():
        groups = _with_answers(experiment, encode_groups(subject, built, asked))
        probe = probe_of(groups["matched"])
        withheld, checks = _costed(subject, partial(find, subject, probe, BASE, experiment.unasked))
        design = Design.of(built, experiment.families, experiment.compare)
        plan = make_plan(experiment, subject, design, groups, withheld)
        return _forecast(experiment, built, subject, groups, plan, checks, opening)


def _with_answers(experiment: Experiment, groups: Groups) -> Groups:
    """Where conditions are to write the answers: with some of the greatest length."""
    if experiment.answers_from is None:
        return groups
    n = experiment.answer_tokens
    return {
        name: [replace(query, answer_ids=(query.ids[-1],) * n) for query in queries]
        for name, queries in groups.items()
    }


def _forecast(
    experiment: Experiment,
    built: Mapping[str, Condition],
    subject: Subject,
    groups: Groups,
    plan: Plan,
    checks: Cost,
    opening: tuple[float, int],
) -> Forecast:
    parts = [part for queries in groups.values() for part in _parts(queries, plan.batch_size)]
    largest = max(parts, key=_padded)
    with peak_memory(subject.device) as memory, TemporaryDirectory() as folder:
        prefixes = {
            name: _costed(subject, partial(subject.prefill, setting))[1]
            for name, setting in subject.settings.items()
        }
        store = Store(Path(folder))
        run = partial(sweep, InProcess(subject), plan, largest, store, "plan", no_progress)
        tally, swept = _costed(subject, run)
        shard = sum(file.stat().st_size for file in store.folder.iterdir())
        files, tables = _costed(subject, partial(_files, experiment, subject, groups, plan, tally))
    every = _sum(prefixes.values())
    chunk = swept.plus(every, -1)
    share = sum(map(_padded, parts)) / _padded(largest)
    rate = chunk.seconds / max(1, chunk.tokens)
    stages = {
        "checks": checks,
        "bias fits": _fits(experiment, built, groups, prefixes, rate),
        "answers, at most": _answers(experiment, groups, prefixes, chunk),
        "measures": Cost().plus(every, len(groups)).plus(chunk, len(parts), share),
        "keys and values": every if experiment.keys_values else Cost(),
        "samples": _sampled(groups, subject, plan, prefixes, rate),
        "head view": Cost() if "patterns" in plan.unread else _looked(groups, plan, prefixes, rate),
        "tables": Cost(seconds=tables.seconds * len(groups)),
    }
    kept = sum(array.nbytes for a in tally.values() for array in a.arrays().values())
    kept += shard * min(SHARD, max(map(len, groups.values()))) // len(largest)
    most = memory.most + (kept if len(parts) > 1 and subject.device.type == "cpu" else 0)
    return Forecast(
        experiment=experiment,
        conditions={n: (c.describe(), subject.settings[n].n_prefix) for n, c in built.items()},
        queries={name: len(queries) for name, queries in groups.items()},
        batch_size=plan.batch_size,
        chunks=len(parts),
        chunk=chunk,
        stages={name: cost for name, cost in stages.items() if cost != Cost()},
        opening=opening[0],
        memory=max(most, opening[1]),
        before=memory.before,
        computed=tuple(_computed(plan, tally)),
        withheld=plan.withheld,
        files=files,
    )


def _computed(plan: Plan, tally: Tally) -> Iterator[str]:
    """The groups that the accumulators of a chunk hold, and what is made of what they keep."""
    found = {GROUP_OF.get(key.measure) for key in tally}
    found |= {"families"} if plan.members else set()
    found |= {"geometry"} if plan.sample else set()
    yield from (name for name in ALL_GROUPS if name in found)


def _parts(queries: Sequence[Encoded], size: int) -> Iterator[Sequence[Encoded]]:
    """The chunks in which a group is measured: none reaches over the end of a shard."""
    for shard in chunks(queries, SHARD):
        yield from chunks(shard, size)


def _padded(part: Sequence[Encoded]) -> int:
    """Tokens of a pass over these queries with their answers."""
    return len(part) * max(len(query.forced) for query in part)


def _bare(part: Sequence[Encoded]) -> int:
    """The same without answers."""
    return len(part) * max(len(query.ids) for query in part)


def _sum(costs: Iterable[Cost]) -> Cost:
    total = Cost()
    for cost in costs:
        total = total.plus(cost)
    return total


def _fits(
    experiment: Experiment,
    built: Mapping[str, Condition],
    groups: Groups,
    prefixes: Mapping[str, Cost],
    rate: float,
) -> Cost:
    """Of the biases that are fitted to another condition's outputs."""
    fitted = list(chunks(groups["matched"][:FITTED], experiment.batch_size or FIT_BATCH))
    tokens, total = sum(map(_bare, fitted)), Cost()
    for name, condition in built.items():
        for part in simple_parts(condition):
            if isinstance(part, FittedBias):
                like = next(n for n, c in built.items() if c == part.like)
                runs = Cost(2 * len(fitted), 2 * tokens, 2 * tokens * rate)
                total = _sum([total, prefixes[name], prefixes[like], runs])
    return total


def _answers(
    experiment: Experiment, groups: Groups, prefixes: Mapping[str, Cost], chunk: Cost
) -> Cost:
    """Of the answers that conditions write, if none ends early; queries of one length together."""
    n, total = experiment.answer_tokens, Cost()
    if not n:
        return total
    for shard in (s for queries in groups.values() for s in chunks(queries, SHARD)):
        total = _sum([total, *prefixes.values()])
        passes = len(prefixes) * n * len({len(query.ids) for query in shard})
        tokens = len(prefixes) * sum(len(query.ids) + n - 1 for query in shard)
        total = total.plus(Cost(passes, tokens, passes * chunk.seconds / max(1, chunk.passes)))
    return total


def _sampled(
    groups: Groups, subject: Subject, plan: Plan, prefixes: Mapping[str, Cost], rate: float
) -> Cost:
    """Of the queries that are kept closely: one run of each condition, and a second where its
    context is too long to keep a column for every token."""
    first = groups["matched"][:SAMPLED]
    long = sum(s.n_prefix > CONTEXT_COLUMNS + 1 for s in subject.settings.values())
    runs = len(prefixes) + (0 if "patterns" in plan.unread else long)
    tokens = runs * _bare(first)
    return _sum(prefixes.values()).plus(Cost(runs, tokens, tokens * rate))


def _looked(groups: Groups, plan: Plan, prefixes: Mapping[str, Cost], rate: float) -> Cost:
    """Of the view of one head."""
    parts, n = list(chunks(groups["matched"], plan.batch_size)), len(prefixes)
    tokens = n * sum(map(_bare, parts))
    return _sum(prefixes.values()).plus(Cost(n * len(parts), tokens, tokens * rate))


def _files(
    experiment: Experiment, subject: Subject, groups: Groups, plan: Plan, tally: Tally
) -> dict[str, int]:
    """Name -> bytes of what a run of so many groups holds, from the accumulators of a chunk: their
    size does not depend on the number of queries."""
    table = as_table(table_rows(tally, plan.labels, "matched"))
    table = table[table["measure"].map(measure_of).isin(experiment.written)]
    arrays = grams({"matched": tally}, list(subject.settings), plan)
    cells = len(plan.kept) * subject.n_layers * len(plan.sample) * subject.d_model
    kept = 4 * cells * len(kept_labels(plan.labels))
    return {
        TABLE: len(table.to_parquet(index=False)) * len(groups),
        ARRAYS: sum(array.nbytes for array in arrays.values()) * len(groups) + kept,
    }


def _costed(subject: Subject, work: Callable[[], _Result]) -> tuple[_Result, Cost]:
    """What some work gives, and what it costs."""
    seen: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        first = next(x for x in given if x is not None)
        seen.append(first.shape[0] * first.shape[1])

    handle = subject.hf_model.register_forward_pre_hook(count, with_kwargs=True)
    start = time.perf_counter()
    try:
        result = work()
    finally:
        handle.remove()
    return result, Cost(len(seen), sum(seen), time.perf_counter() - start)
