"""Plain models and where their parts are, in the names of sixteen architectures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from .numbers import Array, double, softmax


@functools.lru_cache(maxsize=32)
def open_model(base: str, adapter: str | None, scale: float, other: str | None) -> Any:
    """A plain model of its own for every state of the weights; a scale is a changed alpha."""
    return _opened(base, adapter, scale, other).eval()


@functools.lru_cache(maxsize=32)
def merged(base: str, adapter: str | None, scale: float, other: str | None) -> Any:
    """The same weights with the adapter added into them, to read and not to run."""
    return _opened(base, adapter, scale, other, merge=True).eval()


def _opened(
    base: str, adapter: str | None, scale: float, other: str | None, merge: bool = False
) -> Any:
    model = AutoModelForCausalLM.from_pretrained(other or base, attn_implementation="eager").eval()
    if adapter is None:
        return model
    config = PeftConfig.from_pretrained(adapter)
    config.lora_alpha = config.lora_alpha * scale
    wrapped = PeftModel.from_pretrained(model, adapter, config=config)
    return wrapped.merge_and_unload() if merge else wrapped.get_base_model()


@functools.lru_cache(maxsize=32)
def learned_prompt(base: str, folder: str) -> Any:
    """A peft model that only serves to say what its virtual tokens are: `get_prompt(1)`."""
    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, folder).eval()


def blocks(model: Any) -> list[Any]:
    body = model.base_model
    for name in ("h", "layers"):
        if hasattr(body, name):
            return list(getattr(body, name))
    raise AssertionError(f"no blocks in {type(model).__name__}")


ATTENTION = ("self_attn", "attn", "attention", "self_attention")


def attention(block: Any) -> Any:
    return next(getattr(block, n) for n in ATTENTION if hasattr(block, n))


def head_layers(model: Any) -> tuple[int, ...]:
    """The layers that have heads."""
    layers = enumerate(blocks(model))
    return tuple(i for i, block in layers if any(hasattr(block, n) for n in ATTENTION))


def mixer_layers(model: Any) -> tuple[int, ...]:
    """Those whose tokens are mixed by a recurrence."""
    return tuple(i for i in range(len(blocks(model))) if i not in head_layers(model))


def router_layers(model: Any) -> tuple[int, ...]:
    """Those with a mixture of experts."""
    found = [getattr(block, "mlp", None) for block in blocks(model)]
    return tuple(i for i, mlp in enumerate(found) if hasattr(mlp, "experts"))


SIGMOID = ("deepseek_v3", "glm4_moe")
"""Kinds of models that score every expert by itself, and choose by scores with a correction."""


def route(model: Any, layer: int, x: Array) -> tuple[Array, Array]:
    """`[pos, expert]` each: the router's distribution, and whether it chooses an expert."""
    mlp = blocks(model)[layer].mlp
    router = next(getattr(mlp, name) for name in ("gate", "router") if hasattr(mlp, name))
    logits = x @ double(router.weight).T
    if getattr(router, "bias", None) is not None:
        logits = logits + double(router.bias)
    order, k = logits, router.top_k
    shares = softmax(logits)
    if model.config.model_type in SIGMOID:
        scores = 1 / (1 + np.exp(-logits))
        order = scores + double(router.e_score_correction_bias)
        shares = scores / scores.sum(-1, keepdims=True)
    least = np.sort(order, axis=-1)[:, -k, None]
    return shares, order >= least


def output_projection(block: Any) -> Any:
    inside = attention(block)
    return next(getattr(inside, n) for n in ("o_proj", "c_proj", "dense") if hasattr(inside, n))


@functools.lru_cache(maxsize=64)  # asked again at every row of the same model
def output_weight(block: Any) -> Array:
    """`[head * d_head, d_model]`, of a merged block."""
    module = output_projection(block)
    weight = double(module.weight)
    return weight.T if isinstance(module, torch.nn.Linear) else weight  # Conv1D lies the other way


def output_bias(block: Any) -> Array | None:
    bias = output_projection(block).bias
    return None if bias is None else double(bias)


def writers(block: Any) -> dict[str, Any]:
    """Modules whose outputs are added to the residual stream."""
    if hasattr(block, "post_feedforward_layernorm"):  # Gemma norms what it adds
        found = {
            "attn_out": block.post_attention_layernorm,
            "mlp_out": block.post_feedforward_layernorm,
        }
        if hasattr(block, "post_per_layer_input_norm"):
            found["per_layer_out"] = block.post_per_layer_input_norm
        return found
    if hasattr(block, "linear_attn"):
        return {"mixer_out": block.linear_attn, "mlp_out": block.mlp}
    return {"attn_out": attention(block), "mlp_out": block.mlp}


BY_FUNCTION = ("gpt_oss", "gemma4_text", "deepseek_v3", "qwen3_5_text", "cohere2", "bitnet")
"""Kinds of models whose queries, keys and values are read where their own attention function gets
them: behind head norms, latents, other rotary embeddings and keys of earlier layers."""


