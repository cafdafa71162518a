"""Where does the hypothesis hold that a prompt can emulate a LoRA, where does it fail?

Runs the experiments on its five weak points, on the golden zone where it should hold, on the
library of prompts that would follow from it and on the strength of the best prompt, one after
another, and writes one report with a scorecard: how far the prompt falls short in each, over what
was allowed. An experiment by itself says whether its claim is supported: of a weak point that the
hypothesis fails there, of the other three that it holds. Flags are passed on to every experiment.

    interp experiment all                              # the bundled model
    interp experiment all --resume                     # go on after an interruption
    interp experiment all --engine ray --workers 4     # several at once
    interp experiment all --only golden_zone --seed 1
    interp experiment all --model M --adapter A --queries Q.jsonl --heldout H.jsonl \\
        --pool P.jsonl --floor A1 A2 --out runs/mine
"""

from __future__ import annotations

import contextlib
import gc
import io
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from interp.cli.flags import read_flags
from interp.cli.progress import console, counting, results
from interp.engines import Tick, opened_engine
from interp.errors import InterpError, RunError
from interp.experiments import SCORED, AllTrials, Claims, check_named, trial_named
from interp.finding import read_finding
from interp.matching.settings import Emulation, bundled_emulation
from interp.progress import no_progress
from interp.queries import read_queries

if TYPE_CHECKING:
    from interp.experiments.trial import Trial

ALL_OUT = Path("runs/weak_points")
_OWN = {"out", "resume", "overwrite"}
"""Settings that every experiment has of its own."""
_SAME = ("model", "adapter", "fine_tuned", "prompt_file")
_OUTPUT = "output.txt"


def conduct_named(name: str, words: Sequence[str]) -> None:
    """Run the experiment of this name, with the settings that its flags say."""
    trial = trial_named(name)
    prog, fields = f"interp experiment {name}", trial.bundled_fields()
    conduct(read_flags(trial, words, prog, fields, trial.question()))


def conduct(trial: Trial) -> None:
    """Run one experiment with its progress shown, and leave its finding; one that is finished and
    to be resumed prints its verdict."""
    from interp.report.experiments import finished

    if finished(trial):
        return
    with counting(trial.unit) as counter:
        measured = trial.measure(counter.add)
    trial.conclude(measured)


def conduct_all(config: AllTrials) -> None:
    """Run the experiments; print and write the scorecard of those that were not lost.

    Raises `RunError` after all of them where some failed."""
    for name in config.only:
        check_named(name, SCORED)
    target = (
        f"{config.target.describe()}, {len(read_queries(config.queries, config.limit))} queries"
    )
    _say(f"target: {target}")  # and what would fail everywhere fails here, at once
    chosen = [name for name in SCORED if name in (config.only or SCORED)]
    failed = _each([trial_named(name) for name in chosen], config)
    kept = [name for name in SCORED if name not in failed and _known(config, name, chosen)]
    if kept:
        _scorecard(config.out, kept, [f"{name} failed: {line}" for name, line in failed.items()])
    if failed:
        what = f"{len(failed)} of {len(chosen)} experiments failed ({', '.join(failed)})"
        raise RunError(f"{what}; what they said is in {config.out}/NAME/{_OUTPUT}")


def conduct_claims(config: Claims) -> None:
    """Measure claims of the literature with progress shown; print where their table is."""
    from interp.experiments.claims import measure_claims

    with counting() as counter:
        page = measure_claims(config, counter.add)
    print(f"claims: {page}")


def _each(trials: Sequence[type[Trial]], config: AllTrials) -> dict[str, str]:
    """Run them, one after another or by workers of Ray; what failed, and why."""
    from interp.subject.loading import device_of

    common, device = _common(config), device_of(config.device).type
    if config.engine == "ray" and "device" in common:
        common["device"] = device  # a worker sees one device, the first
    asked = [trial(**trial.bundled_fields(config.out / trial.name()) | common) for trial in trials]
    failed, start = {}, time.monotonic()

    def announce(done: int) -> None:
        spent = time.monotonic() - start
        left = f", about {spent / done * (len(asked) - done) / 60:.0f} min left" if done else ""
        name = asked[done].name()
        _say(f"[{done + 1}/{len(asked)}] {name} ({spent / 60:.1f} min so far{left})")

    heard: Callable[[int], None] = announce
    with opened_engine(config, heard, _unheard, device) as engine:
        for number, (line, took) in engine.run(_conducting, enumerate(asked), no_progress):
            name = asked[number].name()
            if line:
                failed[name] = line
            _say(f"  {name}: {f'FAILED: {line}' if line else 'done'}, {took:.0f} s")
    return {trial.name(): failed[trial.name()] for trial in trials if trial.name() in failed}


def _unheard(_: AllTrials) -> Callable[[int], None]:
    """How a worker announces what it does."""
    return no_progress


def _conducting(
    announce: Callable[[int], None],
) -> Callable[[tuple[int, Trial], Tick], tuple[str | None, float]]:
    """What runs one experiment: why it failed, if it did, and how many seconds it took."""

    def run(item: tuple[int, Trial], tick: Tick) -> tuple[str | None, float]:
        number, trial = item
        announce(number)
        began = time.monotonic()
        line = _failure(trial)
        _release()
        return line, time.monotonic() - began

    return run


def _common(config: AllTrials) -> dict[str, Any]:
    """What was asked for and is not the bundled model's: every experiment gets it."""
    bundled = Emulation(**bundled_emulation(config.out))
    fields = {name: getattr(config, name) for name in Emulation.model_fields.keys() - _OWN}
    changed = {name: value for name, value in fields.items() if value != getattr(bundled, name)}
    return changed | {"resume": config.resume}


def _failure(trial: Trial) -> str | None:
    """Run one, its words kept in `output.txt` and its progress passed on; the line that says why
    it failed, or None."""
    file = trial.out / _OUTPUT
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as log:
        passed_on = _PassedOn(log, console().file)
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(passed_on):
                conduct(trial)
        except InterpError as error:
            print(f"interp: {error}", file=log)
            return str(error)
        except Exception as error:
            traceback.print_exc(file=log)
            return traceback.format_exception_only(error)[-1].strip()
    return None


class _PassedOn(io.TextIOBase):
    """A stream that is kept in a log, and shown line by line, indented, on another stream."""

    def __init__(self, log: TextIO, shown: Any) -> None:
        self.log, self.shown, self.rest = log, shown, ""

    def write(self, text: str) -> int:
        if not self.log.closed:  # a logger made meanwhile keeps this stream
            self.log.write(text)
            self.log.flush()
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            print(f"  {line}", file=self.shown, flush=True)
        return len(text)


def _release() -> None:
    """Free the models of the experiment that has ended, before the next one opens its own."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _known(config: AllTrials, name: str, chosen: Sequence[str]) -> bool:
    """Whether there is a finding of this run, or an earlier one of the same model and target."""
    if name in chosen:
        return True
    with contextlib.suppress(RunError):
        settings = read_finding(config.out / name).settings
        mine = config.model_dump(mode="json", include=set(_SAME))
        return all(settings.get(key) == mine[key] for key in _SAME)
    return False


def _scorecard(out: Path, names: Sequence[str], notes: Sequence[str]) -> None:
    """The scorecard as a report, and on stdout."""
    from interp.report.scorecard import scorecard_table, write_scorecard

    report = write_scorecard(out, names, notes)
    results().print(scorecard_table([read_finding(out / name) for name in names]))
    print(f"report: {report}")


def _say(line: str) -> None:
    """A line of progress."""
    console().print(line, markup=False, soft_wrap=True)
