"""From a folder, a hub id or a model in memory to a subject that parity has compared."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from interp.batch import Batch
from interp.conditions import RAW, Condition, Frame, Setting, Untrained, located, resolve
from interp.errors import QueryError, SubjectError
from interp.progress import Progress
from interp.queries import Query, encode
from interp.subject import parity
from interp.subject.adapter_files import folder_of
from interp.subject.adapters import mend_norms, mount, tuner_layers
from interp.subject.anatomy import Anatomy, ask
from interp.subject.bases import doubt
from interp.subject.controls import untrained
from interp.subject.fused import mend
from interp.subject.held import Held
from interp.subject.insertions import Insertions
from interp.subject.loading import (
    device_of,
    no_processes,
    pretrained,
    quiet,
    threads_for,
    without_weights,
)
from interp.subject.plain import Plain
from interp.subject.quantization import Quantization, check, readable, rounded
from interp.subject.subject import Subject, context_of
from interp.subject.tokenizers import check_rows, open_tokenizer
from interp.subject.weights import Weights, matching

_LOADING = "plain runs, and hooked ones beside them"


class _Wanted(NamedTuple):
    """What a model is opened under: its name, tokenizer and frame, the settings and the queries
    on which they are compared, and the options of `load`."""

    name: str
    words: PreTrainedTokenizerBase
    frame: Frame
    settings: dict[str, Setting]
    batches: list[Batch]
    dtype: str
    hub: dict[str, Any]
    allow_other_base: bool
    allow_idle: bool
    progress: Progress


def load(
    model: str | Held,
    conditions: Mapping[str, Condition],
    probe: Sequence[str | Query],
    *,
    frame: Frame = RAW,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    adapter_revision: str | None = None,
    trust_remote_code: bool = False,
    allow_other_base: bool = False,
    allow_idle: bool = False,
    tokenizer: str | None = None,
    gguf_file: str | None = None,
    quantization: Quantization | None = None,
    progress: Progress = lambda stage, newly, total: None,
) -> Subject:
    """Load, mount, boot and verify; raises `SubjectError` rather than return a wrong model.

    `model`: a folder, a hub id, or a model in memory, which brings its device, number format and
    tokenizer along. `probe`: one or a few queries on which parity is tested, in every condition;
    `frame`: where queries stand. A condition whose weights or steering give exactly base's outputs
    on them is an error, or where `allow_idle` one of the subject's `notes`. `tokenizer`: folder or
    hub id of the one that all conditions are read with, the model's unless given; adapters must not
    bring another. `adapter_revision`: of adapters that are hub ids. `gguf_file`: the file of the
    model's folder to read instead, de-quantised. `quantization`: int8 or int4, the bits of the
    weights in the blocks. `progress` is told of every condition that is recorded, and compared.
    """
    conditions = {name: located(c, adapter_revision) for name, c in conditions.items()}
    hub = {
        "revision": revision, "trust_remote_code": trust_remote_code, "gguf_file": gguf_file,
    }  # fmt: skip
    if isinstance(model, Held):
        held, name, target, dtype = model, model.name, model.device, model.dtype
    else:
        held, name, target = None, model, device_of(device)
        check(name, quantization, target, hub)
    _check_architectures(model, conditions, hub)
    if held:
        words = held.words(conditions.values(), **hub)
    else:
        words = open_tokenizer(name, conditions.values(), tokenizer, **hub)
    asked = [query if isinstance(query, Query) else Query(query) for query in probe]
    settings = {
        own: resolve(condition, words, frame, asked[0].turns)
        for own, condition in conditions.items()
    }
    batches = [Batch.forced([query], target) for query in encode(asked, words, frame=frame)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        if held:
            stack.enter_context(held.trainable())
        hf = held.modules() if held else pretrained(name, dtype, hub, target, quantization)
        stack.enter_context(threads_for(hf.num_parameters()))
        if tokenizer is not None:
            check_rows(words, tokenizer, len(hf.get_input_embeddings().weight), name)
        options = (hub, allow_other_base, allow_idle, progress)
        return _compared(hf, _Wanted(name, words, frame, settings, batches, dtype, *options))


def _compared(hf: Any, wanted: _Wanted) -> Subject:
    """The plain runs of every condition, then the hooked model, which must do the same."""
    name, settings = wanted.name, wanted.settings
    other_base, progress = wanted.allow_other_base, wanted.progress
    _check_context(hf, settings, wanted.batches)
    insertions = Insertions.read(settings.values(), hf, name, allow_other_base=other_base)
    total = 2 * len(settings)
    record = parity.Recorder(wanted.batches, insertions, lambda _: progress(_LOADING, 1, total))
    parameters = dict(hf.named_parameters())
    fine_tuned: dict[str | Untrained, dict[str, Tensor]] = {}
    references: dict[str, list[parity.Reference]] = {}
    for other in dict.fromkeys(setting.model for setting in settings.values()):
        plain = hf if other is None else _other_weights(hf, other, wanted.dtype, wanted.hub)
        if other is not None:
            values = dict(plain.named_parameters())
            fine_tuned[other] = matching(parameters, values, str(other))
        its = {own: s for own, s in settings.items() if s.model == other}
        references |= record.under(Plain(plain, name, other_base), its)
    notes = _idle(hf, settings, references, record, wanted.allow_idle)
    weights = _mounted(hf, parameters, fine_tuned, settings, name, other_base)
    if not other_base:
        notes += filter(None, (doubt(folder_of(adapter), name) for adapter in weights.adapters))
    bridge = _boot(hf, name, wanted.words)
    anatomy = Anatomy.of(bridge)
    subject = Subject(
        name, bridge, wanted.words, settings, weights, notes, anatomy, insertions, wanted.frame
    )
    for own, setting in settings.items():
        subject.parity[own] = parity.verify(subject, own, setting, wanted.batches, references[own])
        progress(_LOADING, 1, total)
    return replace(subject, anatomy=ask(subject, wanted.batches[-1]))


def _check_context(hf: Any, settings: Mapping[str, Setting], batches: Sequence[Batch]) -> None:
    """A `QueryError` where a model cannot read what it is probed with: with learned positions it
    would fail on it."""
    context, longest = context_of(hf), max(batch.ids.shape[1] for batch in batches)
    for name, setting in settings.items():
        before = setting.n_prefix + setting.shift
        if before + longest > context:
            raise QueryError(
                f"condition {name}: {before} tokens and a query with its answer of {longest} make "
                f"{before + longest}, the model reads {context}: shorten the prompt, the query or "
                "the answer"
            )


def _idle(
    hf: Any,
    settings: Mapping[str, Setting],
    references: Mapping[str, Sequence[parity.Reference]],
    record: parity.Recorder,
    allowed: bool,
) -> list[str]:
    """Notes on the conditions that change nothing; a `SubjectError` where that is not `allowed`."""
    notes = []
    known = {setting: references[name] for name, setting in settings.items()}
    for name, setting in settings.items():
        what = _changed(setting)
        if not what or not parity.equals_base(hf, setting, known, record):
            continue
        notes.append(f"condition {name} changes nothing: its {what} the outputs of base")
        if not allowed:
            raise SubjectError(
                f"{notes[0]} on the queries probed{parity.acting(setting)}; check that it is "
                "trained, scaled and meant for these queries, or pass --allow-idle"
            )
    return notes


def _mounted(
    hf: Any,
    parameters: dict[str, Any],
    fine_tuned: dict[str | Untrained, dict[str, Tensor]],
    settings: Mapping[str, Setting],
    model: str,
    allow_other_base: bool,
) -> Weights:
    """Every adapter of the settings on one model, each for the weights that it acts on."""
    adapters = dict.fromkeys(a for setting in settings.values() for a, _ in setting.adapters)
    each = [(adapter, 1.0) for adapter in adapters]
    mounted = mount(hf, each, model, allow_other_base=allow_other_base)
    weights = Weights(
        parameters,
        fine_tuned,
        mounted.peft,
        dict(zip(adapters, mounted.names, strict=True)),
        tuner_layers(mounted.peft),
        rewritten=dict(zip(adapters, mounted.rewritten, strict=True)),
    )
    for setting in settings.values():
        weights.check(setting)
    return weights


def _check_architectures(
    model: str | Held, conditions: Mapping[str, Condition], hub: dict[str, Any]
) -> None:
    """Fine-tuned models have the parameters of the base, which their configurations tell before
    any weights are read."""
    read = [file for condition in conditions.values() for file in condition.files()]
    if others := dict.fromkeys(model for what, model in read if what == "model"):
        theirs = hub | {"gguf_file": None}
        with quiet():
            hf = model.hf if isinstance(model, Held) else without_weights(model, hub)
            base = dict(hf.named_parameters())
            for other in others:
                matching(base, dict(without_weights(other, theirs).named_parameters()), other)


def _other_weights(hf: Any, other: str | Untrained, dtype: str, hub: dict[str, Any]) -> Any:
    """A model with the weights that take the place of those of `hf`."""
    if any(map(rounded, hf.parameters())):
        raise SubjectError("other weights cannot take the place of quantised ones; leave them out")
    if isinstance(other, Untrained):
        return untrained(hf, other.seed, trust_remote_code=hub["trust_remote_code"])
    return pretrained(other, dtype, hub | {"gguf_file": None}, hf.device)


def _changed(setting: Setting) -> str:
    """What of a setting should make its outputs differ from base's after the same prefix."""
    if setting.weights != Setting().weights:
        return "weights give"
    return "steering gives" if setting.steering else ""


def _boot(hf: Any, model: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """TransformerBridge on the live modules, its fused projections mended."""
    hf.config.architectures = [type(hf).__name__]
    if getattr(hf.config, "new_decoder_architecture", False):
        hf.config.multi_query = False  # Falcon's own code does not look at it then, the bridge does
    try:
        with no_processes(), readable(hf):
            bridge = TransformerBridge.boot_transformers(
                model, hf_model=hf, tokenizer=tokenizer, device=str(hf.device), dtype=hf.dtype
            )
        if not hasattr(bridge, "ln_final"):  # OPT-350m
            raise LookupError("no norm stands before its unembedding")
    except Exception as error:  # whatever it raises, the architecture is not supported
        raise SubjectError(
            f"{type(hf).__name__} ({model}) is not an architecture that TransformerBridge can "
            f"hook: {' '.join(str(error).split())}"
        ) from error
    mend(bridge)
    mend_norms(bridge)
    return bridge.eval()
