"""What conditions insert into a run: virtual tokens before the ids, vectors on the residual stream.

    insertions = Insertions.read(settings, hf, "gpt2")      # from files, before adapters mount
    virtual = insertions.tokens(settings["soft"])           # None without virtual tokens
    virtual.before(embed, ids)                              # arguments of a forward pass
    insertions.steering(settings["steered"])                # [(layer, scale * vector), ...]

peft itself makes the embeddings, or the keys and values, of its prompt-tuning and prefix-tuning
folders; the model is left as it was.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from interp.conditions import Added, Prefix, Setting, SoftPrompt, Virtual
from interp.errors import SubjectError
from interp.subject.adapter_files import read_adapter

TENSOR = "prompt_embeddings"
"""The one tensor of a prompt-tuning or prefix-tuning folder."""


@dataclass(frozen=True)
class VirtualTokens:
    """Virtual tokens ready for one model: `embeddings` `[1, virtual, d_model]`, or a `cache` of
    their keys and values in every layer (batch 1)."""

    embeddings: Tensor | None = None
    cache: Any = None

    def before(
        self, embed: Callable[[Tensor], Tensor], ids: Tensor, *, used_up: bool = False
    ) -> dict[str, Any]:
        """Arguments of a forward pass on these tokens followed by `ids` `[1, pos]`; the cache
        itself goes in where it may be `used_up`."""
        if self.embeddings is None:
            cache = self.cache if used_up else copy.deepcopy(self.cache)
            return {"input_ids": ids, "past_key_values": cache}
        embedded = embed(ids) if ids.numel() else self.embeddings[:, :0]
        return {"inputs_embeds": torch.cat([self.embeddings, embedded], dim=1)}


@dataclass(frozen=True)
class Insertions:
    """Virtual tokens by adapter folder, and steering vectors by file, for one model."""

    virtual: Mapping[str, VirtualTokens] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        settings: Iterable[Setting],
        hf: Any,
        base_name: str,
        *,
        allow_other_base: bool = False,
    ) -> Insertions:
        """Everything that the settings insert, read and checked against the model."""
        virtual: dict[str, VirtualTokens] = {}
        vectors: dict[str, Tensor] = {}
        for setting in settings:
            if (tokens := setting.virtual) and tokens.adapter not in virtual:
                _check_file(tokens, hf, base_name, allow_other_base)
                virtual[tokens.adapter] = _from_peft(tokens, hf, base_name)
            for added in setting.steering:
                vectors[added.vector] = _vector(added, hf)
        return cls(virtual, vectors)

    def tokens(self, setting: Setting) -> VirtualTokens | None:
        """The virtual tokens of a setting, if it has any."""
        return self.virtual[setting.virtual.adapter] if setting.virtual else None

    def steering(self, setting: Setting) -> list[tuple[int, Tensor]]:
        """(layer, `[d_model]`): what a setting adds to `resid_post` of the layer, times its
        scale, at every query position."""
        return [(a.layer, a.scale * self.vectors[a.vector]) for a in setting.steering]


@contextmanager
def prompt_learning(hf: Any, folder: str) -> Iterator[Any]:
    """`hf` wrapped by peft with a prompt-tuning or prefix-tuning folder, and as it was after."""
    trained = {name: p.requires_grad for name, p in hf.named_parameters()}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield PeftModelForCausalLM.from_pretrained(hf, folder).eval()
    finally:
        for name, parameter in hf.named_parameters():
            parameter.requires_grad_(trained[name])


def _key_value_shape(hf: Any) -> tuple[int, int]:
    """How many key/value heads a block has, and their width."""
    config = hf.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width


def _check_file(virtual: Virtual, hf: Any, base_name: str, allow_other_base: bool) -> None:
    """The file holds one finite tensor of the shape that this model needs."""
    folder = virtual.adapter
    types = (Prefix if virtual.cached else SoftPrompt).peft_types
    config, tensors = read_adapter(folder, base_name, allow_other_base, types)
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise SubjectError(f"adapter {folder} is for the task {task}, not CAUSAL_LM")
    if set(tensors) != {TENSOR}:
        raise SubjectError(f"adapter {folder} has the tensors {sorted(tensors)}, not {TENSOR}")
    width = hf.get_input_embeddings().weight.shape[1]
    if virtual.cached:
        heads, d_head = _key_value_shape(hf)
        width = 2 * hf.config.get_text_config().num_hidden_layers * heads * d_head
    found, wanted = tuple(tensors[TENSOR].shape), (virtual.length, width)
    if found != wanted:
        raise SubjectError(
            f"adapter {folder} does not fit {base_name}: {TENSOR} has shape {found}, not {wanted}"
        )


def _from_peft(virtual: Virtual, hf: Any, base_name: str) -> VirtualTokens:
    """The embeddings, or the keys and values, that peft puts before the ids."""
    try:
        with prompt_learning(hf, virtual.adapter) as peft:
            prompt = copy.deepcopy(peft.get_prompt(1))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise SubjectError(
            f"peft cannot put the virtual tokens of {virtual.adapter} before {base_name} "
            f"({type(hf).__name__}): {reason}"
        ) from error
    if not virtual.cached:
        return VirtualTokens(embeddings=prompt.detach().to(hf.device, hf.dtype))
    heads, d_head = _key_value_shape(hf)
    for number, layer in enumerate(prompt.layers):
        found, wanted = tuple(layer.keys.shape)[1::2], (heads, d_head)
        if found != wanted:
            raise SubjectError(
                f"adapter {virtual.adapter} does not fit {base_name} ({type(hf).__name__}): its "
                f"keys in layer {number} are (heads, width) {found}, not {wanted}"
            )
    return VirtualTokens(cache=prompt)


def _vector(added: Added, hf: Any) -> Tensor:
    """A steering file's vector, checked against the model, in its number format."""
    path, config = Path(added.vector), hf.config.get_text_config()
    if not path.is_file():
        raise SubjectError(f"steering vector {path}: no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise SubjectError(f"steering vector {path} is no .safetensors file: {error}") from error
    if set(tensors) != {"vector"}:
        raise SubjectError(f"steering vector {path} has {sorted(tensors)}, not one tensor `vector`")
    vector, wanted = tensors["vector"], (config.hidden_size,)
    if tuple(vector.shape) != wanted:
        raise SubjectError(
            f"steering vector {path} has shape {tuple(vector.shape)}, the model needs {wanted}"
        )
    if not torch.isfinite(vector).all():
        raise SubjectError(f"steering vector {path} has NaN or infinite values")
    if not 0 <= added.layer < config.num_hidden_layers:
        raise SubjectError(
            f"steering by {path}: no layer {added.layer}; "
            f"there are 0 to {config.num_hidden_layers - 1}"
        )
    return vector.to(hf.device, hf.dtype)


def blocks(hf: Any) -> nn.ModuleList:
    """The transformer blocks of a plain Hugging Face model; not those that read images."""
    depth = hf.config.get_text_config().num_hidden_layers
    lists = (part for part in hf.get_decoder().modules() if isinstance(part, nn.ModuleList))
    return next(layers for layers in lists if len(layers) == depth)
