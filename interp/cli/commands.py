"""One function per command: read the flags, call the library, print what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from interp.cli import series
from interp.cli.early import refuse_early
from interp.cli.flags import read_flags
from interp.cli.importing import preload
from interp.cli.parsing import parsed
from interp.cli.progress import console, counting, results
from interp.cli.views import show_run
from interp.config import (
    Distillation,
    Experiment,
    OfRun,
    bundled_families,
    from_yaml,
    parse_condition,
)
from interp.edges.settings import EdgeTracing
from interp.experiments import QUESTIONS, AllTrials, Claims
from interp.matching.settings import Inversion, bundled_emulation
from interp.patching.settings import Patching
from interp.reading.settings import DifferenceReading
from interp.rungs.settings import Ladder
from interp.showing import Paragraph
from interp.subspace.settings import Subspaces
from interp.validation.settings import Validating
from interp.weights.settings import Weighing


def demo_command(words: Sequence[str]) -> None:
    """Run the study of the bundled model."""

    _run(parsed(demo_experiment, words, "interp demo"))


def demo_experiment(out: Path = Path("runs/demo"), seed: int = 0) -> Experiment:
    """Compare instructions, few-shot prompts and LoRAs on the bundled model.

    Args:
        out: Folder of the run; an earlier demo in it is replaced.
        seed: Seed of the bootstrap and of every control.
    """
    return Experiment(**bundled_families(out), seed=seed)


def diverge_command(words: Sequence[str]) -> None:
    """Run an experiment from flags, or from a YAML file that flags override."""
    fields: dict[str, Any] = {}
    if words and words[0].endswith((".yaml", ".yml")):
        fields, words = from_yaml(Path(words[0])), words[1:]
    asked = read_flags(_Diverging, words, "interp diverge [experiment.yaml]", fields)
    experiment = Experiment(**{name: getattr(asked, name) for name in Experiment.model_fields})
    if asked.plan:
        _plan(experiment)
    else:
        _run(experiment)


class _Diverging(Experiment):
    __doc__ = Experiment.__doc__

    plan: bool = False
    """Say what the run would compute, how long it would take, how much memory it would need and
    what it would write, measured on one chunk of queries; then stop."""


def _plan(experiment: Experiment) -> None:
    refuse_early(experiment, new=False)
    from interp.planning import foresee

    console().print("loading and comparing with plain Hugging Face, then one chunk of queries ...")
    results().print(*(Paragraph(line, indent=" " * 4) for line in foresee(experiment).lines()))


def _run(experiment: Experiment) -> None:
    refuse_early(experiment)
    preload("interp.study", "interp.report")
    from interp.study import run_study

    console().print("loading and comparing with plain Hugging Face ...")
    with counting("queries") as counter:
        out = run_study(experiment, counter.add)
    show_run(out)


class _More(NamedTuple):
    """A command that measures more of a finished run: its settings, what measures, and its table in
    `interp.report`."""

    settings: type[OfRun]
    measure: str
    table: str


MORE = {
    "patch": _More(Patching, "interp.patching.run:patch", "patch_table"),
    "subspace": _More(Subspaces, "interp.subspace.run:find_subspaces", "subspaces_table"),
    "edges": _More(EdgeTracing, "interp.edges.run:trace_edges", "edge_table"),
    "weights": _More(Weighing, "interp.weights.run:weigh", "weights_table"),
    "read": _More(DifferenceReading, "interp.reading.run:read_run", "reading_table"),
    "ladder": _More(Ladder, "interp.rungs.run:ladder", "ladder_table"),
}


def of_run_command(name: str, words: Sequence[str]) -> None:
    """Measure more of a finished run; its table on stdout, and its report."""
    more = MORE[name]
    settings = read_flags(more.settings, words, f"interp {name}", positional=("run",))
    refuse_early(settings)
    preload(more.measure.split(":")[0], "interp.report")
    from interp import report
    from interp.runs.view import load_run

    console().print("loading and comparing with plain Hugging Face ...")
    with counting("steps") as counter:
        run = resolve_name(more.measure)(settings, counter.add)
    report_file = report.write(run)
    results().print(getattr(report, more.table)(load_run(run)))
    print(f"report: {report_file}")


def validate_command(words: Sequence[str]) -> None:
    """Every identity and published value, checked; exits 1 if one fails."""
    settings = read_flags(Validating, words, "interp validate")
    if settings.architectures:
        from interp.validation import architectures

        for row in architectures.architecture_rows(
            architectures.named_architectures(settings.only)
        ):
            print(row.line, flush=True)
        return
    from interp.validation.outcome import outcome_table, summary_line
    from interp.validation.running import validate as run

    outcomes = run(settings, lambda name: console().print(f"checking {name} ..."))
    results().print(outcome_table(outcomes))
    print(summary_line(outcomes))
    if not all(outcome.passed for outcome in outcomes):
        raise SystemExit(1)


_SEVERAL = {
    "all": "all but the last two, one after another, and a scorecard",
    "claims": "do claims of the literature hold here? one table",
}


def experiment_command(words: Sequence[str]) -> None:
    """One experiment by its name, all of them, or their names."""
    name, *rest = words or ["--help"]
    if name in ("-h", "--help"):
        listed = {**QUESTIONS, **_SEVERAL}
        lines = [Paragraph(f"  {one:<22}{what}", indent=" " * 24) for one, what in listed.items()]
        results().print("Experiments: interp experiment NAME\n", *lines)
        results().print("\ninterp experiment NAME --help lists an experiment's flags.")
        raise SystemExit(0)
    if name == "claims":
        series.conduct_claims(read_flags(Claims, rest, "interp experiment claims"))
        return
    if name != "all":
        series.conduct_named(name, rest)
        return
    fields, about = bundled_emulation(series.ALL_OUT), series.__doc__
    series.conduct_all(read_flags(AllTrials, rest, "interp experiment all", fields, about))


def match_distil_command(words: Sequence[str]) -> None:
    """Train a LoRA that does what a prompt does."""
    settings = read_flags(Distillation, words, "interp match distil")
    refuse_early(settings, new=False)
    from interp.matching.seeds import distil_seeds

    console().print("loading the model ...")
    with counting() as counter:
        found = distil_seeds(settings, counter.add)
    for folder, certificates in found.items():
        for signed in certificates:
            verdict = "PASS" if signed["passed"] else "FAIL"
            shown = _numbers(signed, 4)
            print(
                f"{verdict} {signed['queries']}: mean JS {shown['mean_js']} nats, "
                f"95th percentile {shown['p95_js']}, top-1 agreement {shown['top1_agreement']}, "
                f"answer agreement {shown['answer_agreement']}, "
                f"sequence KL {shown['sequence_kl']} nats on {signed['n']} queries "
                f"({signed['tokens']} answer tokens)"
            )
        print(f"adapter: {folder}")


def match_invert_command(words: Sequence[str]) -> None:
    """Find the prompt that does what a LoRA does."""
    settings = read_flags(Inversion, words, "interp match invert")
    refuse_early(settings, new=False)
    from interp.matching.invert import EXPERIMENT, invert

    console().print("loading and comparing with plain Hugging Face ...")
    with counting() as counter:

        def progress(name: str, step: int, of: int, best: float) -> None:
            counter.add(name, step - counter.done.get(name, 0), of, f"KL {best:.4f} nats")

        log = invert(settings, progress, counter.add)
    for score in log["scores"]:
        shown = _numbers(score, 3)
        floor = "" if score["floor"] is None else f"; floor {score['floor']:.4f}"
        print(
            f"{score['queries']}: strength {shown['strength']} "
            f"[{shown['ci_low']}, {shown['ci_high']}]: KL {score['kl']:.4f} nats "
            f"(base {score['ceiling']:.4f}{floor}); top-1 agreement {shown['top1_agreement']}, "
            f"answer agreement {shown['answer_agreement']}, "
            f"sequence KL {shown['sequence_kl']} nats on {score['n']} queries "
            f"({score['tokens']} answer tokens)"
        )
    print(f"emulation: {parse_condition('emulation', log['condition'], {}).describe()}")
    print(f"go on with: interp diverge {settings.out / EXPERIMENT} --out RUN")


def _numbers(fields: Mapping[str, Any], digits: int) -> dict[str, str]:
    """Numbers as they are shown; one that is undefined is a dash."""
    return {
        name: "–" if value is None else f"{value:.{digits}f}"
        for name, value in fields.items()
        if value is None or isinstance(value, float)
    }
