"""Distil a prompt into a LoRA: outputs without the prompt learn to match outputs with it.

    certificates = distil(Distillation(model=..., prompt_file=..., queries=..., out="adapter"))

The loss is `KL(with prompt ‖ with LoRA)` in nats where the answer's tokens are predicted (context
distillation, Askell et al. 2112.00861, sec. 2.1; Snell et al. 2209.15189). The answer is the
query's, or what the prompted model writes itself, or on policy what the LoRA does. Teacher and
student are the same weights, with the adapter off and on; plain Hugging Face + peft.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from interp.capture import chunks
from interp.conditions import Base, Lora, Prompt, resolve
from interp.config import Distillation
from interp.errors import QueryError, RunError
from interp.generating import Sampling
from interp.matching.lora import EpochExamples, Example, Recipe, train, with_lora
from interp.matching.plain import ROWS_PER_PASS, generate_answers, open_plain_model, read_sequences
from interp.measures.certificate import Tolerance, answer_outputs, certificate
from interp.progress import TrainingProgress, no_progress
from interp.queries import Encoded, Groups, Query, check_alignment, encode, read_queries
from interp.runs.files import write_atomic
from interp.subject import Batch, Subject, load
from interp.subject.aligning import check_lengths
from interp.subject.loading import threads_for
from interp.subject.tokenizers import open_tokenizer

LOG = "distil.json"
_ANSWERS, _TEACHING, _SIGNING = "teacher's answers", "teacher's outputs", "certificates"


def distil(
    settings: Distillation, progress: TrainingProgress = no_progress
) -> list[dict[str, Any]]:
    """Train, save the best adapter to `out` with `distil.json`; returns the certificates."""
    if (settings.out / "adapter_config.json").exists() and not settings.overwrite:
        raise RunError(f"{settings.out} holds an adapter; choose another --out or --overwrite")
    settings.check()
    prompt, frame, asked = settings.prompt, settings.framed, _asked(settings)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {settings.out}: {error.strerror}") from error
    tokenizer = open_tokenizer(settings.model, (), settings.tokenizer, **settings.hub)
    groups: Groups = {n: encode(some, tokenizer, n, frame) for n, some in asked.items()}
    turns = asked["matched"][0].turns
    before, start = (resolve(c, tokenizer, frame, turns).prefix for c in (prompt, Base()))
    for queries in groups.values():
        check_alignment(queries, prompt, tokenizer, "prompt", frame, before)
    model = open_plain_model(settings.model, settings)
    with threads_for(model.num_parameters()):
        groups = _answered(model, before, groups, settings, progress)
        recipe = Recipe(**{name: getattr(settings, name) for name in Recipe._fields})
        student = with_lora(model, recipe)
        source = _source(student, (before, start), groups["matched"], settings, progress)
        history = train(student, start, source, recipe, settings.out, progress)
    signed = _certificates(settings, prompt, asked["matched"][0], groups, progress)
    log = {
        "settings": settings.model_dump(mode="json"),
        "kl_by_epoch": [epoch.kl for epoch in history],
        "states_by_epoch": [epoch.apart for epoch in history] if settings.align else None,
        "certificates": signed,
        "answers": {
            name: [tokenizer.decode(list(query.answer_ids)) for query in queries]
            for name, queries in groups.items()
        },
    }
    write_atomic(settings.out / LOG, json.dumps(log, indent=1, ensure_ascii=False).encode())
    return signed


def _asked(settings: Distillation) -> dict[str, list[Query]]:
    """The training queries, and the held-out ones where there are some."""
    asked = {"matched": read_queries(settings.queries, settings.limit)}
    if settings.heldout is not None:
        asked["heldout"] = read_queries(settings.heldout, settings.limit)
    return asked


def _answered(
    model: Any,
    before: Sequence[int],
    groups: Groups,
    settings: Distillation,
    progress: TrainingProgress,
) -> dict[str, list[Encoded]]:
    """The queries with the teacher's own answers, or with theirs."""
    found = {}
    tell = partial(_tell, progress, _ANSWERS, sum(map(len, groups.values())))
    for name, queries in groups.items():
        _check_lengths(model, before, queries, settings.answer_tokens)
        found[name] = list(queries)
        if settings.answer_tokens:
            found[name] = _written(model, before, queries, settings, tell)
    return found


def _tell(progress: TrainingProgress, label: str, total: int, newly: int) -> None:
    progress(label, newly, total, "")


