"""Invert a LoRA into a prompt: virtual tokens, text or demonstrations that say what it says.

    log = invert(Inversion(model=..., adapter=..., queries=..., out="found", kind="text", tokens=4))

Searched on the matched queries; scored on them and on the held-out ones by a fresh, parity-checked
subject. `OUT/experiment.yaml` names the target and the emulation for every other command.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from interp.conditions import (
    Condition,
    LogitBias,
    Prefix,
    Prompt,
    SoftPrompt,
    parts,
    prefix_body,
)
from interp.config import KINDS
from interp.errors import ConfigError, QueryError, RunError
from interp.matching import coordinate, few_shot
from interp.matching.bench import BASE, TARGET, Bench
from interp.matching.examples import examples
from interp.matching.prefixes import Ids, Scorer
from interp.matching.settings import Inversion
from interp.matching.tilt import fit_bias
from interp.matching.virtual import Tuning, save, tune
from interp.names import Site
from interp.queries import check_alignment
from interp.results import write_atomic
from interp.subject import Subject
from interp.subject.loading import threads_for

LOG, EXPERIMENT, TEXT, UNFINISHED = "invert.json", "experiment.yaml", "prompt.txt", ".unfinished"
EMULATION = "emulation"
ROWS = 4096
"""Prefix-query pairs in one forward pass of a search."""

Progress = Callable[[str, int, int, float], None]
"""Called with (what is searched, steps done, of how many, best loss so far)."""


def silent(name: str, done: int, of: int, best: float) -> None:
    """No progress shown."""


def invert(settings: Inversion, progress: Progress = silent) -> dict[str, Any]:
    """Search, write the result to `out`, and return the log that lies there as `invert.json`."""
    if (settings.out / LOG).exists() and not settings.overwrite:
        raise RunError(f"{settings.out} holds a result; choose another --out or pass --overwrite")
    if settings.kind == "few_shot":
        settings.demonstrations()
    bench = Bench.open(settings)
    with threads_for(bench.subject.n_parameters):
        search = {"text": _text, "few_shot": _few_shot}.get(settings.kind, _virtual)
        found, history = search(settings, bench, progress)
        log = _scored(settings, found) | {"loss_by_step": history}
    experiment = {
        "model": settings.model,
        "queries": str(settings.queries),
        **({"heldout": str(settings.heldout)} if settings.heldout else {}),
        "conditions": {"target": _spec(settings.target), "emulation": log["condition"]},
    }
    text = yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True)
    write_atomic(settings.out / EXPERIMENT, text.encode())
    write_atomic(settings.out / LOG, json.dumps(log, indent=1, ensure_ascii=False).encode())
    for left in (settings.out / UNFINISHED).glob("*"):
        left.unlink()
    return log


# --- three ways to search ------------------------------------------------------------------------

Searched = tuple[Condition, list[float]]


def _virtual(settings: Inversion, bench: Bench, progress: Progress) -> Searched:
    subject = bench.subject
    sites = [Site("resid_post", layer) for layer in settings.layers]
    sites += [Site("pattern", layer) for layer in settings.patterns]
    if outside := [site for site in sites if not 0 <= site.layer < subject.n_layers]:
        raise ConfigError(f"no {outside[0]}: layers are 0 to {subject.n_layers - 1}")
    wanted = bench.wanted["matched"]
    if sites:
        own, queries = subject.settings[TARGET], bench.queries["matched"]
        wanted = examples(subject, own, queries, settings.batch_size, sites)
    kind: Any = settings.kind
    steps = settings.steps or Tuning._field_defaults["steps"]
    tuning = Tuning(kind, settings.tokens, steps, settings.rate, settings.batch_size)
    tuning = tuning._replace(inside=settings.inside if sites else 0.0)
    runs = []
    for number in range(settings.restarts):
        one = tuning._replace(seed=settings.seed + number)
        kept = Unfinished.of(settings, f"virtual-{number}")

        def tell(step: int, _: float, best: float, number: int = number) -> None:
            progress("virtual tokens", number * steps + step, settings.restarts * steps, best)

        runs.append(tune(subject, subject.settings[BASE], wanted, one, tell, kept))
    tuned = min(runs, key=lambda run: run.loss)
    save(tuned, settings.out, subject)
    condition = Prefix if settings.kind == "prefix" else SoftPrompt
    return condition(str(settings.out)), tuned.history


def _text(settings: Inversion, bench: Bench, progress: Progress) -> Searched:
    subject, tokenizer, queries = bench.subject, bench.subject.tokenizer, bench.queries["matched"]
    tail = _ids(subject, settings.separator)
    scorer = _scorer(settings, bench, tail)

    def readable(ids: Ids) -> bool:
        text = f"{tokenizer.decode(list(ids))}{settings.separator}"
        if _ids(subject, text) != (*ids, *tail):
            return False
        try:
            check_alignment(queries[: 0 if tail else 1], text, tokenizer, "text")
        except QueryError:
            return False
        return True

    special = set(tokenizer.all_special_ids)
    words = coordinate.Words([i for i in range(len(tokenizer)) if i not in special], readable)
    steps = settings.steps or coordinate.Budget._field_defaults["steps"]
    runs = []
    for number in range(settings.restarts):
        budget = coordinate.Budget(
            settings.tokens, steps, settings.candidates, settings.top, settings.seed + number
        )
        kept = Unfinished.of(settings, f"text-{number}")
        start = coordinate.Found.parse(before) if (before := kept.load()) else None

        def tell(found: coordinate.Found, number: int = number, kept: Any = kept) -> None:
            kept.keep(found.packed())
            done = number * steps + len(found.history)
            progress("text", done, settings.restarts * steps, found.loss)

        runs.append(coordinate.search(scorer, words, budget, start, tell))
    best = min(runs, key=lambda run: run.loss)
    prompt = Prompt(text=str(tokenizer.decode(list(best.prompt))), separator=settings.separator)
    check_alignment(queries, prompt.render(tokenizer), tokenizer, "the text that was found")
    write_atomic(settings.out / TEXT, f"{prompt.text}\n".encode())
    return prompt, best.history


def _few_shot(settings: Inversion, bench: Bench, progress: Progress) -> Searched:
    subject, pool = bench.subject, settings.demonstrations()

    def prompt(shots: Sequence[int]) -> Prompt:
        return Prompt(pairs=tuple(pool[i] for i in shots), template=settings.template)

    chosen = few_shot.select(
        _scorer(settings, bench, ()),
        lambda shots: tuple(prefix_body(prompt(shots), subject.tokenizer)),
        len(pool),
        settings.tokens,
        lambda step, _, best: progress("demonstrations", step, settings.tokens, best),
    )
    found = prompt(chosen.shots)
    text = found.render(subject.tokenizer)
    queries = bench.queries["matched"]
    check_alignment(queries, text, subject.tokenizer, "the demonstrations that were found")
    write_atomic(settings.out / TEXT, text.encode())
    return found, chosen.history


def _scorer(settings: Inversion, bench: Bench, tail: Ids) -> Scorer:
    own, wanted = bench.subject.settings[BASE], bench.wanted["matched"]
    return Scorer(bench.subject, own, wanted, ROWS, tail, settings.fluency)


def _ids(subject: Subject, text: str) -> Ids:
    return tuple(subject.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Unfinished:
    """One search's state in `OUT/.unfinished`, under the sha256 of what it depends on."""

    path: Path
    resume: bool

    @classmethod
    def of(cls, settings: Inversion, name: str) -> Unfinished:
        """The place of a search under these settings."""
        depends = settings.model_dump_json(exclude={"resume", "overwrite", "heldout", "bias"})
        digest = hashlib.sha256(depends.encode()).hexdigest()[:16]
        return cls(settings.out / UNFINISHED / f"{name}-{digest}", settings.resume)

    def load(self) -> bytes | None:
        """What an earlier attempt left, if it is to go on."""
        return self.path.read_bytes() if self.resume and self.path.is_file() else None

    def keep(self, content: bytes) -> None:
        """Replace it."""
        write_atomic(self.path, content)


