"""Do claims of the literature hold on the models at hand? One script each, one table.

    interp experiment claims                                # all of them, on both models
    interp experiment claims --only 3 5 --models organism
    interp experiment claims --resume                       # what is measured is kept
    python analyses/claims/claim_03.py                      # one claim alone

A script says what is claimed, by whom, what is measured and from which value on that counts, all of
it before the run, and measures it on the bundled model (organism) and on SmolLM2 with a persona. A
verdict follows from an interval alone and is about these two models. Controls (neutral text as long
as the prompt, a random LoRA of the same size) stand beside every number.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from interp.errors import ConfigError, InterpError, RunError
from interp.experiments import Claims
from interp.experiments.claim_models import CLAIM_MODELS, ClaimModel
from interp.finding import DecidingEstimate
from interp.progress import Progress, no_progress
from interp.runs.files import write_atomic
from interp.subject.loading import threads_for

_NOT_YET = "not measured yet"


@dataclass(frozen=True)
class PaperClaim:
    """A claim: its number in the table, what it says, its source and how much of that was read,
    what is measured, and the value above which that counts (set before the run, with the reason).

    `placebos`: controls that have no such effect; a claim whose interval is not above theirs is not
    supported. `needed`: controls that must reach a value, or the measure has not worked and decides
    nothing. `missing`: why it is not measured yet; such a claim has no measure."""

    number: int
    says: str
    source: str
    measured: str
    threshold: float
    reason: str
    placebos: tuple[str, ...] = ()
    needed: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class ClaimOutcome:
    """What was measured on one model: the number that decides with its 95 % interval, over how many
    queries, the same of controls (`nulls`), and what else was seen (`note`)."""

    value: float
    ci_low: float
    ci_high: float
    n: int
    nulls: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def against(self, claim: PaperClaim) -> DecidingEstimate:
        """The number beside how much counts."""
        ends = (self.value, self.ci_low, self.ci_high)
        return DecidingEstimate(claim.measured, *ends, claim.threshold)

    def verdict(self, claim: PaperClaim) -> str:
        """Supported where the interval lies above the threshold and above every placebo; undecided
        where the measure has not worked."""
        verdict = self.against(claim).verdict
        if not all(self.nulls[name] >= least for name, least in claim.needed.items()):
            return "undecided"
        placebos = [self.nulls[name] for name in claim.placebos]
        if verdict == "supported" and not all(self.ci_low > value for value in placebos):
            return "undecided"
        return verdict


ClaimMeasure = Callable[[ClaimModel], ClaimOutcome]


class ClaimScript(NamedTuple):
    """One file: its claim, its measure (none: not measured yet), and a hash of its text."""

    claim: PaperClaim
    measure: ClaimMeasure | None
    digest: str


def claim_model(config: Claims, name: str) -> ClaimModel:
    """A model with its conditions; nothing is opened yet."""
    return CLAIM_MODELS[name](config.chat, config.smollm2, config.out / "made" / name, config.limit)


def measure_claims(config: Claims, progress: Progress = no_progress) -> Path:
    """Measure what is asked for, and write the table; returns its file.

    Raises `RunError` after all of it where some claim failed; what was measured is kept.
    """
    if unknown := [name for name in config.models if name not in CLAIM_MODELS]:
        raise ConfigError(f"no model {unknown[0]!r}: there are {', '.join(CLAIM_MODELS)}")
    scripts = read_scripts(config.scripts)
    if none := [number for number in config.only if number not in scripts]:
        raise ConfigError(f"no claim {none[0]}: there are {', '.join(map(str, scripts))}")
    asked = [s for n, s in scripts.items() if s.measure and n in (config.only or scripts)]
    total, failed = len(asked) * len(config.models), []
    for name in config.models:
        model = claim_model(config, name)
        for script in asked:
            if not _known(config, script, model):
                failed += _measured(config, script, model)
            progress("claims", 1, total)
    write_atomic(config.docs, claims_page(config, scripts.values()).encode())
    if failed:
        raise RunError(f"{len(failed)} of {total} measurements failed: {'; '.join(failed)}")
    return config.docs


def read_scripts(folder: Path) -> dict[int, ClaimScript]:
    """Number -> the script of every claim of a folder, in their order."""
    files = sorted(folder.glob("claim_*.py"))
    if not files:
        raise ConfigError(f"{folder} has no claim_NN.py: start in a checkout, or give --scripts")
    found = {script.claim.number: script for script in map(_read, files)}
    return dict(sorted(found.items()))


def _read(file: Path) -> ClaimScript:
    spec = importlib.util.spec_from_file_location(f"interp_claims_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return ClaimScript(module.CLAIM, getattr(module, "measure", None), digest)


def _measured(config: Claims, script: ClaimScript, model: ClaimModel) -> list[str]:
    """Measure one claim on one model and keep it; why it failed, if it did."""
    assert script.measure is not None
    began = time.monotonic()
    try:
        with threads_for(model.n_parameters):
            outcome = script.measure(model)
    except InterpError as error:
        return [f"claim {script.claim.number} on {model.name}: {error}"]
    kept = asdict(outcome) | {"seconds": time.monotonic() - began, **_key(config, script)}
    kept["sha256"] = script.digest
    text = json.dumps(_finite(kept), indent=1, ensure_ascii=False)
    write_atomic(_file(config, script, model.name), text.encode())
    return []


def _key(config: Claims, script: ClaimScript) -> dict[str, Any]:
    return {"limit": config.limit, "sha256": script.digest}


def _file(config: Claims, script: ClaimScript, name: str) -> Path:
    return config.out / f"claim_{script.claim.number:02}_{name}.json"


def _finite(kept: dict[str, Any]) -> dict[str, Any]:
    """NaN, which JSON has not, as None."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in kept.items()
    }