def by_function(model: Any) -> bool:
    return model.config.model_type in BY_FUNCTION


def projections(block: Any) -> dict[str, Any]:
    """Modules whose outputs are queries and keys before the rotary embedding, and values."""
    inside = attention(block)
    if hasattr(inside, "q_proj") and inside.config.model_type in BY_FUNCTION:
        return {"q": inside.q_proj} if inside.q_proj is not None else {}
    for fused in ("c_attn", "query_key_value", "qkv_proj"):
        if hasattr(inside, fused):
            return {fused: getattr(inside, fused)}
    if hasattr(inside, "q_norm"):
        return {"q": inside.q_norm, "k": inside.k_norm, "v": inside.v_proj}
    return {"q": inside.q_proj, "k": inside.k_proj, "v": inside.v_proj}


# --- norms ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """A LayerNorm (`centred`) or an RMSNorm in numpy."""

    gain: Array
    bias: Array
    epsilon: float
    centred: bool

    def scale(self, x: Array) -> Array:
        """What a state is divided by."""
        x = x - x.mean(-1, keepdims=True) if self.centred else x
        return np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon)

    def linear(self, part: Array, scale: Array) -> Array:
        """A part of a state through the norm, its scale given: linear in the part."""
        part = part - part.mean(-1, keepdims=True) if self.centred else part
        return part / scale * self.gain

    def __call__(self, x: Array) -> Array:
        return self.linear(x, self.scale(x)) + self.bias


def norm_of(module: Any) -> Norm:
    gain = double(module.weight)
    if isinstance(module, torch.nn.LayerNorm):
        return Norm(gain, double(module.bias), module.eps, centred=True)
    epsilon = getattr(module, "eps", None) or module.variance_epsilon
    kind = type(module).__name__
    if kind.startswith(ABOUT_ONE):
        gain = 1 + gain
    return Norm(gain, np.zeros_like(gain), epsilon, centred="LayerNorm" in kind)


ABOUT_ONE = ("Gemma2", "Gemma3", "Qwen3_5")
"""Kinds of norms whose weight is what their gain is more than 1."""


def final_norm(model: Any) -> Norm:
    names = ("ln_f", "final_layer_norm", "norm")
    return norm_of(
        next(getattr(model.base_model, n) for n in names if hasattr(model.base_model, n))
    )


def reaching(model: Any) -> Array:
    """By layer: the factor of what a block adds in what leaves the last block."""
    own = [float(getattr(block, "layer_scalar", 1.0)) for block in blocks(model)]
    return np.cumprod(own[::-1])[::-1]


def post_norm(block: Any) -> Norm | None:
    """What Gemma does to the attention's output before adding it."""
    if hasattr(block, "post_feedforward_layernorm"):
        return norm_of(block.post_attention_layernorm)
    return None


# --- hooks ---------------------------------------------------------------------------------------


def first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


class Seen(dict[Any, Any]):
    """What hooks read, by (name, layer)."""

    def output(self, *key: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self[key] = first(output)[0].clone()  # Falcon adds to it in place

        return hook

    def input(self, *key: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self[key] = (args[0] if args else kwargs["hidden_states"])[0]

        return hook

    def keyword(self, *key: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self[key] = kwargs.get("position_embeddings")

        return hook


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watched(model: Any, seen: Seen) -> Any:
    handles = []
    for layer, block in enumerate(blocks(model)):
        named = writers(block) | {"resid_post": block}
        if layer in head_layers(model):
            named |= projections(block)
        for name, module in named.items():
            handles.append(module.register_forward_hook(seen.output(name, layer)))
        before = [(block, seen.input("resid_pre", layer))]
        if layer in router_layers(model):
            before.append((block.mlp, seen.input("mlp_in", layer)))
        if layer in head_layers(model):
            before.append((output_projection(block), seen.input("z", layer)))
            before.append((attention(block), seen.keyword("rotary", layer)))
        for module, hook in before:
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    return hooked(handles)


def pinned(model: Any, start: int, inputs: Array | None) -> Any:
    """The input of every block, on the rows from `start` on, is `inputs[layer]`."""
    if inputs is None:
        return ExitStack()

    def replace(rows: torch.Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = torch.cat([hidden[:, :start], rows[None].to(hidden.dtype)], dim=1)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return hook

    return hooked([
        block.register_forward_pre_hook(replace(torch.from_numpy(rows)), with_kwargs=True)
        for block, rows in zip(blocks(model), inputs, strict=True)
    ])  # fmt: skip


def steered(model: Any, start: int, steering: tuple[tuple[float, ...], int] | None) -> Any:
    """A vector is added to what a block gives out, on the rows from `start` on."""
    if steering is None:
        return ExitStack()
    vector, layer = steering

    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = first(output).clone()
        hidden[:, start:] += torch.tensor(vector)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hooked([blocks(model)[layer].register_forward_hook(hook)])
