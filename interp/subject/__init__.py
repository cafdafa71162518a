"""One model with its tokenizer and mounted adapters, hooked and parity-checked.

    conditions = {"base": Base(), "lora": Lora("adapters/opposite")}
    subject = load("path/to/model", conditions, probe=["big ->"])
    cache = subject.prefill(subject.settings["lora"])
    logits = subject.run(subject.settings["lora"], batch, cache, {Site("resid_post", 2): read})

One copy of the base weights serves every condition. Adapters are mounted by peft first, then
TransformerBridge is booted on the same modules, its stale fused projections are made live, and
`parity` compares every condition with plain Hugging Face + peft before `load` returns.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.batch import Batch
from interp.conditions import (
    RAW,
    Condition,
    Frame,
    Setting,
    Untrained,
    located,
    resolve,
)
from interp.errors import QueryError, SubjectError
from interp.names import Site
from interp.progress import Progress
from interp.queries import Query, encode
from interp.subject import parity, routers, shortcuts
from interp.subject.adapter_files import folder_of
from interp.subject.adapters import mend_norms, mount, tuner_layers
from interp.subject.anatomy import Anatomy, ask
from interp.subject.bases import doubt
from interp.subject.controls import untrained
from interp.subject.fused import mend
from interp.subject.held import Held
from interp.subject.insertions import Insertions, VirtualTokens
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
from interp.subject.tokenizers import check_rows, open_tokenizer
from interp.subject.weights import Weights, matching

__all__ = ["Batch", "Held", "Hook", "Subject", "load"]

_LOADING = "plain runs, and hooked ones beside them"

Hook = Callable[[Tensor], Tensor | None]
"""Reads a site's value; returns None, or the value that takes its place."""