def _check_lengths(
    model: Any, before: Sequence[int], queries: Sequence[Encoded], answer_tokens: int
) -> None:
    """Refuse what the model cannot read, before it writes anything."""
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
    for query in queries:
        answer = answer_tokens or len(query.answer_ids)
        if (length := len(before) + len(query.ids) + answer) > context:
            raise QueryError(
                f"the prompt, the query {query.text!r} and its answer make {length} tokens, the "
                f"model reads {context}: shorten the prompt, the query or --answer-tokens"
            )


def _source(
    student: Any,
    prefixes: tuple[Sequence[int], Sequence[int]],
    queries: Sequence[Encoded],
    settings: Distillation,
    progress: TrainingProgress,
) -> EpochExamples:
    """The examples of every epoch: the queries with their answers, or with those that the student
    writes; `prefixes` stand before the teacher's queries and before the student's."""
    before, start = prefixes
    refresh = settings.refresh if settings.on_policy else settings.epochs

    @lru_cache(maxsize=1)
    def examples(rounds: int) -> Sequence[Example]:
        asked = queries
        if settings.on_policy:
            named = [replace(query, key=f"{query.key}:{rounds}") for query in queries]
            asked = _written(student, start, named, settings, lambda _: None)
        with student.disable_adapter():
            return _examples(
                student, before, asked, settings, progress if not rounds else no_progress
            )

    return lambda epoch: examples(epoch // refresh)


def _written(
    model: Any,
    prefix: Sequence[int],
    queries: Sequence[Encoded],
    settings: Distillation,
    tell: Callable[[int], None],
) -> list[Encoded]:
    """The queries with answers that a model writes."""
    sampling = Sampling(settings.temperature, settings.seed)
    answers = generate_answers(model, prefix, queries, settings.answer_tokens, sampling, tell)
    pairs = zip(queries, answers, strict=True)
    return [replace(query, answer_ids=answer) for query, answer in pairs]


def _examples(
    model: Any,
    before: Sequence[int],
    queries: Sequence[Encoded],
    settings: Distillation,
    progress: TrainingProgress = no_progress,
) -> list[Example]:
    """Every query with its answer, and the prompted model's log-probabilities (and states, where
    they are matched too) at the matched positions."""
    found: list[Example] = []
    for some in chunks(queries, ROWS_PER_PASS):
        firsts = [0 if settings.positions == "all" else len(query.ids) - 1 for query in some]
        asked = [(query.forced, first) for query, first in zip(some, firsts, strict=True)]
        with torch.no_grad():
            got = read_sequences(model, before, asked, states=settings.align is not None)
        counts = [len(ids) - first for ids, first in asked]
        said = got.logits.float().log_softmax(-1).cpu().split(counts)
        states: Sequence[torch.Tensor | None] = [None] * len(asked)
        if got.states is not None:
            states = got.states.float().cpu().split(counts, dim=1)
        found += [Example(*a, *own) for a, *own in zip(asked, said, states, strict=True)]
        progress(_TEACHING, len(some), len(queries), "")
    return found


def _certificates(
    settings: Distillation, prompt: Prompt, probe: Query, groups: Groups, progress: TrainingProgress
) -> list[dict[str, Any]]:
    """Match certificates of prompt and LoRA, from a fresh, parity-checked subject."""
    total = sum(map(len, groups.values()))
    subject = load(
        settings.model,
        {"prompt": prompt, "lora": Lora(str(settings.out))},
        [probe],
        frame=settings.framed,
        progress=lambda stage, newly, of: progress(stage, newly, of, ""),
        **settings.loading,
    )
    tolerance = Tolerance(settings.tolerance_js, settings.tolerance_top1)
    signed = []
    for name, queries in groups.items():
        check_lengths(subject, queries)
        answers = [len(query.segments["answer"]) for query in queries]
        found = _compare(subject, queries, max(answers), partial(_tell, progress, _SIGNING, total))
        texts = [query.text for query in queries]
        pair = {"condition": "prompt", "reference": "lora", "queries": name}
        signed.append(pair | certificate(found, texts, tolerance, answers))
    return signed


def _compare(
    subject: Subject, queries: Sequence[Encoded], longest: int, done: Callable[[int], None]
) -> np.ndarray:
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    rows = []
    for chunk in chunks(queries, 16):
        batch = Batch.forced(chunk, subject.device)
        p, q = (subject.run(s, batch, caches[n]) for n, s in subject.settings.items())
        rows.append(answer_outputs(p, q, batch.answer, longest))
        done(len(chunk))
    return np.concatenate(rows)
