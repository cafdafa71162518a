"""What all experiments share: a claim, the settings of an emulation, how it ends.

    class GoldenZone(Trial):
        point, claim, unit = 0, "A prompt gives the LoRA's output.", "texts"
        ...
        def measure(self, progress): ...

    trial = GoldenZone(**GoldenZone.bundled_fields())
    trial.conclude(trial.measure(no_progress))

`measure` opens the models, and gives numbers, figures and a sentence; `conclude` writes and prints
them, with the verdict.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from interp.conditions import Condition
from interp.finding import DecidingEstimate, Finding
from interp.matching.evaluation import Evaluation
from interp.matching.settings import Emulation, bundled_emulation
from interp.progress import Progress
from interp.queries import Query
from interp.report.experiments import conclude
from interp.statistics import Estimate
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


def estimate_row(panel: str, series: str, x: Any, estimate: Estimate) -> dict[str, Any]:
    """A row of an experiment's table (`interp.plots.curves`)."""
    value, low, high, n = (column.item() for column in estimate)
    about = {"panel": panel, "series": series, "x": x}
    return about | {"value": value, "ci_low": low, "ci_high": high, "n": n}


class Trial(Emulation):
    """An experiment on one claim, with its settings."""

    point: ClassVar[int]
    """Number of the weak point that is tested, as in `Finding`."""
    claim: ClassVar[str]
    """What would have to be so."""
    unit: ClassVar[str] = ""
    """What its progress counts."""
    bundled: ClassVar[Mapping[str, Any]] = {}
    """Fields of its own for the bundled model, beside those of every emulation."""

    @classmethod
    def name(cls) -> str:
        """Its name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def question(cls) -> str | None:
        """What is asked, and what each answer would mean: the head of its file."""
        return sys.modules[cls.__module__].__doc__

    @classmethod
    def bundled_fields(cls, out: Path | None = None) -> dict[str, Any]:
        """The fields for the bundled model; `out` is the folder of the result."""
        return bundled_emulation(out or Path("runs") / cls.name()) | dict(cls.bundled)

    @abstractmethod
    def measure(self, progress: Progress) -> Measurement:
        """Numbers, figures and a sentence, from the settings."""

    @contextmanager
    def evaluation(
        self,
        conditions: Mapping[str, Condition] | None = None,
        asked: Mapping[str, Sequence[Query]] | None = None,
    ) -> Iterator[Evaluation]:
        """What `Evaluation.open` gives, with as many threads as its model needs while inside."""
        evaluation = Evaluation.open(self, conditions, asked)
        with threads_for(evaluation.subject.n_parameters):
            yield evaluation

    def conclude(self, measured: Measurement) -> None:
        """Write the finding, the table and the figures into `out`; print table and verdict."""
        for note in measured.notes:
            print(note)
        finding = Finding(
            point=self.point,
            name=self.name(),
            claim=self.claim,
            sentence=measured.sentence,
            contrast=measured.contrast,
            n=measured.n,
            figure=measured.figure or self.name(),
            model=measured.model or self.model_name,
        )
        conclude(self, finding, measured.table, measured.figures)