@dataclass(frozen=True)
class Subject:
    """A parity-checked model; make one with `load`."""

    name: str
    bridge: Any
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Setting]
    weights: Weights
    notes: list[str]
    anatomy: Anatomy
    insertions: Insertions = field(default_factory=Insertions)
    frame: Frame = RAW
    parity: dict[str, float] = field(default_factory=dict)
    """Condition -> its largest difference from plain Hugging Face (see `parity`)."""
    withheld: dict[str, str] = field(default_factory=dict)
    """What parity does not vouch for -> why (`interp.capabilities`)."""

    @property
    def n_layers(self) -> int:
        return len(self.bridge.blocks)

    @property
    def n_heads(self) -> int:
        return int(self.bridge.cfg.n_heads)

    @property
    def d_model(self) -> int:
        return int(self.bridge.cfg.d_model)

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.weights.parameters.values())

    @property
    def n_words(self) -> int:
        """How many token ids have both a name and an embedding (either may have more)."""
        embed = self.bridge.original_model.get_input_embeddings()
        return min(len(self.tokenizer), len(embed.weight))

    @property
    def device(self) -> torch.device:
        return next(iter(self.weights.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.weights.parameters.values())).dtype

    @property
    def context(self) -> int:
        """How many tokens the model can read."""
        config = self.bridge.original_model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 1 << 30))

    @property
    def cap(self) -> float | None:
        """The bound of the model's final soft-cap (Gemma 2); None where it has none."""
        config = self.bridge.original_model.config.get_text_config()
        return getattr(config, "final_logit_softcapping", None)

    def unembed(self, normed: Tensor) -> Tensor:
        """The logits, before a soft-cap, of states behind the final norm, under the weights as they
        are."""
        return self.bridge.unembed(normed) * self.anatomy.logits

    def sites(self, name: str) -> list[Site]:
        """The site `name` of every layer that has it; an error where none has."""
        sites = self.anatomy.sites(name)
        if not sites:
            raise SubjectError(f"{self.name} has no {name} (its blocks do not compute it)")
        return sites

    def without(self, modules: Iterable[str]) -> Subject:
        """The same subject with every adapter off in these modules (names of `weights.layers`)."""
        silent = frozenset(modules)
        if unknown := silent - self.weights.layers.keys():
            raise SubjectError(f"no adapter is mounted on {min(unknown)}")
        return replace(self, weights=replace(self.weights, silent=silent))

    def steering(self, setting: Setting) -> list[tuple[int, Tensor]]:
        """(layer, `[d_model]`) of everything that a setting adds to `resid_post`, scaled; it is
        added at every query position, and at no other."""
        return self.insertions.steering(setting)

    def prefill(
        self,
        setting: Setting,
        given: VirtualTokens | Tensor | None = None,
        *,
        grad: bool = False,
    ) -> Any:
        """The key/value cache of what precedes the query, virtual tokens first; None where nothing
        does.

        `given` takes the place of what the setting names: virtual tokens before its prefix, or the
        ids of several prefixes `[prefix, pos]`. `grad`: autograd follows.
        """
        ids = torch.tensor([setting.prefix], dtype=torch.long, device=self.device)
        virtual = self.insertions.tokens(setting) if given is None else given
        if isinstance(virtual, Tensor):
            ids, virtual = virtual, None
        if not virtual and not ids.numel():
            return None
        if virtual and virtual.embeddings is None and not ids.numel():
            return virtual.cache if grad else copy.deepcopy(virtual.cache)
        self._check_length(max(ids.shape[1], setting.n_prefix))
        with torch.set_grad_enabled(grad), self.weights.of(setting):
            arguments = {"input_ids": ids}
            if virtual:
                embed = self.bridge.original_model.get_input_embeddings()
                arguments = virtual.before(embed, ids, used_up=grad)
            first = arguments.pop("inputs_embeds", arguments.pop("input_ids", None))
            _, cache = self.bridge(
                first, return_type="logits_and_cache", use_cache=True, **arguments
            )
        return cache

    def run(
        self,
        setting: Setting,
        batch: Batch,
        cache: Any = None,
        hooks: Mapping[Site, Hook] | None = None,
        *,
        start: int = 0,
        last: bool = False,
        columns: Tensor | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Logits `[batch, query_pos, d_vocab]` of the query rows; `cache` is left as it was, but
        used up where autograd follows. The rows of a batch are as many times those of the cache.

        A hook sees what the setting's steering has made of its site. `start`: blocks below it do
        not run; a hook on its `resid_pre` says what enters it. `columns` `[batch, row]`: logits
        `[batch, row, d_vocab]` of these tokens alone; `last`: `[batch, d_vocab]` of every query's
        last token before its answer. `grad`: autograd follows the run; its backward pass belongs
        inside `weights.values_of(setting)` too.
        """
        size = len(batch.ids)
        if self.anatomy.reads_below(start):  # those below must run, for their keys and values
            start = 0
        if last:
            columns = batch.ends[:, None] - 1
        past = setting.n_prefix
        self._check_length(past + setting.shift + batch.ids.shape[1])
        if past:
            if (found := cache.get_seq_length()) != past:
                raise ValueError(f"the cache has {found} positions, the setting's prefix {past}")
            cache = cache if grad else copy.deepcopy(cache)
            _repeat_(cache.layers[start:], size)
        with (
            torch.set_grad_enabled(grad),
            shortcuts.skipped(self.bridge.blocks[:start], self.anatomy.wrapped),
            shortcuts.only_at(self.bridge.unembed, columns),
        ):
            logits = self._forward(setting, batch.ids, cache, past, hooks, start)
        logits = batch.biased(logits, setting, columns)
        return logits[:, 0] if last else logits

    def extend(self, setting: Setting, batch: Batch, cache: Any, written: int) -> Tensor:
        """Logits `[batch, d_vocab]` of the last of some tokens, which follow the `written` ones of
        their queries that `cache` holds already, as it holds these afterwards. All queries of the
        batch are as long."""
        ids = batch.ids
        self._check_length(setting.n_prefix + setting.shift + written + ids.shape[1])
        last = torch.full_like(ids[:, :1], ids.shape[1] - 1)
        with torch.no_grad(), shortcuts.only_at(self.bridge.unembed, last):
            logits = self._forward(setting, ids, cache, setting.n_prefix + written)
        return batch.biased(logits, setting, last + written)[:, 0]

    def _forward(
        self,
        setting: Setting,
        ids: Tensor,
        cache: Any,
        past: int,
        hooks: Mapping[Site, Hook] | None = None,
        start: int = 0,
    ) -> Tensor:
        """The hooked model on tokens that follow `past` keys, under a setting's weights and
        steering, at its positions."""
        size, length = ids.shape
        first = past + setting.shift
        positions = torch.arange(first, first + length, device=ids.device)
        points: list[tuple[Any, Callable[..., Any]]] = [
            (
                self.anatomy.points[Site("resid_post", layer)].hook,
                _as_hook(partial(torch.add, vector)),
            )
            for layer, vector in self.steering(setting)
            if layer >= start
        ]
        shown = []
        for site, hook in (hooks or {}).items():
            point = self.anatomy.points[site]
            as_hook = _in_place if site.name == "resid_mid" else _as_hook
            if point.module is not None:
                shown.append((point.module, point.seen(hook)))
            else:
                points.append((point.hook, as_hook(point.seen(hook))))
        with (
            self.weights.of(setting),
            self.bridge.hooks(fwd_hooks=points),
            routers.read_outputs(shown),
        ):
            return self.bridge(
                ids,
                attention_mask=torch.ones(size, past + length, device=ids.device),
                position_ids=positions.expand(size, -1),
                past_key_values=cache,
                use_cache=cache is not None,
            )

    def _check_length(self, length: int) -> None:
        if length > self.context:
            raise QueryError(
                f"{length} tokens before and in a query, the model reads {self.context}: "
                "shorten the prompt or the query"
            )


def _repeat_(layers: Sequence[Any], size: int) -> None:
    """Every row of a cache as many times as makes `size` rows: keys and values, and the states of
    recurrences and convolutions."""
    for layer in layers:
        held = list(filter(torch.is_tensor, getattr(layer, "conv_states", {}).values()))
        if held:
            rows = torch.arange(len(held[0]), device=held[0].device)
            layer.reorder_cache(rows.repeat_interleave(size // len(rows)))
            # The next state is written elsewhere: autograd may need the one that was read.
            written = layer.is_recurrent_states_initialized
            layer.is_recurrent_states_initialized = dict.fromkeys(written, False)
        elif getattr(layer, "keys", None) is not None:
            layer.batch_repeat_interleave(size // len(layer.keys))


def _as_hook(hook: Hook) -> Callable[..., Tensor | None]:
    return lambda value, hook_point=None, **_: hook(value)


def _in_place(hook: Hook) -> Callable[..., None]:
    """A hook on what the MLP's norm reads, whose result is written into the very tensor that the
    block has kept to add the MLP's output to: a value handed back would reach the norm alone."""

    def write(value: Tensor, hook_point: Any = None, **_: Any) -> None:
        new = hook(value)
        if new is not None:
            value.copy_(new)

    return write


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
        insertions = Insertions.read(settings.values(), hf, name, allow_other_base=allow_other_base)
        total = 2 * len(settings)
        record = parity.Recorder(batches, insertions, lambda _: progress(_LOADING, 1, total))
        parameters = dict(hf.named_parameters())
        fine_tuned: dict[str | Untrained, dict[str, Tensor]] = {}
        references: dict[str, list[parity.Reference]] = {}
        for other in dict.fromkeys(setting.model for setting in settings.values()):
            plain = hf if other is None else _other_weights(hf, other, dtype, hub)
            if other is not None:
                values = dict(plain.named_parameters())
                fine_tuned[other] = matching(parameters, values, str(other))
            its = {own: s for own, s in settings.items() if s.model == other}
            references |= record.under(Plain(plain, name, allow_other_base), its)
        notes = _idle(hf, settings, references, record, allow_idle)
        weights = _mounted(hf, parameters, fine_tuned, settings, name, allow_other_base)
        if not allow_other_base:
            notes += filter(None, (doubt(folder_of(adapter), name) for adapter in weights.adapters))
        bridge = _boot(hf, name, words)
        anatomy = Anatomy.of(bridge)
        subject = Subject(name, bridge, words, settings, weights, notes, anatomy, insertions, frame)
        for own, setting in settings.items():
            subject.parity[own] = parity.verify(subject, own, setting, batches, references[own])
            progress(_LOADING, 1, total)
        return replace(subject, anatomy=ask(subject, batches[-1]))


def _idle(
    hf: Any,
    settings: Mapping[str, Setting],
    references: Mapping[str, Sequence[parity.Reference]],
    record: parity.Recorder,
    allowed: bool,
) -> list[str]:
    """Notes on the conditions that change nothing; a `SubjectError` where that is not `allowed`."""
    notes = []
    for name, setting in settings.items():
        what = _changed(setting)
        if not what or not parity.equals_base(hf, setting, references[name], record):
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
    from transformer_lens.model_bridge import TransformerBridge

    hf.config.architectures = [type(hf).__name__]
    if getattr(hf.config, "new_decoder_architecture", False):
        hf.config.multi_query = False  # Falcon's own code does not look at it then, the bridge does
    try:
        with no_processes(), readable(hf):
            bridge = TransformerBridge.boot_transformers(
                model, hf_model=hf, tokenizer=tokenizer, device=str(hf.device), dtype=hf.dtype
            )
    except Exception as error:  # whatever it raises, the architecture is not supported
        raise SubjectError(
            f"{type(hf).__name__} ({model}) is not an architecture that TransformerBridge can "
            f"hook: {' '.join(str(error).split())}"
        ) from error
    mend(bridge)
    mend_norms(bridge)
    return bridge.eval()
