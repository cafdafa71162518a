"""All checks of `interp validate`, timed: the bundled model and nine tiny ones, or the user's own.

outcomes = validate(Validating(model="path/to/model"), progress=print)
all(outcome.passed for outcome in outcomes)
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from interp import organism
from interp.capabilities import GROUPS
from interp.errors import ConfigError, ParityError
from interp.names import short_name
from interp.subject.loading import quiet, threads_for
from interp.validation import identities, published, separating, tiny
from interp.validation.outcome import Outcome, Reading, worst
from interp.validation.settings import Validating
from interp.validation.specimen import Specimen, open_specimen

_OnCheck = Callable[[str], None]
_Value = TypeVar("_Value")


def validate(settings: Validating, progress: _OnCheck = lambda name: None) -> list[Outcome]:
    """Every chosen check; `progress` hears the name of each model before it is opened.

    `ConfigError` where none is chosen; `SubjectError` where the model cannot be loaded at all.
    """
    if settings.adapter is not None and settings.model is None:
        raise ConfigError("--adapter is mounted on --model: name one")
    runs = _own if settings.model is not None else _bundled
    with threads_for(0):
        outcomes = [outcome for outcome in runs(settings, progress) if outcome]
    if not outcomes:
        known = ", ".join(
            [
                *identities.IDENTITY_CHECKS,
                *published.PUBLISHED_CHECKS,
                *separating.SEPARATION_CHECKS,
            ]
        )
        raise ConfigError(f"no check is called {' or '.join(settings.only)}; there are: {known}")
    return outcomes


def _own(settings: Validating, progress: _OnCheck) -> Iterator[Outcome]:
    assert settings.model is not None
    options = settings.loading
    name = short_name(settings.model)
    progress(name)
    yield from of_model(settings.model, name, settings.only, settings.adapter, own=True, **options)


def _bundled(settings: Validating, progress: _OnCheck) -> Iterator[Outcome]:
    only = settings.only
    yield from _each(only, "definition", published.PUBLISHED_CHECKS)
    if separating.available():
        yield from _each(only, "toy", separating.SEPARATION_CHECKS)
    if not _chosen(only, identities.IDENTITY_CHECKS):
        return
    progress("bundled model")
    adapter = str(sorted(organism.ADAPTERS.iterdir())[0])
    yield from of_model(str(organism.MODEL), "bundled", only, adapter)
    found = []
    for architecture in tiny.CONFIGS:
        progress(f"tiny {architecture}")
        with tempfile.TemporaryDirectory() as folder, quiet():
            model = tiny.save_model(architecture, Path(folder) / architecture)
            found += of_model(model, architecture, only)
    yield from worst(found, f"{len(tiny.CONFIGS)} tiny")


def of_model(
    model: str,
    name: str,
    only: tuple[str, ...],
    adapter: str | None = None,
    own: bool = False,
    **options: Any,
) -> list[Outcome]:
    """The identities of one model; without parity the others mean nothing and are left out.

    `own`: the user's model, of which something may be withheld; of the others nothing may.
    """
    options = {"device": "cpu"} | options
    with tempfile.TemporaryDirectory() as folder, quiet():
        start = time.perf_counter()
        try:
            specimen = open_specimen(model, Path(folder), adapter, **options)
        except ParityError as error:
            reading = Reading(float("nan"), 0.0, note=str(error))
            return [Outcome("parity", name, reading, time.perf_counter() - start)]
        loaded = time.perf_counter() - start
        found = list(_of_specimen(only, name, specimen))
    if own:
        found = [*found, *_capabilities(only, name, specimen)]
    elif broken := [o for o in found if o.withheld]:
        found = [o for o in found if not o.withheld]
        found += [Outcome(o.check, o.on, Reading(math.nan, 0.0, note=o.withheld), o.seconds)
                  for o in broken]  # fmt: skip
    return [replace(o, seconds=o.seconds + loaded * (i == 0)) for i, o in enumerate(found)]


def _of_specimen(only: tuple[str, ...], name: str, specimen: Specimen) -> Iterator[Outcome]:
    for check in _chosen(only, identities.IDENTITY_CHECKS):
        if reason := specimen.withheld.get(identities.OF.get(check, "")):
            yield Outcome(check, name, Reading(math.nan, 0.0), 0.0, reason)
        elif check == "implicit update":
            yield _implicit_update(name, specimen)
        else:
            yield from _each((check,), name, {check: identities.IDENTITY_CHECKS[check]}, specimen)


def _implicit_update(name: str, specimen: Specimen) -> Outcome:
    """`interp weights` leaves it out where it does not hold, or where the MLPs are experts."""
    start, check = time.perf_counter(), "implicit update"
    reading, reason = Reading(math.nan, 0.0), ""
    try:
        reading = identities.IDENTITY_CHECKS[check](specimen)
        if not reading.passed:
            reason = f"an updated block is {reading.value:.1g} from the block with the prompt"
    except Exception as error:  # whatever it raises, the MLPs are others than assumed
        reason = " ".join(str(error).split())[:160]
    return Outcome(check, name, reading, time.perf_counter() - start, reason)


def _capabilities(only: tuple[str, ...], name: str, specimen: Specimen) -> Iterator[Outcome]:
    """What can be measured: 0 of its tries failed, or why it is withheld."""
    for group in _chosen(only, {f"measures: {name}": name for name in GROUPS}).values():
        reason = specimen.withheld.get(group, "")
        yield Outcome(f"measures: {group}", name, Reading(0.0, 0.0), 0.0, reason)


def _chosen(only: tuple[str, ...], checks: Mapping[str, _Value]) -> dict[str, _Value]:
    """The checks whose name contains one of these words (all, without any)."""
    words = [word.lower() for word in only]
    return {
        name: check
        for name, check in checks.items()
        if not words or any(word in name.lower() for word in words)
    }


def _each(
    only: tuple[str, ...], on: str, checks: Mapping[str, Callable[..., Reading]], *of: Specimen
) -> Iterator[Outcome]:
    for name, check in _chosen(only, checks).items():
        start = time.perf_counter()
        reading = check(*of)
        yield Outcome(name, on, reading, time.perf_counter() - start)