# --- what was found ------------------------------------------------------------------------------


def _scored(settings: Inversion, found: Condition) -> dict[str, Any]:
    """Strength, floor and certificate on every group of queries, from a fresh subject."""
    bench = Bench.open(settings, {EMULATION: found})
    subject = bench.subject
    if settings.bias:
        own, like = subject.settings[EMULATION], subject.settings[TARGET]
        bias = fit_bias(subject, bench.queries["matched"], own, like, settings.batch_size)
        subject.settings[EMULATION] = replace(own, bias=(*own.bias, *bias))
        tokens = subject.tokenizer.convert_ids_to_tokens([token for token, _, _ in bias])
        values = [value for _, value, _ in bias]
        found = found + LogitBias(dict(zip(tokens, values, strict=True)))
    return {
        "settings": settings.model_dump(mode="json"),
        "condition": _spec(found),
        "scores": [_score(bench, group) for group in bench.queries],
    }


def _score(bench: Bench, group: str) -> dict[str, Any]:
    found = bench.strength(bench.kl(EMULATION, group), group)
    return {
        "queries": group,
        **{name: None if value != value else value for name, value in found._asdict().items()},
        "floor": bench.floor(group),
        **bench.certificate(EMULATION, group),
    }


def _spec(condition: Condition) -> Any:
    """A condition as an experiment file has it."""
    kinds = {kind: name for name, kind in KINDS.items()}
    found = []
    for part in parts(condition):
        written: dict[str, Any] = asdict(part)  # type: ignore[call-overload]
        fields = {k: _plain(v) for k, v in written.items() if v not in (None, ())}
        found.append({kinds[type(part)]: fields})
    return found[0] if len(found) == 1 else found


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
