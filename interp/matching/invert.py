"""Invert a LoRA into a prompt: virtual tokens, text or demonstrations that say what it says.

    log = invert(Inversion(model=..., adapter=..., queries=..., out="found", kind="text", tokens=4))

Searched on the matched queries; scored on them and on the held-out ones by a fresh, parity-checked
subject. `OUT/experiment.yaml` names the target and the emulation for every other command.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
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
    simple_parts,
)
from interp.config import Framing
from interp.design import BASE
from interp.errors import ConfigError, RunError
from interp.generating import Sampling, generate
from interp.matching import coordinate, few_shot
from interp.matching.evaluation import TARGET, Answered, Evaluation
from interp.matching.examples import examples, fit_answers
from interp.matching.prefixes import Scorer
from interp.matching.readable import Slot, prefix_of, readable_words, scorer, shared, slot_of
from interp.matching.settings import Inversion
from interp.matching.virtual import Tuning, save_virtual_tokens, tune
from interp.names import Site
from interp.progress import Progress, SearchProgress, no_progress
from interp.queries import Groups, check_alignment
from interp.runs.files import write_atomic
from interp.subject import Subject
from interp.subject.loading import threads_for

_LOG, EXPERIMENT, _TEXT, _UNFINISHED = "invert.json", "experiment.yaml", "prompt.txt", ".unfinished"
_EMULATION, _ANSWERS = "emulation", "answers of the target"


def invert(
    settings: Inversion, progress: SearchProgress = no_progress, tell: Progress = no_progress
) -> dict[str, Any]:
    """Search, write the result to `out`, and return the log that lies there as `invert.json`."""
    if (settings.out / _LOG).exists() and not settings.overwrite:
        raise RunError(f"{settings.out} holds a result; choose another --out or pass --overwrite")
    settings.check()
    answered = _answers(settings, tell)
    evaluation = Evaluation.open(settings, frame=settings.framed, answered=answered, progress=tell)
    with threads_for(evaluation.subject.n_parameters):
        search = {"text": _text, "few_shot": _few_shot}.get(settings.kind, _virtual)
        found, history = search(settings, evaluation, progress)
        log = _scored(settings, found, evaluation.queries, tell) | {"loss_by_step": history}
    text = yaml.safe_dump(_experiment(settings, log), sort_keys=False, allow_unicode=True)
    write_atomic(settings.out / EXPERIMENT, text.encode())
    write_atomic(settings.out / _LOG, json.dumps(log, indent=1, ensure_ascii=False).encode())
    shutil.rmtree(settings.out / _UNFINISHED, ignore_errors=True)
    return log


def _answers(settings: Inversion, tell: Progress) -> Answered | None:
    """The target's own answers, where it is to write some."""
    if not settings.answer_tokens:
        return None
    sampling = Sampling(settings.temperature, settings.seed)

    def answered(subject: Subject, groups: Groups) -> Groups:
        target, total, found = subject.settings[TARGET], sum(map(len, groups.values())), {}
        for name, queries in groups.items():
            answers = generate(
                subject,
                target,
                queries,
                settings.answer_tokens,
                sampling,
                lambda newly: tell(_ANSWERS, newly, total),
            )
            pairs = zip(queries, answers, strict=True)
            found[name] = [replace(query, answer_ids=answer) for query, answer in pairs]
        return found

    return answered


# --- three ways to search ------------------------------------------------------------------------

_Searched = tuple[Condition, list[float]]


def _virtual(settings: Inversion, evaluation: Evaluation, progress: SearchProgress) -> _Searched:
    subject = evaluation.subject
    sites = [Site("resid_post", layer) for layer in settings.layers]
    sites += [Site("pattern", layer) for layer in settings.patterns]
    if outside := [site for site in sites if not 0 <= site.layer < subject.n_layers]:
        raise ConfigError(f"no {outside[0]}: layers are 0 to {subject.n_layers - 1}")
    wanted = evaluation.targets["matched"]
    if sites:
        own, queries = subject.settings[TARGET], evaluation.queries["matched"]
        wanted = examples(subject, own, queries, settings.batch_size, sites)
    kind: Any = settings.kind
    steps = settings.steps or Tuning._field_defaults["steps"]
    tuning = Tuning(kind, settings.tokens, steps, settings.rate, settings.batch_size)
    tuning = tuning._replace(inside=settings.inside if sites else 0.0)
    runs = []
    for number in range(settings.restarts):
        one = tuning._replace(seed=settings.seed + number)
        kept = _Unfinished.of(settings, f"virtual-{number}")

        def tell(step: int, _: float, best: float, number: int = number) -> None:
            progress("virtual tokens", number * steps + step, settings.restarts * steps, best)

        runs.append(tune(subject, subject.settings[BASE], wanted, one, tell, kept))
    tuned = min(runs, key=lambda run: run.loss)
    save_virtual_tokens(tuned, settings.out, subject)
    condition = Prefix if settings.kind == "prefix" else SoftPrompt
    return condition(str(settings.out)), tuned.history


