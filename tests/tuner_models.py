"""A tiny adapter of every type that peft mounts, with random tensors; and plain peft itself.

folder = save_tuner(model, tmp_path / "ia3", "IA3")
logits = from_peft(model, ids, folder)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tiny_models import D_HEAD, N_HEADS, N_KV_HEADS, N_LAYERS, tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "up_proj"]

TUNERS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "target_r": 4, "total_step": 10},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BEFT": {"target_modules": ["q_proj", "v_proj"]},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 50},
    "FROD": {"progressbar": False},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "LN_TUNING": {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "LORA": {"r": 4},
    "MISS": {"r": 8},
    "OFT": {"oft_block_size": 4},
    "OSF": {},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {},
    "TINYLORA": {"u": 8},
    "TRAINABLE_TOKENS": {
        "target_modules": ["embed_tokens"],
        "token_indices": list(range(260, 400)),
    },
    "UNILORA": {},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 50},
}
"""Type of peft -> options of a tiny one; all of them sit on `TARGETS` unless they say otherwise."""


def save_tuner(model: str, folder: Path, kind: str, seed: int = 0, **options: Any) -> str:
    """A folder of this type whose every trained tensor is random."""
    fields = {"target_modules": TARGETS, "task_type": "CAUSAL_LM"} | TUNERS.get(kind, {}) | options
    return save_config(model, folder, PEFT_TYPE_TO_CONFIG_MAPPING[kind](**fields), seed)


def save_config(model: str, folder: Path, config: PeftConfig, seed: int = 0) -> str:
    """A folder of this configuration whose every trained tensor is random."""
    torch.manual_seed(seed)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter) * ("magnitude" not in name))
    peft.save_pretrained(folder)
    return str(folder)


def plain_peft(model: str, *folders: str) -> Any:
    """A fresh model under these adapters, by calls that any user of peft makes."""
    names = [f"adapter_{index}" for index, _ in enumerate(folders)]
    hf = AutoModelForCausalLM.from_pretrained(model)
    peft = PeftModel.from_pretrained(hf, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        peft.load_adapter(folder, adapter_name=name)
    if len(names) > 1:
        peft.base_model.set_adapter(names)
    return peft.eval()


@torch.no_grad()
def from_peft(model: str, ids: Tensor, *folders: str) -> Tensor:
    """Logits of plain peft."""
    return plain_peft(model, *folders)(input_ids=ids).logits


def greedy(peft: Any, ids: Tensor, n_tokens: int = 5) -> tuple[int, ...]:
    """The tokens that plain peft writes after `ids` `[1, pos]`."""
    written = peft.generate(input_ids=ids, max_new_tokens=n_tokens, do_sample=False)
    return tuple(written[0, ids.shape[1] :].tolist())


def save_cartridge(model: str, folder: Path, tokens: int = 3) -> str:
    """A random CARTRIDGE of so many virtual tokens."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING["CARTRIDGE"](
        num_virtual_tokens=tokens, task_type="CAUSAL_LM"
    )
    return save_config(model, folder, config)


SHAPE = {
    "hidden_size": N_HEADS * D_HEAD,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_KV_HEADS,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
SMALL = {"head_dim": D_HEAD, "moe_intermediate_size": 16}
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeConfig", SMALL | {"num_experts": 4}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4}),
    "glm4_moe": (
        "Glm4MoeConfig",
        SMALL | {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    ),
}


def save_experts(architecture: str, folder: Path) -> str:
    """A tiny random mixture of experts."""
    kind, own = EXPERTS[architecture]
    words = tokenizer("gpt2")
    torch.manual_seed(0)
    config = getattr(transformers, kind)(vocab_size=len(words), **SHAPE, **own)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)
