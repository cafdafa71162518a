"""One function per command: read the flags, call the library, print what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from interp.cli import series
from interp.cli.early import refuse_early
from interp.cli.flags import read_flags
from interp.cli.importing import preload
from interp.cli.parsing import parsed
from interp.cli.progress import console, counting, results
from interp.config import (
    Distillation,
    Experiment,
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
from interp.runs.files import REPORT, read_manifest
from interp.showing import Paragraph
from interp.subspace.settings import Subspaces
from interp.validation.settings import Validating
from interp.weights.settings import Weighing

_Added = TypeVar("_Added", Patching, Subspaces, EdgeTracing, Weighing, DifferenceReading, Ladder)
_Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


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
    _show(out)


def _show(out: Path, pictures: Sequence[str] = ()) -> None:
    """The run's table on stdout, and its report."""
    preload("interp.report")
    from interp.report import text_table, write
    from interp.runs.view import load_run

    report_file = write(out, pictures)
    run = load_run(out)
    results().print(text_table(run))
    for note in run.manifest["notes"]:
        console().print(f"note: {note}", style="yellow", markup=False)
    print(f"report: {report_file}")


def report_command(words: Sequence[str]) -> None:
    """Draw figures and report of a run again, with pictures."""

    def settings(run: _Run, svg: bool = False) -> tuple[Path, Sequence[str]]:
        """Draw the figures and the report of a run again, from its files alone, and every figure as
        a PNG picture (where Chromium or Chrome is installed).

        Args:
            run: Folder of the run.
            svg: Also draw every figure as SVG.
        """
        return run, ("png", "svg") if svg else ("png",)

    _show(*parsed(settings, words, "interp report"))


def compare_command(words: Sequence[str]) -> None:
    """Several runs in one page."""

    def settings(
        runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path = Path("compare.html")
    ) -> tuple[Sequence[Path], Path]:
        """Several finished runs in one page on shared scales: models, adapters, checkpoints.

        Args:
            runs: Folders of the runs.
            out: The page.
        """
        return runs, out

    from interp.report import write_comparison

    folders, out = parsed(settings, words, "interp compare")
    print(f"page: {write_comparison(folders, out)}")


def head_command(words: Sequence[str]) -> None:
    """One head of a run under every condition."""

    def settings(
        run: _Run,
        head: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HEAD")],
        query: int | None = None,
        all_queries: bool = False,
    ) -> tuple[Path, str, int | None, bool]:
        """One head of a run, closely: patterns, prefix mass, content JS, top attended tokens.

        Reads the patterns that the run keeps of a few queries.

        Args:
            run: Folder of the run.
            head: The head, such as L5H3 (layer and head counted from 0).
            query: Kept query whose most attended tokens are listed (none: the first).
            all_queries: Average over all queries instead, with pictures; the model is loaded again
                and must not have changed.
        """
        return run, head, query, all_queries

    folder, name, query, everything = parsed(settings, words, "interp head")
    read_manifest(folder)
    from interp.report import kept_head, write_head_view
    from interp.runs.view import load_run

    run = load_run(folder)
    view = None if everything else kept_head(run, name, query)
    if view is not None:
        table, files = write_head_view(folder, view, (), run)
    else:
        from interp.study import head_of_run

        table, files = write_head_view(folder, head_of_run(folder, name))
    results().print(table)
    print("\n".join(f"figure: {file}" for file in files))
    if view is not None:
        print(f"report: {folder / REPORT}#{view.head}")


def patch_command(words: Sequence[str]) -> None:
    """Interchange of internal states between a run's two conditions."""
    settings = _of_run(Patching, words, "interp patch")
    preload("interp.patching.run", "interp.report")

    from interp.patching.run import patch as run_patch
    from interp.report import patch_table

    _add_to_run(settings, run_patch, patch_table)


def weights_command(words: Sequence[str]) -> None:
    """What a run's conditions do to the weights."""
    settings = _of_run(Weighing, words, "interp weights")
    preload("interp.weights.run", "interp.report")

    from interp.report import weights_table
    from interp.weights.run import weigh

    _add_to_run(settings, weigh, weights_table)


def subspace_command(words: Sequence[str]) -> None:
    """In how many dimensions the states of a run's two conditions act."""
    settings = _of_run(Subspaces, words, "interp subspace")
    preload("interp.subspace.run", "interp.report")

    from interp.report import subspaces_table
    from interp.subspace.run import find_subspaces

    _add_to_run(settings, find_subspaces, subspaces_table)


def edges_command(words: Sequence[str]) -> None:
    """Which edges carry a run's two conditions."""
    settings = _of_run(EdgeTracing, words, "interp edges")
    preload("interp.edges.run", "interp.report")

    from interp.edges.run import trace_edges
    from interp.report import edge_table

    _add_to_run(settings, trace_edges, edge_table)


def read_command(words: Sequence[str]) -> None:
    """What the differences between a run's conditions say."""
    settings = _of_run(DifferenceReading, words, "interp read")
    preload("interp.reading.run", "interp.report")

    from interp.reading.run import read_run
    from interp.report import reading_table

    _add_to_run(settings, read_run, reading_table)


def ladder_command(words: Sequence[str]) -> None:
    """Maps between a run's conditions, of growing freedom."""
    settings = _of_run(Ladder, words, "interp ladder")
    preload("interp.rungs.run", "interp.report")

    from interp.report import ladder_table
    from interp.rungs.run import ladder

    _add_to_run(settings, ladder, ladder_table)


def _of_run(kind: type[_Added], words: Sequence[str], name: str) -> _Added:
    """What is asked of a finished run; refused before the heavy imports where the run is not."""
    settings = read_flags(kind, words, name, positional=("run",))
    refuse_early(settings)
    return settings


def _add_to_run(
    settings: _Added, measure: Callable[[_Added, Any], Path], table: Callable[[Any], Any]
) -> None:
    """Measure more of a finished run; its table on stdout, and its report."""
    from interp.report import write
    from interp.runs.view import load_run

    console().print("loading and comparing with plain Hugging Face ...")
    with counting("steps") as counter:
        run = measure(settings, counter.add)
    report_file = write(run)
    results().print(table(load_run(run)))
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


def doctor_command(words: Sequence[str]) -> None:
    """What a run depends on, on one screen."""

    def look() -> None:
        """Versions, device, browser, whether the hub answers, and the cache, on one screen."""

    parsed(look, words, "interp doctor")
    from interp.cli.doctor import symptoms

    for what, found in symptoms():
        results().print(Paragraph(f"{what:<14}{found}", indent=" " * 14))


def completion_command(words: Sequence[str]) -> None:
    """A script for a shell."""

    def shell(name: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> str:
        """Print a script that completes commands and flags: `eval "$(interp completion bash)"`.

        Args:
            name: The shell.
        """
        return name

    from interp.cli.completion import script

    print(script(parsed(shell, words, "interp completion")))


def _numbers(fields: Mapping[str, Any], digits: int) -> dict[str, str]:
    """Numbers as they are shown; one that is undefined is a dash."""
    return {
        name: "–" if value is None else f"{value:.{digits}f}"
        for name, value in fields.items()
        if value is None or isinstance(value, float)
    }
