"""A model with its mounted adapters, hooked: what it is made of, and how it is run.

cache = subject.prefill(subject.settings["lora"])
logits = subject.run(subject.settings["lora"], batch, cache, {Site("resid_post", 2): read})
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from interp.batch import Batch
from interp.conditions import RAW, Frame, Setting
from interp.errors import QueryError, SubjectError
from interp.names import Site
from interp.subject import routers, shortcuts
from interp.subject.anatomy import Anatomy
from interp.subject.insertions import Insertions, VirtualTokens
from interp.subject.weights import Weights

_SCORES = 1 << 26
"""Attention scores of one layer that exist at once while a long prefix is read."""

_PIECE = 64
"""Fewer tokens than this are not worth a pass of their own."""

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
    def hf_model(self) -> Any:
        """The plain Hugging Face model, whose modules the hooks are on."""
        return self.bridge.original_model

    @property
    def text_config(self) -> Any:
        """The configuration of its language model."""
        return self.hf_model.config.get_text_config()

    @property
    def input_embeddings(self) -> nn.Module:
        """Token ids -> embeddings, under the weights as they are."""
        return self.hf_model.get_input_embeddings()

    @property
    def blocks(self) -> Sequence[Any]:
        """The hooked blocks, by layer."""
        return self.bridge.blocks

    @property
    def final_norm(self) -> Any:
        """The norm before the unembedding, a hooked module."""
        return self.bridge.ln_final

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        return int(self.bridge.cfg.n_heads)

    @property
    def n_key_value_heads(self) -> int:
        """Heads of keys and values: fewer than `n_heads` under grouped queries."""
        return int(getattr(self.bridge.cfg, "n_key_value_heads", None) or self.n_heads)

    @property
    def d_model(self) -> int:
        return int(self.bridge.cfg.d_model)

    @property
    def d_head(self) -> int:
        return int(self.bridge.cfg.d_head)

    @property
    def d_mlp(self) -> int:
        """The width of the MLPs; four times `d_model` where the model does not say."""
        return int(self.bridge.cfg.d_mlp or 4 * self.d_model)

    @property
    def d_vocab(self) -> int:
        return int(self.bridge.cfg.d_vocab)

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.weights.parameters.values())

    @property
    def n_words(self) -> int:
        """How many token ids have both a name and an embedding (either may have more)."""
        return min(len(self.tokenizer), len(self.hf_model.get_input_embeddings().weight))

    @property
    def device(self) -> torch.device:
        return next(iter(self.weights.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.weights.parameters.values())).dtype

    @property
    def context(self) -> int:
        """How many tokens the model can read."""
        return context_of(self.hf_model)

    @property
    def cap(self) -> float | None:
        """The bound of the model's final soft-cap (Gemma 2); None where it has none."""
        return getattr(self.text_config, "final_logit_softcapping", None)

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
        ids of several prefixes `[prefix, pos]`. `grad`: autograd follows. A long prefix is read in
        pieces: attention of all its tokens at once would take `[head, pos, pos]` per layer.
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
                arguments = virtual.before(self.input_embeddings, ids, used_up=grad)
            whole = arguments.pop("inputs_embeds", arguments.pop("input_ids", ids))
            cache = arguments.pop("past_key_values", None)
            for piece in whole.tensor_split(1 if grad else self._n_pieces(whole), dim=1):
                cache = self._extended(cache, piece)
        return cache

    def _n_pieces(self, whole: Tensor) -> int:
        """In how many pieces of near equal length what precedes a query is read. All at once where
        some blocks mix tokens by a recurrence: from piece to piece its rounding grows (to 1e-4 in
        tiny Qwen3.5 models, and 6e-4 in Nemotron-H, which steps single tokens by another formula).
        """
        rows, length = whole.shape[:2]
        if self.anatomy.layers("mixer_out"):
            return 1
        fitting = max(_PIECE, _SCORES // (rows * self.n_heads * length))
        return -(-length // fitting)

    def _extended(self, cache: Any, tokens: Tensor) -> Any:
        """A cache (None: an empty one) with the keys and values of tokens, ids or embeddings, that
        follow; the unembedding sees one of them."""
        rows, length = tokens.shape[:2]
        past = 0 if cache is None else cache.get_seq_length()
        arguments = {} if cache is None else {"past_key_values": cache}
        if past:
            places = torch.arange(past, past + length, device=tokens.device)
            arguments["attention_mask"] = torch.ones(rows, past + length, device=tokens.device)
            arguments["position_ids"] = places.expand(rows, -1)
        one = torch.zeros(rows, 1, dtype=torch.long, device=tokens.device)
        with shortcuts.only_at(self.bridge.unembed, one):
            _, extended = self.bridge(
                tokens, return_type="logits_and_cache", use_cache=True, **arguments
            )
        return extended

    def run(
        self,
        setting: Setting,
        batch: Batch,
        cache: Any = None,
        hooks: Mapping[Site, Hook] | None = None,
        *,
        start: int = 0,
        end: int | None = None,
        last: bool = False,
        columns: Tensor | None = None,
        attention_only: bool = False,
        grad: bool = False,
    ) -> Tensor:
        """Logits `[batch, query_pos, d_vocab]` of the query rows; `cache` is left as it was, but
        used up where autograd follows. The rows of a batch are as many times those of the cache.

        A hook sees what the setting's steering has made of its site. `start`: blocks below it do
        not run; a hook on its `resid_pre` says what enters it. `end`: nor do blocks from it on.
        `attention_only`: nor do MLPs and output projections, for hooks that say what enters every
        block and read what its heads do (the logits of both are no model's). `columns`
        `[batch, row]`: logits `[batch, row, d_vocab]` of these tokens alone; `last`: `[batch,
        d_vocab]` of every query's last token before its answer. `grad`: autograd follows the run;
        its backward pass belongs inside `weights.values_of(setting)` too.
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
            repeat_(cache.layers[start:], size)
        with (
            torch.set_grad_enabled(grad),
            shortcuts.skipped(self.blocks[:start], self.anatomy.wrapped),
            shortcuts.skipped([] if end is None else self.blocks[end:], self.anatomy.wrapped),
            shortcuts.skipped(self._mlps if attention_only else (), wrapped=False),
            shortcuts.silent(self._output_projections if attention_only else (), self.d_model),
            shortcuts.only_at(self.bridge.unembed, columns),
        ):
            logits = self._forward(setting, batch.ids, cache, past, hooks, start)
        logits = batch.biased(logits, setting, columns)
        return logits[:, 0] if last else logits

    @property
    def _mlps(self) -> list[Any]:
        """The MLPs that can be left out."""
        return [block.mlp for block in self.blocks] if self.anatomy.plain_mlps else []

    @property
    def _output_projections(self) -> list[Any]:
        """What makes of the heads' z what they write, below its hooks."""
        blocks = [self.blocks[layer] for layer in self.anatomy.layers("z")]
        return [block.attn.o.original_component for block in blocks]

    def extend(self, setting: Setting, batch: Batch, cache: Any, written: Tensor) -> Tensor:
        """Logits `[batch, d_vocab]` of the last of some tokens, as many of every query, which
        follow the `written` `[batch]` ones of their queries that `cache` holds already, as it holds
        these afterwards. Rows of which less is written are padded on the left."""
        ids, most = batch.ids, int(written.max())
        self._check_length(setting.n_prefix + setting.shift + most + ids.shape[1])
        last = torch.full_like(ids[:, :1], ids.shape[1] - 1)
        with torch.no_grad(), shortcuts.only_at(self.bridge.unembed, last):
            past = setting.n_prefix + most
            logits = self._forward(setting, ids, cache, past, padding=most - written)
        return batch.biased(logits, setting, last + written[:, None])[:, 0]

    def _forward(
        self,
        setting: Setting,
        ids: Tensor,
        cache: Any,
        past: int,
        hooks: Mapping[Site, Hook] | None = None,
        start: int = 0,
        padding: Tensor | None = None,
    ) -> Tensor:
        """The hooked model on tokens that follow `past` keys, the first ones of every row
        `padding`, under a setting's weights and steering, at its positions."""
        size, length = ids.shape
        places = torch.arange(past + length, device=ids.device).expand(size, -1)
        if padding is not None:
            places = places - padding[:, None]
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
                attention_mask=(places >= 0).float(),
                position_ids=places[:, past:] + setting.shift,
                past_key_values=cache,
                use_cache=cache is not None,
            )

    def _check_length(self, length: int) -> None:
        if length > self.context:
            raise QueryError(
                f"{length} tokens before and in a query, the model reads {self.context}: "
                "shorten the prompt or the query"
            )


def context_of(hf: Any) -> int:
    """How many tokens a plain Hugging Face model can read."""
    return int(getattr(hf.config.get_text_config(), "max_position_embeddings", 1 << 30))


def repeat_(layers: Sequence[Any], size: int) -> None:
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
        elif (keys := getattr(layer, "keys", None)) is not None and len(keys) > 1:
            layer.batch_repeat_interleave(size // len(keys))
        elif keys is not None:  # one row in memory: the layer joins what follows to a copy
            layer.keys = keys.expand(size, -1, -1, -1)
            layer.values = layer.values.expand(size, -1, -1, -1)


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
