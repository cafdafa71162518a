"""One function per command: read the flags, call the library, print what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from interp import organism
from interp.cli.progress import console, counting
from interp.config import FILE_ONLY, Distillation, Experiment, explain, from_yaml
from interp.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)


def demo(words: Sequence[str]) -> None:
    """Run the study of the bundled model."""

    _run(tyro.cli(demo_experiment, args=words, prog="interp demo"))


def demo_experiment(out: Path = Path("runs/demo"), seed: int = 0) -> Experiment:
    """Compare a prompt and a LoRA on the bundled model.

    Args:
        out: Folder of the run; an earlier demo in it is replaced.
        seed: Seed of the bootstrap and of every control.
    """
    return Experiment(
        model=str(organism.MODEL),
        prompt_file=(organism.PROMPTS / "instruction_0.txt",),
        adapter=(str(organism.ADAPTERS / "lora_0"),),
        queries=organism.QUERIES / "matched.jsonl",
        heldout=organism.QUERIES / "heldout.jsonl",
        out=out,
        seed=seed,
        overwrite=True,
    )


def diverge(words: Sequence[str]) -> None:
    """Run an experiment from flags, or from a YAML file that flags override."""
    fields: dict[str, Any] = {}
    if words and words[0].endswith((".yaml", ".yml")):
        fields, words = from_yaml(Path(words[0])), words[1:]
    _run(_read(Experiment, words, "interp diverge [experiment.yaml]", fields))


def _run(experiment: Experiment) -> None:
    from interp.study import diverge as run

    console().print("loading and comparing with plain Hugging Face ...")
    with counting("queries") as counter:
        out = run(experiment, counter.add)
    _show(out)


def _show(out: Path) -> None:
    """The run's table on stdout, and its report."""
    import rich

    from interp.report import text_table, write
    from interp.results import load_run

    report_file = write(out)
    run = load_run(out)
    rich.print(text_table(run))
    for note in run.manifest["notes"]:
        console().print(f"note: {note}", style="yellow", markup=False)
    print(f"report: {report_file}")


def report(words: Sequence[str]) -> None:
    """Draw figures and report of a run again."""

    def settings(run: Annotated[Path, tyro.conf.Positional]) -> Path:
        """Draw the figures and the report of a run again, from its files alone.

        Args:
            run: Folder of the run.
        """
        return run

    _show(tyro.cli(settings, args=words, prog="interp report"))


def probe(words: Sequence[str]) -> None:
    """One head of a run under every condition."""

    def settings(
        run: Annotated[Path, tyro.conf.Positional], head: Annotated[str, tyro.conf.Positional]
    ) -> tuple[Path, str]:
        """One head of a run, closely: patterns, prefix mass, content JS, top attended tokens.

        Args:
            run: Folder of the run; its model is loaded again and must not have changed.
            head: The head, such as L5H3 (layer and head counted from 0).
        """
        return run, head

    import rich

    from interp.report import write_probe
    from interp.study import probe_run

    folder, name = tyro.cli(settings, args=words, prog="interp probe")
    view = probe_run(folder, name)
    table, files = write_probe(folder, view)
    rich.print(table)
    print("\n".join(f"figure: {file}" for file in files))


def match_distil(words: Sequence[str]) -> None:
    """Train a LoRA that does what a prompt does."""
    settings = _read(Distillation, words, "interp match distil")
    from interp.matching.distil import distil

    with counting("epochs") as counter:

        def progress(epoch: int, kl: float, best: float) -> None:
            counter.add("distil", 1, settings.epochs, f"KL {kl:.4f} nats, best {best:.4f}")

        certificates = distil(settings, progress)
    for signed in certificates:
        verdict = "matched" if signed["passed"] else "NOT MATCHED"
        print(
            f"{signed['queries']}: {verdict}: mean JS {signed['mean_js']:.4f} nats, "
            f"95th percentile {signed['p95_js']:.4f}, "
            f"top-1 agreement {signed['top1_agreement']:.3f} on {signed['n']} queries"
        )
    print(f"adapter: {settings.out}")


def _read(
    model: type[Settings], words: Sequence[str], prog: str, fields: dict[str, Any] | None = None
) -> Settings:
    """Flags as a settings model; `fields` stand where no flag is given.

    The flags are read without the model's bounds, so that a value out of bounds is one line.
    """
    given = fields or {}
    flags = []
    for name, field in model.model_fields.items():
        if name in FILE_ONLY:
            continue
        kind = Annotated[field.annotation, tyro.conf.arg(help=field.description)]
        required = field.is_required() and name not in given
        default = dataclasses.MISSING if required else given.get(name, field.default)
        flags.append((name, kind, dataclasses.field(default=default)))
    reader = dataclasses.make_dataclass(model.__name__, flags, kw_only=True)
    read: Any = tyro.cli(reader, args=words, prog=prog, description=model.__doc__)
    try:
        return model(**given | vars(read))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
