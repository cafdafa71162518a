"""Distil a prompt into a LoRA: outputs without the prompt learn to match outputs with it.

    certificates = distil(Distillation(model=..., prompt_file=..., queries=..., out="adapter"))

The loss is `KL(with prompt ‖ with LoRA)` in nats at the continuation's positions (context
distillation, Askell et al. 2112.00861, sec. 2.1; Snell et al. 2209.15189). Teacher and student are
the same weights, with the adapter off and on; plain Hugging Face + peft, no hooks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from interp.capture import chunks
from interp.conditions import Base, Lora, Prompt, resolve
from interp.config import Distillation, read_prompt
from interp.errors import RunError
from interp.matching.lora import Example, Progress, Recipe, silent, train, with_lora
from interp.measures.certificate import Tolerance, answer_outputs, certificate
from interp.queries import Encoded, Query, check_alignment, encode, read_queries
from interp.results import write_atomic
from interp.subject import Batch, Subject, load
from interp.subject.loading import device_of, pretrained, quiet, threads_for
from interp.subject.tokenizers import open_tokenizer

LOG = "distil.json"


def distil(settings: Distillation, progress: Progress = silent) -> list[dict[str, Any]]:
    """Train, save the best adapter to `out` with `distil.json`; returns the certificates."""
    if (settings.out / "adapter_config.json").exists() and not settings.overwrite:
        raise RunError(f"{settings.out} holds an adapter; choose another --out or --overwrite")
    asked = {"matched": read_queries(settings.queries, settings.limit)}
    if settings.heldout is not None:
        asked["heldout"] = read_queries(settings.heldout, settings.limit)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {settings.out}: {error.strerror}") from error
    tokenizer = open_tokenizer(settings.model, (), settings.tokenizer, **settings.hub)
    prompt = Prompt(text=read_prompt(settings.prompt_file), separator=settings.separator)
    queries = encode(asked["matched"], tokenizer)
    before = resolve(prompt, tokenizer, query=queries[0].turns).prefix
    check_alignment(queries, prompt, tokenizer, "prompt", prefix=before)
    with quiet():
        model = pretrained(settings.model, settings.dtype, settings.hub).to(
            device_of(settings.device)
        )
        with threads_for(model.num_parameters()):
            examples = [_example(model, before, query, settings) for query in queries]
        recipe = Recipe(**{name: getattr(settings, name) for name in Recipe._fields})
        student = with_lora(model, recipe)
    with threads_for(student.num_parameters()):
        start = resolve(Base(), tokenizer).prefix
        history = train(student, start, examples, recipe, settings.out, progress)
    signed = _certificates(settings, prompt, asked)
    log = {
        "settings": settings.model_dump(mode="json"),
        "kl_by_epoch": history,
        "certificates": signed,
    }
    write_atomic(settings.out / LOG, json.dumps(log, indent=1, ensure_ascii=False).encode())
    return signed


def _example(model: Any, prefix: Sequence[int], query: Encoded, settings: Distillation) -> Example:
    """A query, its answer or greedy continuation (but the last token, which predicts nothing that
    is matched), and what the prompted model says at the matched positions."""
    ids = (*query.ids, *(query.answer_ids or _continue(model, prefix, query.ids, settings)))
    ids = ids[: max(len(query.ids), len(ids) - 1)]
    first = 0 if settings.positions == "all" else len(query.ids) - 1
    with torch.no_grad():
        logits = model(torch.tensor([[*prefix, *ids]], device=model.device)).logits[0]
    return Example(ids, first, logits[len(prefix) + first :].float().log_softmax(-1).cpu())


def _continue(
    model: Any, prefix: Sequence[int], ids: Sequence[int], settings: Distillation
) -> tuple[int, ...]:
    if not settings.continuation:
        return ()
    start = torch.tensor([[*prefix, *ids]], device=model.device)
    longer = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=settings.continuation,
        do_sample=False,
    )
    return tuple(longer[0, start.shape[1] :].tolist())


def _certificates(
    settings: Distillation, prompt: Prompt, groups: Mapping[str, Sequence[Query]]
) -> list[dict[str, Any]]:
    """Match certificates of prompt and LoRA, from a fresh, parity-checked subject."""
    conditions = {"prompt": prompt, "lora": Lora(str(settings.out))}
    subject = load(
        settings.model,
        conditions,
        [groups["matched"][0].text],
        **settings.loading,
    )
    tolerance = Tolerance(settings.tolerance_js, settings.tolerance_top1)
    signed = []
    for name, queries in groups.items():
        encoded = encode(queries, subject.tokenizer, name)
        answers = [len(query.segments["answer"]) for query in encoded]
        outputs = _compare(subject, encoded, max(answers))
        texts = [query.text for query in queries]
        pair = {"condition": "prompt", "reference": "lora", "queries": name}
        signed.append(pair | certificate(outputs, texts, tolerance, answers))
    return signed


def _compare(subject: Subject, queries: Sequence[Encoded], longest: int) -> np.ndarray:
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    rows = []
    for chunk in chunks(queries, 16):
        batch = Batch.forced(chunk, subject.device)
        p, q = (subject.run(s, batch, caches[n]) for n, s in subject.settings.items())
        rows.append(answer_outputs(p, q, batch.answer, longest))
    return np.concatenate(rows)
