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
from itertools import chain
from typing import Any

from interp.subject.adapters import Adapter, fitting, mount


@dataclass(frozen=True)
class Plain:
    """A plain Hugging Face model on which no adapter is mounted, and the name of its base."""

    hf: Any
    base_name: str
    allow_other_base: bool = False

    @contextmanager
    def under(self, adapters: Sequence[tuple[Adapter, float]]) -> Iterator[Any]:
        """The model as it is, or peft's own model with these (adapter, scale) pairs active.

        `PeftModel.from_pretrained` and, for further adapters, `load_adapter` and `set_adapter`
        mount the folders on a copy of the modules that shares the weights: no other adapter is
        beside them, and `hf` stays as it is. There is no folder for a scale other than 1 nor for a
        random LoRA: a saved-out one stands in for it (`adapters.source_of`).
        """
        if not adapters:
            yield self.hf
            return
        weights = chain(self.hf.parameters(), self.hf.buffers())
        modules = copy.deepcopy(self.hf, {id(tensor): tensor for tensor in weights})
        peft, names = mount(
            modules, adapters, self.base_name, allow_other_base=self.allow_other_base
        )
        if len(names) > 1:
            together = " and ".join(str(adapter) for adapter, _ in adapters)
            with fitting(f"adapters {together} cannot act together"):
                peft.base_model.set_adapter(names, inference_mode=True)
        yield peft
