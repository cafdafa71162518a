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
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from interp.conditions import Condition, Setting, resolve
from interp.names import Site
from interp.queries import Encoded, Query, encode
from interp.subject import parity
from interp.subject.adapters import active, mount
from interp.subject.errors import SubjectError
from interp.subject.fused import mend

__all__ = ["Batch", "Subject", "SubjectError", "load"]

Hook = Callable[[Tensor], Tensor | None]
"""Reads a site's value; returns None, or the value that takes its place."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Batch:
    """Queries padded on the right: `ids` `[batch, query_pos]` and every query's length."""

    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, queries: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
        """Pad queries with token 0; causal attention keeps every real row from seeing it."""
        rows = [torch.tensor(query.ids) for query in queries]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return cls(ids.to(device), torch.tensor([len(row) for row in rows], device=device))

    @property
    def mask(self) -> Tensor:
        """`[batch, query_pos]`, True on real tokens."""
        positions = torch.arange(self.ids.shape[1], device=self.ids.device)
        return positions < self.lengths[:, None]


@dataclass(frozen=True)
class Subject:
    """A parity-checked model; make one with `load`."""

    name: str
    bridge: Any
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Setting]
    notes: list[str]
    _peft: Any
    _adapters: dict[str, str]
    _parameters: dict[str, torch.nn.Parameter]
    _fine_tuned: dict[str, dict[str, Tensor]]

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
    def device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._parameters.values())).dtype

    @property
    def context(self) -> int:
        """How many tokens the model can read."""
        return int(getattr(self.bridge.original_model.config, "max_position_embeddings", 1 << 30))

    def sites(self, name: str) -> list[Site]:
        """The site `name` of every layer; an error where this architecture has none."""
        sites = [Site(name, layer) for layer in range(self.n_layers)]
        known = self.bridge.hook_dict
        if absent := [site for site in sites if site.hook not in known]:
            raise SubjectError(f"{self.name} has no {absent[0]} (its blocks do not compute it)")
        return sites

    @contextlib.contextmanager
    def weights(self, setting: Setting) -> Iterator[None]:
        """The model's weights are those of `setting` while inside."""
        adapters = [(self._adapters[folder], scale) for folder, scale in setting.adapters]
        other = self._fine_tuned[setting.model] if setting.model else {}
        with swapped(self._parameters, other), active(self._peft, adapters):
            yield

    def prefill(self, setting: Setting) -> Any:
        """The key/value cache (batch 1) of a setting's prefix; None where there is no prefix."""
        if not setting.prefix:
            return None
        ids = torch.tensor([setting.prefix], device=self.device)
        with torch.no_grad(), self.weights(setting):
            _, cache = self.bridge(ids, return_type="logits_and_cache", use_cache=True)
        return cache

    def run(
        self,
        setting: Setting,
        batch: Batch,
        cache: Any = None,
        hooks: Mapping[Site, Hook] | None = None,
    ) -> Tensor:
        """Logits `[batch, query_pos, d_vocab]` of the query rows; `cache` is left as it was."""
        size, length = batch.ids.shape
        past = len(setting.prefix)
        if past:
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(size)
        start = past + setting.shift
        positions = torch.arange(start, start + length, device=batch.ids.device)
        points = [(site.hook, _as_hook(hook)) for site, hook in (hooks or {}).items()]
        with torch.no_grad(), self.weights(setting), self.bridge.hooks(fwd_hooks=points):
            logits = self.bridge(
                batch.ids,
                attention_mask=torch.ones(size, past + length, device=batch.ids.device),
                position_ids=positions.expand(size, -1),
                past_key_values=cache,
                use_cache=bool(past),
            )
        return add_bias(logits, setting, batch.lengths)


def _as_hook(hook: Hook) -> Callable[..., Tensor | None]:
    return lambda value, hook_point=None, **_: hook(value)


def add_bias(logits: Tensor, setting: Setting, lengths: Tensor) -> Tensor:
    """Add a setting's logit bias at its query positions (negative ones count from the end)."""
    rows = torch.arange(len(logits), device=logits.device)
    for token, value, positions in setting.bias:
        if positions is None:
            logits[..., token] += value
            continue
        for position in positions:
            column = position + lengths if position < 0 else torch.full_like(lengths, position)
            inside = (column >= 0) & (column < lengths)
            logits[rows[inside], column[inside], token] += value
    return logits


