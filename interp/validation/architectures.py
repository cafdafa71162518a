"""Tiny random models of every architecture that is tested, and the table of what is measured there.

    for row in architecture_rows():
        print(row.line)                 # "qwen3_5   Qwen3_5   1 of 3   all"

A configuration is a class of transformers and its settings. Only what makes a model small, or
brings out what is peculiar to it, is set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp.capabilities import find
from interp.conditions import Base, Lora, Prompt
from interp.errors import ConfigError, SubjectError
from interp.queries import Query, encode
from interp.subject import load
from interp.subject.loading import quiet
from interp.validation import tiny
from interp.validation.tiny import (
    ALTERNATING,
    COMMON,
    D_HEAD,
    D_MODEL,
    GQA,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
)

_GROUPED = {**COMMON, "num_key_value_heads": N_KV_HEADS}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_LATENT = {
    **COMMON, **_ROUTED, "num_key_value_heads": N_HEADS, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_shared_experts": 1,
}  # fmt: skip
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
}  # fmt: skip
_OLD = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": 256}
_SPREAD = {"initializer_range": 0.2}
_FALCON = {
    "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
    "ffn_hidden_size": 48, **_SPREAD,
}  # fmt: skip
_PER_LAYER = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 400}
_STATE_SPACE = {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4}

_GEMMA4 = {
    **GQA,
    **_PER_LAYER,
    "num_hidden_layers": 4,
    "sliding_window": 8,
    "layer_types": [*ALTERNATING[:2], *ALTERNATING[:2]],
    "num_kv_shared_layers": 2,
    "global_head_dim": 2 * D_HEAD,
    "num_global_key_value_heads": 1,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (kind.__name__, settings) for name, (kind, settings) in tiny.CONFIGS.items()},
    "gpt_j": ("GPTJConfig", {**_OLD, **_SPREAD, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": D_MODEL,
            "num_layers": N_LAYERS,
            "num_heads": N_HEADS,
            "attention_types": [[["global", "local"], 1], [["global"], 1]],
            "max_position_embeddings": 256,
            "window_size": 8,
            **_SPREAD,
        },
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", {**_OLD, **_SPREAD}),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": D_MODEL,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "ffn_dim": 48,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": D_MODEL,
            "init_std": 0.2,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, **_SPREAD},
    ),
    "mpt": (
        "MptConfig",
        {
            "d_model": D_MODEL,
            "n_layers": N_LAYERS,
            "n_heads": N_HEADS,
            "max_seq_len": 256,
            "expansion_ratio": 2,
            **_SPREAD,
        },
    ),
    "falcon": ("FalconConfig", {**_FALCON, "multi_query": True}),
    "falcon_grouped": (
        "FalconConfig",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": N_KV_HEADS},
    ),
    "falcon_alibi": (
        "FalconConfig",
        {**_FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    ),
    "phi": ("PhiConfig", _GROUPED),
    "stablelm": ("StableLmConfig", _GROUPED),
    "starcoder2": ("Starcoder2Config", {**_GROUPED, "sliding_window": 8}),
    "llama4": (
        "Llama4TextConfig",
        {
            **GQA,
            "num_local_experts": 2,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
        },
    ),
    "ministral3": ("Ministral3Config", GQA),
    "mixtral": ("MixtralConfig", {**GQA, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**GQA, **_EXPERTS}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**GQA, **_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_5": ("Qwen3_5TextConfig", {**GQA, **_LINEAR}),
    "gemma": ("GemmaConfig", GQA),
    "gemma4": ("Gemma4TextConfig", _GEMMA4),
    "gemma4_moe": (
        "Gemma4TextConfig",
        {
            **_GEMMA4,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "olmo": ("OlmoConfig", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
    "olmo3": ("Olmo3Config", {**_GROUPED, "layer_types": ALTERNATING, "sliding_window": 8}),
    "olmoe": ("OlmoeConfig", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3Config", _GROUPED),
    "granite": (
        "GraniteConfig",
        {
            **_GROUPED,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
        },
    ),
    "granite_moe": (
        "GraniteMoeConfig",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "glm": ("GlmConfig", GQA),
    "glm4": ("Glm4Config", GQA),
    "glm4_moe": ("Glm4MoeConfig", {**GQA, **_ROUTED}),
    "nemotron": ("NemotronConfig", GQA),
    "seed_oss": ("SeedOssConfig", GQA),
    "exaone4": ("Exaone4Config", {**GQA, "sliding_window": 8, "layer_types": ALTERNATING}),
    "ernie4_5": ("Ernie4_5Config", GQA),
    "hunyuan": ("HunYuanDenseV1Config", GQA),
    "apertus": ("ApertusConfig", _GROUPED),
    "arcee": ("ArceeConfig", GQA),
    "nanochat": ("NanoChatConfig", GQA),
    "cohere": ("CohereConfig", {**_GROUPED, "logit_scale": 0.25}),
    "cohere2": (
        "Cohere2Config",
        {**GQA, "logit_scale": 0.25, "sliding_window": 8, "layer_types": ALTERNATING},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            **GQA,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": ALTERNATING,
        },
    ),
    "bitnet": ("BitNetConfig", _GROUPED),
    "deepseek_v2": ("DeepseekV2Config", {**_LATENT, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3Config", _LATENT),
    "lfm2": (
        "Lfm2Config",
        {
            **_GROUPED,
            "layer_types": ["conv", "full_attention", "conv"],
            "conv_L_cache": 3,
            "block_ff_dim": 48,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            **_GROUPED,
            **_STATE_SPACE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "use_mamba_kernels": False,
        },
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {
            **GQA,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "ssm_state_size": 4,
            "conv_kernel": 4,
            "chunk_size": 8,
            "use_mamba_kernels": False,
        },
    ),
}
"""Name -> class of the configuration, and its settings."""

_UNTOUCHED = ("lm_head", "embed_out", "router", "gate", "in_proj", "out_proj", "x_proj", "dt_proj")
"""Linear layers on which the table puts no LoRA: outputs, routers, and what peft refuses in state
spaces."""


TABLE_HEADINGS = ("architecture", "class", "layers with heads", "measured")


class ArchitectureRow(NamedTuple):
    """What came of one architecture: its class in transformers, how many of its layers have heads,
    and what is measured."""

    architecture: str
    model_class: str
    heads: str
    measured: str

    @property
    def line(self) -> str:
        """For a terminal."""
        return f"{self.architecture:15} {self.model_class:27} {self.heads:7} {self.measured}"


def markdown(rows: Iterable[ArchitectureRow]) -> str:
    """The table of a page."""
    lines = (TABLE_HEADINGS, ["---"] * len(TABLE_HEADINGS), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def named_architectures(words: Sequence[str]) -> list[str]:
    """The architectures whose name contains one of these words (all, without any)."""
    found = [n for n in MODELS if not words or any(word.lower() in n for word in words)]
    if not found:
        raise ConfigError(f"no architecture is called {' or '.join(words)}: {', '.join(MODELS)}")
    return found


def save_architecture(name: str, folder: Path, seed: int = 0) -> str:
    """A random model of an architecture with a tokenizer; returns the folder."""
    if name in tiny.CONFIGS:
        return tiny.save_model(name, folder, seed)
    kind, settings = MODELS[name]
    return tiny.save_random_model(
        getattr(transformers, kind), {"pad_token_id": 0, **settings}, folder, seed
    )


def linear_layers(hf: nn.Module) -> list[str]:
    """The names of a model's linear layers on which a LoRA may sit; experts, which are tensors, are
    none."""
    kinds = (nn.Linear, Conv1D)
    return [
        name
        for name, module in hf.named_modules()
        if isinstance(module, kinds) and name.split(".")[-1] not in _UNTOUCHED
    ]


def architecture_rows(names: Iterable[str] = MODELS) -> Iterator[ArchitectureRow]:
    """A row for every architecture (or these): a tiny model of it is loaded under base, a prompt, a
    LoRA on all its linear layers, and both, and what can be measured is found out."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder, quiet():
            yield row(name, Path(folder))


def row(name: str, folder: Path) -> ArchitectureRow:
    """The row of one architecture; its files are written to the folder."""
    model = save_architecture(name, folder / "model")
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(model)
        hf = transformers.AutoModelForCausalLM.from_config(config)
    lora = Lora(tiny.save_adapter(model, folder / "lora", linear_layers(hf)))
    prompt = Prompt(text="hot is the opposite of cold. ")
    conditions = {"base": Base(), "prompt": prompt, "lora": lora, "both": prompt + lora}
    queries = [Query("the"), Query("big is the opposite of the river")]
    shown = type(hf).__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    try:
        subject = load(model, conditions, queries)
        withheld = find(subject, encode(queries, subject.tokenizer))
    except SubjectError as error:
        return ArchitectureRow(name, shown, "", f"refused: {str(error).replace(model, name)}")
    heads = f"{len(subject.anatomy.layers('z'))} of {subject.n_layers}"
    reasons = "; ".join(f"{what}: {why}" for what, why in withheld.items())
    return ArchitectureRow(name, shown, heads, f"all but {reasons}" if withheld else "all")
