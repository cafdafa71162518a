"""A finding: one question, and what the numbers say of one claim. Torch-free.

    finding = Finding(point=1, name="generalisation", claim="...", sentence="...", n=26,
                      contrast=DecidingEstimate("strength lost", 0.02, 0.01, 0.03, 0.1),
                      figure="generalisation", model="tiny")
    finding.verdict                     # "not supported": the interval lies below 0.1
    finding.hypothesis                  # "holds": point 1 speaks against it

Every experiment leaves one in its folder; `read_finding` gathers them for a scorecard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from interp.errors import RunError
from interp.runs.files import write_atomic
from interp.untrusted import read_json

FILE = "finding.json"
AGAINST = range(1, 6)
"""The points whose claims speak against the hypothesis; those of all others speak for it."""

_Verdict = Literal["supported", "not supported", "undecided"]
_Hypothesis = Literal["holds", "fails", "undecided"]


class DecidingEstimate(NamedTuple):
    """The number that decides: an estimate with its 95 % interval, and how much counts.

    The claim is that the quantity exceeds `threshold`, which is set before the run. An end that is
    None (or NaN) is unknown, a value that is NaN is undefined.
    """

    what: str
    value: float
    ci_low: float | None
    ci_high: float | None
    threshold: float

    @property
    def verdict(self) -> _Verdict:
        """Supported where the whole interval lies above, not supported where it lies below."""
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if low > self.threshold:
            return "supported"
        return "not supported" if high < self.threshold else "undecided"

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None where one is unknown."""
        low, high = self.ci_low, self.ci_high
        if low is None or high is None or math.isnan(low) or math.isnan(high):
            return None
        return low, high

    @property
    def estimate(self) -> str:
        """The value and its interval in words, as far as they are known."""
        if math.isnan(self.value):
            return "undefined"
        ends = " [{:.3g}, {:.3g}]".format(*self.interval) if self.interval else ""
        return f"{self.value:.3g}{ends}"


@dataclass(frozen=True)
class Finding:
    """What an experiment found.

    `point`: number of the weak point that is tested (0: the golden zone, 6: the library of
    prompts). `claim`: what would have to be so. `sentence`: what was seen, from the numbers.
    `contrast`: the number that decides. `n`: queries (or whatever was resampled). `figure`: its
    file's stem in `figures/`. `model`: its name. `settings`: what it was made with, as JSON values.
    """

    point: int
    name: str
    claim: str
    sentence: str
    contrast: DecidingEstimate
    n: int
    figure: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> _Verdict:
        """Whether the claim holds here, as far as these queries tell."""
        return self.contrast.verdict

    @property
    def hypothesis(self) -> _Hypothesis:
        """What the verdict means for the hypothesis that a prompt can emulate a LoRA: a weak point
        that is supported counts against it, a golden zone or a library that is counts for it."""
        if self.verdict == "undecided":
            return "undecided"
        return "holds" if (self.verdict == "supported") != (self.point in AGAINST) else "fails"

    @property
    def shortfall(self) -> tuple[float, float, float]:
        """How far a prompt falls short, as a multiple of what was allowed: value and both ends.

        Below 1 the hypothesis holds, above it fails. Of a weak point the quantity is the shortfall
        and the threshold what is allowed; of a share of the whole (all others) what is missing is.
        NaN where it is unknown, or where nothing was allowed.
        """
        contrast, against = self.contrast, self.point in AGAINST
        allowed = contrast.threshold if against else 1 - contrast.threshold
        if allowed <= 0:
            return (math.nan,) * 3
        ends = (contrast.value, *(contrast.interval or (math.nan, math.nan)))
        value, *both = ((end if against else 1 - end) / allowed for end in ends)
        low, high = sorted(both)
        return value, low, high

    @property
    def number(self) -> str:
        """The number that decides, in words."""
        contrast = self.contrast
        limit = f"(threshold {contrast.threshold:g})"
        return f"{contrast.what}: {contrast.estimate} {limit}, n = {self.n}"

    def write(self, folder: Path) -> None:
        """Leave it in an experiment's folder."""
        what, *numbers, threshold = self.contrast
        known = [x if x is not None and math.isfinite(x) else None for x in numbers]
        contrast = dict(zip(DecidingEstimate._fields, [what, *known, threshold], strict=True))
        kept = asdict(self) | {"contrast": contrast, "verdict": self.verdict}
        text = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(folder / FILE, text.encode())


def read_finding(folder: Path) -> Finding:
    """The finding of an experiment; RunError where there is none or it is damaged."""
    file = folder / FILE
    try:
        kept: dict[str, Any] = read_json(file.read_bytes())
        if kept["contrast"]["value"] is None:
            kept["contrast"]["value"] = float("nan")
        return TypeAdapter(Finding).validate_python(kept)
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}; run the experiment first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged ({_reason(error)}); run the experiment again") from error


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