@contextlib.contextmanager
def swapped(
    parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]
) -> Iterator[None]:
    """The parameters named in `values` hold those values while inside."""
    before = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, data in before.items():
            parameters[name].data = data


def load(
    model: str,
    conditions: Mapping[str, Condition],
    probe: Sequence[str | Query],
    *,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_other_base: bool = False,
) -> Subject:
    """Load, mount, boot and verify; raises `SubjectError` rather than return a wrong model.

    `probe`: one or a few query texts on which parity is tested, in every condition.
    """
    from transformer_lens.model_bridge import TransformerBridge

    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    target = _device(device)
    tokenizer = load_tokenizer(model, **hub)
    settings = {name: resolve(condition, tokenizer) for name, condition in conditions.items()}
    with quiet():
        hf = _pretrained(model, DTYPES[dtype], hub).to(target)
        parameters = dict(hf.named_parameters())
        _check_finite(parameters, model)
        others = {setting.model for setting in settings.values() if setting.model}
        fine_tuned = {}
        batches = [
            Batch.of([query], target)
            for query in encode([q if isinstance(q, Query) else Query(q) for q in probe], tokenizer)
        ]
        references = {}
        for other in sorted(others):
            tuned = _pretrained(other, DTYPES[dtype], hub).to(target)
            fine_tuned[other] = _matching(parameters, dict(tuned.named_parameters()), other)
            for name, setting in settings.items():
                if setting.model == other and not setting.adapters:
                    references[name] = [parity.reference(tuned, setting, b) for b in batches]
        folders = [folder for setting in settings.values() for folder, _ in setting.adapters]
        peft, adapters = mount(hf, folders, model, allow_other_base=allow_other_base)
        plain = Subject(
            model, None, tokenizer, settings, [], peft, adapters, parameters, fine_tuned
        )
        notes = []
        for name, setting in settings.items():
            if name not in references:
                with plain.weights(setting):
                    references[name] = [parity.reference(hf, setting, b) for b in batches]
            if (setting.adapters or setting.model) and parity.is_base(
                hf, plain, setting, references[name], batches
            ):
                notes.append(f"condition {name} changes nothing: its outputs equal those of base")
        hf.config.architectures = [type(hf).__name__]
        try:
            bridge = TransformerBridge.boot_transformers(
                model, hf_model=hf, tokenizer=tokenizer, device=str(target), dtype=DTYPES[dtype]
            )
        except Exception as error:
            raise SubjectError(
                f"{type(hf).__name__} ({model}) is not an architecture that TransformerBridge can "
                f"hook: {' '.join(str(error).split())}"
            ) from error
        mend(bridge)
        bridge.eval()
    subject = Subject(
        model, bridge, tokenizer, settings, notes, peft, adapters, parameters, fine_tuned
    )
    for name, setting in settings.items():
        parity.verify(subject, name, setting, batches, references[name])
    return subject


def load_tokenizer(model: str, **hub: Any) -> PreTrainedTokenizerBase:
    """A model's fast tokenizer; a one-line error where there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **hub)
    except (OSError, ValueError) as error:
        raise SubjectError(_explain(model, error)) from error
    if not tokenizer.is_fast:
        raise SubjectError(f"{model} has no fast tokenizer (tokenizer.json); convert it first")
    return tokenizer


def _pretrained(model: str, dtype: torch.dtype, hub: Mapping[str, Any]) -> Any:
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation="eager", **hub
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SubjectError(_explain(model, error)) from error
    return hf.eval()


def _explain(model: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason:
        return f"{model} brings its own code: read it, then pass --trust-remote-code"
    if Path(model).exists():
        return f"{model} could not be loaded: {reason}"
    return f"no model {model!r}: no such folder, and the hub answered: {reason[:200]}"


def _check_finite(parameters: Mapping[str, Tensor], model: str) -> None:
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            raise SubjectError(f"{model}: {name} has NaN or infinite values")


def _matching(
    base: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The other model's tensors by the base's names; names and shapes must be the same."""
    if different := sorted(set(base) ^ set(other)):
        raise SubjectError(
            f"{name} is not of the base's architecture: {different[0]} is in one only"
        )
    for key, parameter in base.items():
        if parameter.shape != other[key].shape:
            shapes = f"{tuple(other[key].shape)}, the base's {tuple(parameter.shape)}"
            raise SubjectError(f"{name}: {key} has shape {shapes}")
    return {key: value.data for key, value in other.items()}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading says nothing: what its warnings are about is checked, and raised, here."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
