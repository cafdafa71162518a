"""Tiny random models of the nine architectures, with tokenizers and adapters, saved to a folder.

folder = save_model("gpt2", tmp_path / "gpt2")
adapter = save_adapter(folder, tmp_path / "lora", targets=MODULES["gpt2"]["qkv"])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

N_LAYERS, N_HEADS, N_KV_HEADS, D_MODEL, D_HEAD = 3, 4, 2, 32, 8

COMMON = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
GQA = {**COMMON, "num_key_value_heads": N_KV_HEADS, "head_dim": D_HEAD}
GEMMA = {**GQA, "query_pre_attn_scalar": D_HEAD, "sliding_window": 8}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (
        GPT2Config,
        {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": 256}
        | {"initializer_range": 0.2},
    ),
    "neox": (GPTNeoXConfig, {**COMMON, "rotary_pct": 0.5}),
    "llama": (LlamaConfig, GQA),
    "mistral": (MistralConfig, {**GQA, "sliding_window": 8}),
    "qwen2": (Qwen2Config, {**COMMON, "num_key_value_heads": N_KV_HEADS}),
    "qwen3": (Qwen3Config, GQA),
    "gemma2": (Gemma2Config, {**GEMMA, "layer_types": ALTERNATING}),
    "gemma3": (Gemma3TextConfig, {**GEMMA, "layer_types": ALTERNATING}),
    "phi3": (Phi3Config, {**COMMON, "num_key_value_heads": N_KV_HEADS, "pad_token_id": 0}),
}

_SPLIT = {
    "q": ["q_proj"], "k": ["k_proj"], "v": ["v_proj"], "o": ["o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
MODULES = {
    **dict.fromkeys(CONFIGS, _SPLIT),
    "gpt2": {"qkv": ["attn.c_attn"], "o": ["attn.c_proj"], "mlp": ["c_fc", "mlp.c_proj"]},
    "neox": {
        "qkv": ["query_key_value"],
        "o": ["attention.dense"],
        "mlp": ["dense_h_to_4h", "dense_4h_to_h"],
    },
    "phi3": {"qkv": ["qkv_proj"], "o": ["o_proj"], "mlp": ["gate_up_proj", "down_proj"]},
}
"""Module type -> the names peft targets, for every architecture."""

TEXT = (
    "the weather was mild that day. people walked along the road and talked about small things. "
    "hot is the opposite of cold, up is the opposite of down, big is the opposite of small.\n"
    "a river is wide; a hill is high. lily said: yes! tom said: no?"
)


def tokenizer(convention: str) -> PreTrainedTokenizerFast:
    """`gpt2`: byte-level, no BOS. `llama`: a BOS, and every text begins with a space sign."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=convention == "llama"))
    specials = ["<unk>", "<s>", "</s>"]
    if convention == "gpt2":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        core.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = []
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT], trainer)
    if convention == "llama":
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save_model(architecture: str, folder: Path, seed: int = 0, words: Any = None) -> str:
    """A random model of `architecture` with a tokenizer (`words`: that one, otherwise one of its
    convention); returns the folder."""
    words = words or tokenizer(
        "llama" if architecture in ("llama", "mistral") or "gemma" in architecture else "gpt2"
    )
    return save_random_model(*CONFIGS[architecture], folder, seed, words)


def save_random_model(
    config_class: Any, settings: dict[str, Any], folder: Path, seed: int = 0, words: Any = None
) -> str:
    """A random model of a configuration, with a tokenizer; returns the folder."""
    words = words or tokenizer("gpt2")
    torch.manual_seed(seed)
    config = config_class(vocab_size=len(words), bos_token_id=1, eos_token_id=2, **settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases, norms and scales are initialised to constants: make them matter
        for tensor in model.state_dict().values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_adapter(
    model: str, folder: Path, targets: list[str], layers: list[int] | None = None, seed: int = 1
) -> str:
    """A random LoRA (rank 3, alpha 6) on `targets`, large enough to move every output."""
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=targets,
        layers_to_transform=layers,
        init_lora_weights=False,
        fan_in_fan_out=hf.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(hf, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    peft.save_pretrained(str(folder))
    return str(folder)


def save_soft_prompt(model: str, folder: Path, tokens: int = 3, seed: int = 2) -> str:
    """A random soft prompt (peft prompt tuning) of `tokens` virtual tokens."""
    torch.manual_seed(seed)
    config = PromptTuningConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM")
    return _save_virtual(model, folder, config)


def save_prefix(
    model: str, folder: Path, tokens: int = 3, projection: bool = False, seed: int = 3
) -> str:
    """Random keys and values (peft prefix tuning) of `tokens` virtual tokens."""
    torch.manual_seed(seed)
    config = PrefixTuningConfig(
        num_virtual_tokens=tokens, prefix_projection=projection, task_type="CAUSAL_LM"
    )
    return _save_virtual(model, folder, config)


def _save_virtual(model: str, folder: Path, config: PromptTuningConfig | PrefixTuningConfig) -> str:
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for parameter in peft.prompt_encoder.parameters():
            parameter.normal_(0, 0.5)
    peft.save_pretrained(str(folder))
    return str(folder)


def save_steering(model: str, path: Path, size: float = 2.0, seed: int = 4) -> str:
    """A random vector of the model's width, as a steering file (`path` ends in .safetensors)."""
    width = AutoModelForCausalLM.from_pretrained(model).config.hidden_size
    vector = size * torch.randn(width, generator=torch.Generator().manual_seed(seed))
    save_file({"vector": vector}, path)
    return str(path)


def all_targets(architecture: str) -> list[str]:
    """Every module that a LoRA may sit on."""
    return [name for names in MODULES[architecture].values() for name in names]