def _known(config: Claims, script: ClaimScript, model: ClaimModel) -> bool:
    """Whether the same script was run with the same settings, and its outcome is to be kept."""
    kept = _kept(_file(config, script, model.name)) if config.resume else None
    key = _key(config, script)
    return kept is not None and {name: kept.get(name) for name in key} == key


def _kept(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def read_outcome(file: Path) -> ClaimOutcome | None:
    """What was measured, or None."""
    kept = _kept(file)
    if kept is None:
        return None
    value, low, high = (
        math.nan if kept[name] is None else kept[name] for name in ("value", "ci_low", "ci_high")
    )
    return ClaimOutcome(value, low, high, kept["n"], kept["nulls"], kept["note"])


def overall_verdict(verdicts: Mapping[str, str], n_models: int) -> str:
    """Of several models: theirs where all agree, undecided where they do not; by name where it was
    measured on some of `n_models` alone."""
    found = set(verdicts.values())
    if not found:
        return _NOT_YET
    verdict = found.pop() if len(found) == 1 else "undecided"
    return verdict if len(verdicts) == n_models else f"{verdict} on {' and '.join(verdicts)}"


def claims_page(config: Claims, scripts: Iterable[ClaimScript]) -> str:
    """The table of all claims, and under it what every one rests on."""
    every = list(scripts)
    lines = [_HEAD, "| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += [_row(config, script) for script in every]
    lines += ["", "## What each rests on"]
    for script in every:
        lines += ["", *_details(config, script)]
    return "\n".join(lines) + "\n"


_COLUMNS = ("#", "claim", "source", "organism", "SmolLM2", "verdict on these models")
_HEAD = """# Claims of the literature, on two small models

Written by `interp experiment claims` from what `analyses/claims/` measures; not edited by hand. The
organism is the bundled model (1.1M parameters, the task is to give the opposite of a word), SmolLM2
is SmolLM2-135M-Instruct with a persona as system message; each has a LoRA that was distilled from
its prompt. A number is followed by its 95 % interval. *Supported*: the interval lies above the
threshold that stands in the script since before the run, and above the controls that should show no
such effect; *not supported*: below the threshold; *undecided*: neither, or the two models disagree.
Nothing here is about other models.
"""


def _row(config: Claims, script: ClaimScript) -> str:
    claim = script.claim
    cells: list[str] = []
    verdicts: dict[str, str] = {}
    for name in CLAIM_MODELS:
        outcome = read_outcome(_file(config, script, name)) if script.measure else None
        if outcome is None:
            cells.append("–")
            continue
        estimate = outcome.against(claim)
        verdicts[name] = outcome.verdict(claim)
        cells.append(f"{estimate.estimate}: {verdicts[name]}")
    verdict = overall_verdict(verdicts, len(CLAIM_MODELS))
    if claim.missing:
        verdict = f"{_NOT_YET}: {claim.missing}"
    return "| " + " | ".join([str(claim.number), claim.says, claim.source, *cells, verdict]) + " |"


def _details(config: Claims, script: ClaimScript) -> list[str]:
    claim = script.claim
    lines = [f"### {claim.number}. {claim.says}", "", f"- Source: {claim.source}"]
    if script.measure is None:
        return [*lines, f"- {_NOT_YET}: {claim.missing}"]
    lines.append(f"- Measured: {claim.measured}")
    lines.append(f"- Threshold {claim.threshold:g}: {claim.reason}")
    lines += [f"- Undecided unless {name} reach {x:g}" for name, x in claim.needed.items()]
    for name in CLAIM_MODELS:
        outcome = read_outcome(_file(config, script, name))
        if outcome is None:
            lines.append(f"- {name}: {_NOT_YET}")
            continue
        nulls = ", ".join(f"{null} {value:.3g}" for null, value in outcome.nulls.items())
        lines.append(
            f"- {name}: {outcome.against(claim).estimate}, n = {outcome.n} queries. "
            f"Controls: {nulls or 'none'}. {outcome.note}".rstrip()
        )
    return lines


def conduct_claim(claim: PaperClaim, measure: ClaimMeasure, config: Claims) -> None:
    """Measure one claim alone and print what came of it; for a script that is run by itself."""
    for name in config.models:
        outcome = measure(claim_model(config, name))
        estimate = outcome.against(claim)
        nulls = ", ".join(f"{null} {value:.3g}" for null, value in outcome.nulls.items())
        print(f"{name}: {claim.measured}: {estimate.estimate} (threshold {claim.threshold:g})")
        print(f"  {outcome.verdict(claim).upper()} here, n = {outcome.n}. Controls: {nulls}.")
        if outcome.note:
            print(f"  {outcome.note}")
