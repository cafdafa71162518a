"""Controls with weights of their own: random adapters of a trained one's size, untrained models.

    tensors = load_file("lora/adapter_model.safetensors")
    save_file(random_like(tensors, seed=0), "random/adapter_model.safetensors")
    fresh = untrained(hf, seed=0)

A folder saved so, with the trained one's `adapter_config.json`, is what `RandomLora` mounts.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interp.errors import SubjectError
from interp.subject.kinds import auto_class

_FACTORS = {"lora_A.weight": "lora_B.weight", "lora_embedding_A": "lora_embedding_B"}
"""How the two factors of a module's update are named at the end of an adapter file's keys."""


def random_like(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """An adapter file's tensors with every module's update replaced by a random one of its norm.

    A and B are drawn from a standard Gaussian, seeded by (seed, module key) alone, and both scaled
    by the same number so that |B A| (Frobenius) is what it was; the scaling of the configuration
    multiplies both alike. An update that is zero stays zero. Keys, shapes and dtypes are those
    of `tensors`; the base's embeddings, which peft saves along where a LoRA sits on them, stay.
    Raises `SubjectError` where there is more than A and B (DoRA, biases, modules that were saved
    whole), since the norm of such an update does not follow from the file.
    """
    made = {key: tensor for key, tensor in tensors.items() if ".base_layer." in key}
    for key, a in tensors.items():
        for first, second in _FACTORS.items():
            if key.endswith(first):
                module = key.removesuffix(first)
                pair = _pair(a, tensors[module + second], _seed(seed, module))
                made |= dict(zip((key, module + second), pair, strict=True))
    if other := sorted(set(tensors) - set(made)):
        raise SubjectError(f"a random LoRA has only A and B, the adapter has {other[0]} as well")
    return {key: made[key] for key in tensors}


def _seed(seed: int, what: str) -> int:
    """A seed of its own for everything that is drawn.

    Untrained weights too: a base that was itself initialised from seed 0 is not seed 0's copy.
    """
    digest = hashlib.sha256(f"{seed}:{what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _pair(a: Tensor, b: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in (a, b)]
    size = (_norm(a, b) / _norm(*drawn)).sqrt()
    return (size * drawn[0]).to(a.dtype), (size * drawn[1]).to(b.dtype)


def _norm(a: Tensor, b: Tensor) -> Tensor:
    """|B A| from the Gram matrices of the factors, which are no larger than the rank."""
    rows, columns = a.double().flatten(1), b.double().flatten(1)
    square = ((rows @ rows.T) * (columns.T @ columns)).sum()
    return square.clamp(min=0).sqrt()


def untrained(hf: Any, seed: int, *, trust_remote_code: bool = False) -> Any:
    """A model of the configuration of `hf`, freshly initialised; device and dtype are its.

    Drawn on the CPU in float32, so that a seed names the same weights everywhere; the state of
    the random number generators is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed(seed, "untrained"))
        fresh: Any = auto_class(hf.config).from_config(
            copy.deepcopy(hf.config),
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=trust_remote_code,
        )
    for parameter in fresh.parameters():  # not the buffers: rotary frequencies stay in float32
        parameter.data = parameter.data.to(hf.dtype)
    return fresh.to(hf.device).eval()
