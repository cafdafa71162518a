"""A chunk waits for its device as often in a deep model as in a shallow one.

What makes the host wait on a GPU (a number read from a tensor, a count of non-zeros) can be counted
on any device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interp.conditions import Base, Lora, Prompt
from interp.queries import Query, encode
from interp.subject import load
from interp.sweep import measure_chunk
from tests.measures.test_noise import planned
from tests.tiny_models import CONFIGS, all_targets, save_adapter, save_random_model, tokenizer

WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
}


class Counting(TorchDispatchMode):
    """Counts the operations whose result the host must have before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in WAITING
        return func(*args, **(kwargs or {}))


def waits(architecture: str, n_layers: int, folder: Path) -> int:
    kind, settings = CONFIGS[architecture]
    words = tokenizer("llama")
    deeper: dict[str, Any] = {"num_hidden_layers": n_layers}
    if kinds := settings.get("layer_types"):
        deeper["layer_types"] = (kinds * n_layers)[:n_layers]
    model = save_random_model(kind, settings | deeper, folder / "model", words=words)
    lora = save_adapter(model, folder / "lora", all_targets(architecture))
    conditions = {"base": Base(), "prompt": Prompt("hot is cold. "), "lora": Lora(lora)}
    subject = load(model, conditions, ["up is"], device="cpu")
    queries = encode([Query("up is", answer=" down"), Query("a hill is")], subject.tokenizer)
    pairs = (("prompt", "lora"), ("prompt", "base"), ("lora", "base"))
    plan = planned(subject, pairs=pairs, certified=pairs)
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    with Counting() as counting:
        measure_chunk(subject, plan, queries, 0, caches)
    return counting.count


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_more_layers_are_no_more_waits(architecture: str, tmp_path: Path) -> None:
    shallow, deep = (waits(architecture, n, tmp_path / str(n)) for n in (3, 6))
    assert 0 < shallow == deep