def _text(settings: Inversion, evaluation: Evaluation, progress: SearchProgress) -> _Searched:
    tokenizer, slot = evaluation.subject.tokenizer, slot_of(evaluation, settings.separator)
    score = _scorer(settings, evaluation, slot)
    allowed = readable_words(evaluation, slot)
    steps = settings.steps or coordinate.SearchBudget._field_defaults["steps"]
    runs = []
    for number in range(settings.restarts):
        budget = coordinate.SearchBudget(
            settings.tokens, steps, settings.candidates, settings.top, settings.seed + number
        )
        kept = _Unfinished.of(settings, f"text-{number}")
        start = coordinate.SearchResult.parse(before) if (before := kept.load()) else None

        def tell(found: coordinate.SearchResult, number: int = number, kept: Any = kept) -> None:
            kept.keep(found.packed())
            done = number * steps + len(found.history)
            progress("text", done, settings.restarts * steps, found.loss)

        runs.append(coordinate.search_prompt(score, allowed, budget, start, tell))
    best = min(runs, key=lambda run: run.loss)
    text = str(tokenizer.decode(list(best.prompt)))
    write_atomic(settings.out / _TEXT, f"{text}\n".encode())
    return slot.prompt(text), best.history


def _few_shot(settings: Inversion, evaluation: Evaluation, progress: SearchProgress) -> _Searched:
    subject, pool = evaluation.subject, settings.demonstrations()

    def prompt(shots: Sequence[int]) -> Prompt:
        return Prompt(pairs=tuple(pool[i] for i in shots), template=settings.template)

    alone = [prefix_of(evaluation, prompt([number])) for number in range(len(pool))]
    for number, own in enumerate(alone):  # any of them may stand last
        for queries in evaluation.queries.values():
            one, tokenizer = prompt([number]), subject.tokenizer
            check_alignment(queries, one, tokenizer, "few_shot", subject.frame, own)
    slot = Slot(shared([subject.settings[BASE].prefix, *alone]))
    chosen = few_shot.select(
        _scorer(settings, evaluation, slot),
        lambda shots: prefix_of(evaluation, prompt(shots))[len(slot.before) :],
        len(pool),
        settings.tokens,
        lambda step, _, best: progress("demonstrations", step, settings.tokens, best),
    )
    found = prompt(chosen.shots)
    write_atomic(settings.out / _TEXT, found.as_text().encode())
    return found, chosen.history


def _scorer(settings: Inversion, evaluation: Evaluation, slot: Slot) -> Scorer:
    return scorer(evaluation, evaluation.targets["matched"], slot, settings.fluency)


_DIGEST = 32
"""Bytes of the sha256 before a search's state."""


@dataclass(frozen=True)
class _Unfinished:
    """One search's state in `OUT/.unfinished`, under the sha256 of its settings."""

    path: Path
    resume: bool

    @classmethod
    def of(cls, settings: Inversion, name: str) -> _Unfinished:
        """The place of a search under these settings."""
        depends = settings.model_dump_json(exclude={"resume", "overwrite", "heldout", "bias"})
        digest = hashlib.sha256(depends.encode()).hexdigest()[:16]
        return cls(settings.out / _UNFINISHED / f"{name}-{digest}", settings.resume)

    def load(self) -> bytes | None:
        """What an earlier attempt left, if it is to go on; None where it is damaged."""
        if not (self.resume and self.path.is_file()):
            return None
        digest, content = (kept := self.path.read_bytes())[:_DIGEST], kept[_DIGEST:]
        return content if hashlib.sha256(content).digest() == digest else None

    def keep(self, content: bytes) -> None:
        """Replace it."""
        write_atomic(self.path, hashlib.sha256(content).digest() + content)


# --- what was found ------------------------------------------------------------------------------


def _scored(
    settings: Inversion, found: Condition, queries: Groups, tell: Progress
) -> dict[str, Any]:
    """Strength, floor and certificate on every group of queries, from a fresh subject."""
    evaluation = Evaluation.open(
        settings,
        {_EMULATION: found},
        frame=settings.framed,
        answered=lambda *_: queries,
        progress=tell,
    )
    subject = evaluation.subject
    if settings.bias:
        own = subject.settings[_EMULATION]
        bias = fit_answers(subject, evaluation.targets["matched"], own, settings.batch_size)
        subject.settings[_EMULATION] = replace(own, bias=(*own.bias, *bias))
        tokens = subject.tokenizer.convert_ids_to_tokens([token for token, _, _ in bias])
        values = [value for _, value, _ in bias]
        found = found + LogitBias(dict(zip(tokens, values, strict=True)))
    return {
        "settings": settings.model_dump(mode="json"),
        "condition": _spec(found),
        "scores": [_score(evaluation, group) for group in evaluation.queries],
    }


def _score(evaluation: Evaluation, group: str) -> dict[str, Any]:
    found = evaluation.strength(evaluation.kl(_EMULATION, group), group)
    return {
        "queries": group,
        **{name: None if value != value else value for name, value in found._asdict().items()},
        "floor": evaluation.floor(group),
        **evaluation.certificate(_EMULATION, group),
    }


def _experiment(settings: Inversion, log: dict[str, Any]) -> dict[str, Any]:
    """What `interp diverge` reads: the target and its emulation, on the same queries."""
    asked = settings.model_dump(
        mode="json",
        include={"model", "queries", "heldout", *Framing.model_fields} - {"trust_remote_code"},
        exclude_defaults=True,
    )
    if settings.answer_tokens:
        asked |= {"answers_from": TARGET}
    if settings.temperature:
        asked |= {"seed": settings.seed}
    conditions = {TARGET: _spec(settings.target), _EMULATION: log["condition"]}
    return {**asked, "conditions": conditions}


def _spec(condition: Condition) -> Any:
    """A condition as an experiment file has it."""
    found = []
    for part in simple_parts(condition):
        written: dict[str, Any] = asdict(part)  # type: ignore[call-overload]
        fields = {k: _plain(v) for k, v in written.items() if v not in (None, ())}
        found.append({part.tag: fields})
    return found[0] if len(found) == 1 else found


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
