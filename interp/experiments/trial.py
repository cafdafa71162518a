"""One experiment: its claim, its settings, how it is measured; and what all of them share.

    GOLDEN_ZONE = Trial("golden_zone", 0, "...", __doc__, GoldenZone, measure, unit="texts")
    settings = GoldenZone(**GOLDEN_ZONE.fields())       # of the bundled model
    GOLDEN_ZONE.conclude(settings, GOLDEN_ZONE.measure(settings, no_progress))

`measure` opens the models, and gives numbers, figures and a sentence; `conclude` writes and prints
them, with the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from interp.conditions import Condition
from interp.errors import ConfigError
from interp.finding import DecidingEstimate, Finding
from interp.matching.bench import Bench
from interp.matching.settings import Emulation, bundled_emulation
from interp.progress import Progress
from interp.queries import Query
from interp.report.experiments import conclude
from interp.subject.loading import threads_for


class Measurement(NamedTuple):
    """What was measured. `sentence`: what was seen; `contrast`: the number that decides; `n`:
    queries (or whatever was resampled); `table`: all numbers; `figures` by name. `figure`: the one
    that shows the number (none: that of the experiment's name); `model`: its name (none: that of
    the settings); `notes`: lines to print first."""

    sentence: str
    contrast: DecidingEstimate
    n: int
    table: pd.DataFrame
    figures: Mapping[str, go.Figure]
    figure: str | None = None
    model: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Trial:
    """An experiment on one claim.

    `point`: number of the weak point that is tested, as in `Finding`. `claim`: what would have to
    be so. `question`: what is asked, and what each answer would mean. `settings`: its settings;
    `measure` makes the outcome from them. `unit`: what its progress counts. `bundled`: its own
    fields for the bundled model, beside those of every emulation.
    """

    name: str
    point: int
    claim: str
    question: str | None
    settings: type[Emulation]
    measure: Callable[[Any, Progress], Measurement]
    unit: str = ""
    bundled: Mapping[str, Any] = field(default_factory=dict)

    def fields(self, out: Path | None = None) -> dict[str, Any]:
        """The fields of its settings for the bundled model; `out` is the folder of the result."""
        return bundled_emulation(out or Path("runs") / self.name) | dict(self.bundled)

    def conclude(self, settings: Emulation, outcome: Measurement) -> None:
        """Write the finding, the table and the figures into `out`; print table and verdict."""
        for note in outcome.notes:
            print(note)
        finding = Finding(
            point=self.point,
            name=self.name,
            claim=self.claim,
            sentence=outcome.sentence,
            contrast=outcome.contrast,
            n=outcome.n,
            figure=outcome.figure or self.name,
            model=outcome.model or settings.model_name,
        )
        conclude(settings, finding, outcome.table, outcome.figures)


@contextmanager
def open_bench(
    settings: Emulation,
    conditions: Mapping[str, Condition] | None = None,
    asked: Mapping[str, Sequence[Query]] | None = None,
) -> Iterator[Bench]:
    """A bench, as `Bench.open` makes it, with as many threads as its model needs while inside."""
    bench = Bench.open(settings, conditions, asked)
    with threads_for(bench.subject.n_parameters):
        yield bench


def check_heldout(settings: Emulation) -> Path:
    """The file of queries to which nothing is fitted; a `ConfigError` where there is none."""
    if settings.heldout is None:
        raise ConfigError("unseen queries are asked for: give --heldout")
    return settings.heldout
