"""A finding: one question, and what the numbers say of one claim. Torch-free.

    finding = Finding(point=1, name="generalisation", claim="...", sentence="...", n=26,
                      contrast=Contrast("strength lost on unseen queries", 0.02, 0.01, 0.03, 0.1))
    finding.verdict                     # "supported", "not supported" or "undecided"

Every experiment leaves one in its folder; `read` gathers them for a scorecard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from interp.errors import RunError
from interp.results import write_atomic

FILE = "finding.json"

Verdict = Literal["supported", "not supported", "undecided"]


class Contrast(NamedTuple):
    """The number that decides: an estimate with its 95 % interval, and how much counts.

    The claim is that the quantity exceeds `threshold`, which is set before the run. An end that is
    None is unknown.
    """

    what: str
    value: float
    ci_low: float | None
    ci_high: float | None
    threshold: float

    @property
    def verdict(self) -> Verdict:
        """Supported where the whole interval lies above, not supported where it lies below."""
        if self.ci_low is None or self.ci_high is None:
            return "undecided"
        if self.ci_low > self.threshold:
            return "supported"
        return "not supported" if self.ci_high < self.threshold else "undecided"


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
    contrast: Contrast
    n: int
    figure: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Whether the claim holds here, as far as these queries tell."""
        return self.contrast.verdict

    @property
    def number(self) -> str:
        """The number that decides, in words."""
        what, value, low, high, threshold = self.contrast
        known = low is not None and high is not None
        interval = f" [{low:.3g}, {high:.3g}]" if known else ""
        return f"{what} {value:.3g}{interval} (threshold {threshold:g}), n = {self.n}"

    def write(self, folder: Path) -> None:
        """Leave it in an experiment's folder."""
        kept = asdict(self) | {"contrast": self.contrast._asdict(), "verdict": self.verdict}
        text = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(folder / FILE, text.encode())


def read(folder: Path) -> Finding:
    """The finding of an experiment; RunError where there is none or it is damaged."""
    file = folder / FILE
    try:
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kept.pop("verdict")
        return Finding(**kept | {"contrast": Contrast(**kept["contrast"])})
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}; run the experiment first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}); run the experiment again") from error
