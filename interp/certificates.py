"""The match certificate of two conditions, as a run keeps it.

    signed = load_run("RUN").certificates[0]
    print(signed)               # prompt vs lora, matched: mean JS 0.000284 ≤ 0.02 nats, ...

What is in it is made by `interp.measures.certificate`. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.showing import html_page, number


@dataclass(frozen=True)
class Certificate:
    """Whether two conditions say the same on a group of queries.

    `queries`: the group. `mean_js` (nats) and `top1_agreement` (a share) beside their tolerances,
    over `n` answers of `tokens` in all; None where an output was no distribution.
    `answer_agreement`: the share of whole answers that are the same; `sequence_kl`: nats per
    answer.
    """

    condition: str
    reference: str
    queries: str
    passed: bool
    mean_js: float | None
    tolerance_js: float
    top1_agreement: float | None
    tolerance_top1: float
    n: int
    tokens: int
    answer_agreement: float | None = None
    sequence_kl: float | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Certificate:
        """From an entry of a manifest's `certificates`."""
        known = {name: entry.get(name) for name in cls.__dataclass_fields__}
        return cls(**{**known, "tokens": entry.get("tokens", entry["n"])})

    @property
    def numbers(self) -> str:
        """The numbers beside their tolerances; a number that is missing is undefined."""
        js, top = self.mean_js, self.top1_agreement
        js_sign = "≤" if js is not None and js <= self.tolerance_js else ">"
        top_sign = "≥" if top is not None and top >= self.tolerance_top1 else "<"
        if js is None or top is None:
            js_sign = top_sign = "against"
        return (
            f"mean JS {number(js)} {js_sign} {self.tolerance_js:g} nats, "
            f"top-1 {number(top)} {top_sign} {self.tolerance_top1:g}, n = {self.n}{self._whole}"
        )

    @property
    def _whole(self) -> str:
        """What a certificate of answers of several tokens adds."""
        if self.tokens <= self.n:
            return ""
        same, kl = number(self.answer_agreement), number(self.sequence_kl)
        return f" answers ({self.tokens} tokens; {same} the same; sequence KL {kl} nats)"

    def __str__(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        return f"{verdict} {self.condition} vs {self.reference}, {self.queries}: {self.numbers}"

    def _repr_html_(self) -> str:
        return html_page("Match certificate", str(self))
