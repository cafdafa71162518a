"""Experiments that workers can import: one that finds its seed, one that fails."""

from __future__ import annotations

from typing import Any

from report import synthetic_findings as synthetic

from interp.errors import ConfigError
from interp.experiments.trial import Measurement, Trial


class FindsItsSeed(Trial):
    """Takes its seed for measured."""

    point, claim = 0, "A seed is a number."

    @classmethod
    def name(cls) -> str:
        return "golden_zone"

    def measure(self, progress: Any) -> Measurement:
        (found,) = (one for one in synthetic.FINDINGS if one.name == self.name())
        number = found.contrast._replace(value=float(self.seed))
        return Measurement("It is.", number, 3, synthetic.table(), {})


class Fails(FindsItsSeed):
    """Cannot be run."""

    @classmethod
    def name(cls) -> str:
        return "generalisation"

    def measure(self, progress: Any) -> Measurement:
        raise ConfigError("no queries; give --queries")


TRIALS = {trial.name(): trial for trial in (FindsItsSeed, Fails)}
