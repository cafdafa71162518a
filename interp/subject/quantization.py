"""Weights in 8 or 4 bits, rounded as they are loaded by torchao, or on a GPU by bitsandbytes.

    config = rounding("int8", torch.device("cpu"), torch.float32, modules)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)

The linear layers of the blocks are rounded; embeddings, norms and the unembedding are not. A model
that was saved quantised says so in its configuration, and transformers reads it in its own way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from interp.errors import SubjectError

Quantization = Literal["int8", "int4"]

PACKAGES = {
    ("int8", "cpu"): "torchao",
    ("int8", "cuda"): "torchao",
    ("int4", "cpu"): "torchao",
    ("int4", "cuda"): "bitsandbytes",
}
"""What rounds weights to so many bits on a kind of device. Not bitsandbytes to 8: it rounds
activations as well, by scales that depend on what else is in a batch (0.02 to 0.05 in parity)."""

_GROUP = 32
"""Weights of a row that share a scale in 4 bits on a CPU; fewer where a row's length is no multiple
of it."""


def check(
    model: str, bits: Quantization | None, device: torch.device, hub: Mapping[str, Any]
) -> str | None:
    """The method of a model that was saved quantised; a `SubjectError` where transformers has none
    of its name, or where weights cannot be rounded as they are to be."""
    if bits is not None:
        package_for(bits, device)
        if hub.get("gguf_file"):
            raise SubjectError("--quantization cannot round a GGUF file: leave one of them away")
    method = saved_method(model, **hub)
    if method is None:
        return None
    if not any(known.startswith(method) for known in AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise SubjectError(f"{model} is quantised by {method}, which transformers cannot read")
    if bits is not None:
        raise SubjectError(f"{model} is quantised by {method} already: leave --quantization away")
    if method == "bitsandbytes" and device.type == "cpu":
        raise SubjectError(f"{model} is quantised by {method}, which is measured on a GPU alone")
    return method


def package_for(bits: Quantization, device: torch.device) -> str:
    """The package that rounds weights to so many bits on a device; a `SubjectError` where none
    does, or it is missing."""
    package = PACKAGES.get((bits, device.type))
    if package is None:
        raise SubjectError(f"--quantization: on cpu or cuda, not on {device}")
    if find_spec(package) is None:
        raise SubjectError(
            f"--quantization {bits} on {device} needs {package}: pip install {package}"
        )
    return package


def rounding(bits: Quantization, device: torch.device, dtype: torch.dtype, model: nn.Module) -> Any:
    """How transformers is told to round the weights of `model`, whose values are not looked at."""
    if package_for(bits, device) == "bitsandbytes":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if bits == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    widths = [part.in_features for part in model.modules() if isinstance(part, nn.Linear)]
    four: Any = torch.int4  # type: ignore[attr-defined]
    group = PerGroup(math.gcd(_GROUP, *widths))
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=four, granularity=group))


def saved_method(model: str, **hub: Any) -> str | None:
    """How the weights of a saved model are quantised; None where they are not, or where that
    cannot be read."""
    try:
        fields, _ = PreTrainedConfig.get_config_dict(model, **hub)
    except Exception:
        return None
    saved = fields.get("quantization_config")
    return str(saved.get("quant_method", "an unnamed method")) if saved else None


@contextlib.contextmanager
def readable(hf: Any) -> Iterator[None]:
    """Plain zeros, which take no memory, stand for all packed weights while inside.

    TransformerBridge cuts copies out of fused projections when it is booted, which packed weights
    do not allow; `fused.mend` puts slices of the live module's output in place of the copies.
    """
    packed = [
        (part, part.weight)
        for part in hf.modules()
        if isinstance(part, nn.Linear) and rounded(part.weight)
    ]
    try:
        for part, weight in packed:
            zero = torch.zeros((), dtype=hf.dtype, device=weight.device)
            part.weight = nn.Parameter(zero.expand(part.out_features, part.in_features))
        yield
    finally:
        for part, weight in packed:
            part.weight = weight


def inner(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: itself, or the numbers and scales of a packed
    one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.detach()
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from inner(getattr(tensor, name))


def unpacked(tensor: Tensor) -> Tensor:
    """A matrix as the numbers that its packed ones stand for; a plain one as it is."""
    if not rounded(tensor):
        return tensor.detach()
    if not hasattr(tensor, "dequantize") or not tensor.is_floating_point():
        raise SubjectError("the weights are packed in a form that cannot be read as a matrix")
    return tensor.detach().dequantize()


def rounded(tensor: Tensor) -> bool:
    """Whether a parameter's numbers are packed."""
    return hasattr(tensor, "__tensor_flatten__") or not tensor.is_floating_point()
