"""Distil a prompt into a LoRA: outputs without the prompt learn to match outputs with it.

    certificates = distil(Distillation(model=..., prompt_file=..., queries=..., out="adapter"))

The loss is `KL(with prompt ‖ with LoRA)` in nats at the continuation's positions (context
distillation, Askell et al. 2112.00861, sec. 2.1; Snell et al. 2209.15189). Teacher and student are
the same weights, with the adapter off and on; plain Hugging Face + peft, no hooks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from interp.capture import chunks
from interp.conditions import Base, Lora, Prompt, resolve
from interp.config import Distillation, read_prompt
from interp.errors import RunError
from interp.measures.certificate import Tolerance, certificate, last_outputs
from interp.queries import Encoded, Query, check_alignment, encode, read_queries
from interp.results import write_atomic
from interp.subject import Batch, Subject, load
from interp.subject.loading import device_of, load_tokenizer, pretrained, quiet, threads_for

LOG = "distil.json"

Progress = Callable[[int, float, float], None]
"""Called after every epoch with (epoch, mean KL in nats, best so far)."""


def silent(epoch: int, kl: float, best: float) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Example:
    """One training sequence: `ids` after a prefix, matched from position `first` on;
    `teacher` are the prompted model's log-probabilities there, `[pos, d_vocab]`."""

    ids: tuple[int, ...]
    first: int
    teacher: Tensor


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
    hub = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    tokenizer = load_tokenizer(settings.model, **hub)
    prompt = Prompt(text=read_prompt(settings.prompt_file), separator=settings.separator)
    queries = encode(asked["matched"], tokenizer)
    check_alignment(queries, prompt.render(tokenizer), tokenizer, "prompt")
    with quiet():
        model = pretrained(settings.model, settings.dtype, hub).to(device_of(settings.device))
        before = resolve(prompt, tokenizer).prefix
        with threads_for(model.num_parameters()):
            examples = [_example(model, before, query, settings) for query in queries]
        student = _with_lora(model, settings)
    with threads_for(student.num_parameters()):
        history = _train(student, resolve(Base(), tokenizer).prefix, examples, settings, progress)
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


def _with_lora(model: Any, settings: Distillation) -> Any:
    torch.manual_seed(settings.seed)
    targets: Any = list(settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise RunError(f"--targets {' '.join(settings.targets)}: {error}") from error


def _train(
    student: Any,
    prefix: Sequence[int],
    examples: Sequence[Example],
    settings: Distillation,
    progress: Progress,
) -> list[float]:
    """Epochs until matched, stuck or out of budget; every new best is saved to `out`."""
    trained = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = np.random.default_rng(settings.seed)
    history: list[float] = []
    for epoch in range(settings.epochs):
        total = 0.0
        for batch in _batches(examples, settings.batch_size, order):
            loss = _loss(student, prefix, batch)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        history.append(total / len(examples))
        if not math.isfinite(history[-1]):
            raise RunError(f"training diverged in epoch {epoch + 1}: lower --learning-rate")
        best = min(history)
        if history[-1] == best:
            student.save_pretrained(settings.out)
        progress(epoch + 1, history[-1], best)
        stuck = epoch - history.index(best) >= settings.patience
        if best <= settings.target_kl or stuck:
            break
    return history


def _batches(
    examples: Sequence[Example], size: int, order: np.random.Generator
) -> Iterator[list[Example]]:
    places = order.permutation(len(examples))
    for start in range(0, len(places), size):
        yield [examples[i] for i in places[start : start + size]]


def _loss(student: Any, prefix: Sequence[int], batch: Sequence[Example]) -> Tensor:
    """Mean over the batch's queries of the mean `KL(teacher ‖ student)` over their positions."""
    width = max(len(example.ids) for example in batch)
    device = next(student.parameters()).device
    ids = torch.tensor(
        [[*prefix, *example.ids, *[0] * (width - len(example.ids))] for example in batch],
        device=device,
    )
    logits = student(ids, attention_mask=torch.ones_like(ids)).logits[:, len(prefix) :]
    losses = []
    for row, example in zip(logits, batch, strict=True):
        mine = row[example.first : len(example.ids)].float().log_softmax(-1)
        theirs = example.teacher.to(device)
        losses.append((theirs.exp() * (theirs - mine)).sum(-1).mean())
    return torch.stack(losses).mean()


def _certificates(
    settings: Distillation, prompt: Prompt, groups: Mapping[str, Sequence[Query]]
) -> list[dict[str, Any]]:
    """Match certificates of prompt and LoRA, from a fresh, parity-checked subject."""
    conditions = {"prompt": prompt, "lora": Lora(str(settings.out))}
    subject = load(
        settings.model,
        conditions,
        [groups["matched"][0].text],
        device=settings.device,
        dtype=settings.dtype,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    tolerance = Tolerance(settings.tolerance_js, settings.tolerance_top1)
    signed = []
    for name, queries in groups.items():
        js, same = _compare(subject, encode(queries, subject.tokenizer, name)).T
        texts = [query.text for query in queries]
        pair = {"condition": "prompt", "reference": "lora", "queries": name}
        signed.append(pair | certificate(js, same, texts, tolerance))
    return signed


def _compare(subject: Subject, queries: Sequence[Encoded]) -> np.ndarray:
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    rows = []
    for chunk in chunks(queries, 16):
        batch = Batch.of(chunk, subject.device)
        p, q = (subject.run(s, batch, caches[n]) for n, s in subject.settings.items())
        rows.append(last_outputs(p, q, batch.lengths))
    return np.concatenate(rows)
