"""The interchange of a subspace on plain Hugging Face + peft: no cache, no padding, one query.

there = Plainly(model, adapter, prefix=(1, 2))
kl = divergence(there, base, query, layer=1, put=lambda own, given: given)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.queries import Encoded

Put = Callable[[Tensor, Tensor], Tensor]
"""From the target's and the source's state `[pos, d_model]` to what takes the target's place."""


@dataclass(frozen=True)
class Plainly:
    """One condition: a model, perhaps with a LoRA, and what stands before a query."""

    model: str
    adapter: str | None = None
    prefix: tuple[int, ...] = ()

    def opened(self) -> Any:
        """The model, which is as it was after every run."""
        return _opened(self.model, self.adapter)

    def run(
        self, query: Encoded, layer: int, change: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits `[row, d_vocab]` (float64) at the rows that predict the answer, and the state of
        the query's own rows behind a block, which `change` may replace."""
        hf = self.opened()
        start, seen = len(self.prefix), []

        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            own = hidden[0, start:]
            seen.append(own)
            if change is None:
                return None
            new = torch.cat([hidden[0, :start], change(own)])[None]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = blocks_of(hf)[layer].register_forward_hook(hook)
        try:
            logits = hf(input_ids=torch.tensor([[*self.prefix, *query.forced]])).logits[0]
        finally:
            handle.remove()
        first = start + len(query.ids) - 1
        return logits[first:].double(), seen[0]


@functools.lru_cache(maxsize=4)
def _opened(model: str, adapter: str | None) -> Any:
    hf = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    return PeftModel.from_pretrained(hf, adapter).eval() if adapter else hf


def blocks_of(hf: Any) -> Any:
    """The decoder's blocks."""
    inner = hf.get_base_model() if isinstance(hf, PeftModel) else hf
    body = getattr(inner, "transformer", None) or inner.model
    return body.h if hasattr(body, "h") else body.layers


def divergence(source: Plainly, target: Plainly, query: Encoded, layer: int, put: Put) -> Tensor:
    """`KL(p_source ‖ p_patched)` of one query, summed over its answer's rows, by the definition."""
    with torch.no_grad():
        wanted, given = source.run(query, layer)
    said, _ = target.run(query, layer, lambda own: put(own, given))
    p = wanted.softmax(-1)
    return (p * (wanted.log_softmax(-1) - said.log_softmax(-1))).sum()
