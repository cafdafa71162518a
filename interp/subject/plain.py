"""Plain peft, called as its users call it: what the parity test compares with.

    plain = Plain(hf, "gpt2")
    with plain.under([("adapters/opposite", 1.0)]) as model:
        model(input_ids=ids).logits         # PeftModelForCausalLM.__call__, hooks and all

Nothing here is shared with `adapters.active`, by which a subject switches between adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from interp.errors import SubjectError
from interp.subject.adapter_files import Adapter
from interp.subject.adapters import BaseValues, fitting, holding, mount
from interp.subject.quantization import inner

_CHUNK = 1 << 20
"""Numbers of 64 bits that a fingerprint takes in at a time."""


@dataclass(frozen=True)
class Plain:
    """A plain Hugging Face model on which no adapter is mounted, and the name of its base."""

    hf: Any
    base_name: str
    allow_other_base: bool = False

    @cached_property
    def _before(self) -> dict[str, int]:
        return parameter_fingerprints(self.hf)

    @contextmanager
    def under(self, adapters: Sequence[tuple[Adapter, float]]) -> Iterator[Any]:
        """The model as it is, or peft's own model with these (adapter, scale) pairs active.

        `PeftModel.from_pretrained` and, for further adapters, `load_adapter` and `set_adapter`
        mount the folders on a copy of the modules that shares the weights: no other adapter is
        beside them, and `hf` is as it was afterwards. There is no folder for a scale other than 1
        nor for a random LoRA: a saved-out one stands in for it (`adapter_files.source_of`).
        """
        if not adapters:
            yield self.hf
            return
        before = self._before  # taken before the first adapter is mounted
        weights = chain(self.hf.parameters(), self.hf.buffers())
        modules = copy.deepcopy(self.hf, {id(tensor): tensor for tensor in weights})
        mounted = mount(modules, adapters, self.base_name, allow_other_base=self.allow_other_base)
        who = " and ".join(str(adapter) for adapter, _ in adapters)
        now = parameter_fingerprints(self.hf)
        if changed := [name for name, value in before.items() if now[name] != value]:
            raise SubjectError(
                f"adapter {who} changes {len(changed)} tensors of the model itself when it is "
                f"mounted (first: {changed[0]}): merge it into a copy of the model, which is then "
                "a fine-tuned one"
            )
        values = _joined(mounted.rewritten, who)
        with holding(dict(self.hf.named_parameters()), values):
            with fitting(f"adapter {who} cannot act on {self.base_name}"), torch.no_grad():
                if len(mounted.names) > 1:
                    mounted.peft.base_model.set_adapter(mounted.names, inference_mode=True)
                mounted.peft(torch.zeros(1, 1, dtype=torch.long, device=self.hf.device))
            yield mounted.peft


def _joined(rewritten: Sequence[BaseValues], who: str) -> BaseValues:
    """All that several adapters write into base, each into parameters of its own."""
    values: dict[str, Tensor] = {}
    for own in rewritten:
        if twice := own.keys() & values.keys():
            raise SubjectError(f"adapters {who} cannot act together: both rewrite {min(twice)}")
        values |= own
    return values


def parameter_fingerprints(hf: Any) -> dict[str, int]:
    """Parameter -> a 64-bit number that a change of any of its bits changes."""
    draw = torch.Generator().manual_seed(0)
    longest = max((sum(part.nbytes for part in inner(p)) for p in hf.parameters()), default=0)
    words = min(_CHUNK, longest // 8 + 1)
    odd = torch.randint(-(1 << 62), 1 << 62, (words,), generator=draw) * 2 + 1
    odd = odd.to(hf.device)
    return {name: _fingerprint(parameter, odd) for name, parameter in hf.named_parameters()}


def _fingerprint(tensor: Tensor, odd: Tensor) -> int:
    """The sum of its bits, 64 at a time, times fixed random odd numbers, modulo 2^64."""
    raw = torch.cat([part.reshape(-1).view(torch.uint8) for part in inner(tensor)])
    whole = len(raw) // 8 * 8
    rest = torch.nn.functional.pad(raw[whole:], (0, 8 - len(raw) + whole)).view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for words in (*raw[:whole].view(torch.int64).split(_CHUNK), rest):
        total = total * 31 + (words * odd[: len(words)]).sum()
    return int(total)
