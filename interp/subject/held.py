"""A model that is in memory already, in the place of one that is read from files.

    subject = load(Held.of(hf, tokenizer), conditions, probe=["big ->"])

Hooks and adapters are put on a copy of the modules, which shares the weights and takes no memory:
the model itself stays as it was and can be used, or loaded again. Train it only when the subject is
no longer needed, since the subject would then run with weights that parity has not seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.conditions import Condition, beyond_lora
from interp.errors import SubjectError
from interp.subject.kinds import check_config
from interp.subject.loading import DTYPES, check_finite
from interp.subject.tokenizers import check_brought, check_rows


@dataclass(frozen=True)
class Held:
    """A Hugging Face model with its head, and its tokenizer; make one with `Held.of`."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, hf: Any, tokenizer: Any) -> Held:
        """A `SubjectError` for whatever else is given, and for a model that is spread over
        devices or has adapters in it."""
        if not isinstance(hf, PreTrainedModel):
            raise SubjectError(
                f"a model is a folder, a hub id or a Hugging Face model, not {type(hf).__name__}"
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
            given = "none" if tokenizer is None else type(tokenizer).__name__
            raise SubjectError(f"a model in memory needs its fast tokenizer beside it, not {given}")
        held = cls(hf, tokenizer)
        held._check()
        return held

    @property
    def name(self) -> str:
        """The folder or hub id that it was read from; its class where it was made in memory."""
        return self.hf.name_or_path or type(self.hf).__name__

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> str:
        return str(self.hf.dtype).removeprefix("torch.")

    def _check(self) -> None:
        from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

        hf = self.hf
        check_config(self.name, type(hf).__name__, hf.config)
        if any(isinstance(module, BaseTunerLayer) for module in hf.modules()):
            raise SubjectError(
                f"{self.name} has adapters in it: take them out (peft_model.unload()), and give "
                "their folder as lora"
            )
        if any(isinstance(module, GeneralizedComponent) for module in hf.modules()):
            raise SubjectError(f"{self.name} is hooked by TransformerLens already: open it again")
        if hf.get_output_embeddings() is None:
            raise SubjectError(
                f"{type(hf).__name__} has no unembedding: open it with AutoModelForCausalLM"
            )
        devices = {parameter.device for parameter in hf.parameters()}
        if len(devices) > 1 or torch.device("meta") in devices:
            where = ", ".join(sorted(map(str, devices)))
            raise SubjectError(f"{self.name} is spread over {where}: it must be on one device")
        if self.dtype not in DTYPES:
            raise SubjectError(f"{self.name} is in {self.dtype}: use one of {', '.join(DTYPES)}")
        check_finite(self.name, hf)

    @property
    def _rows(self) -> int:
        embed: Any = self.hf.get_input_embeddings()
        return len(embed.weight)

    def words(self, conditions: Iterable[Condition], **hub: Any) -> PreTrainedTokenizerBase:
        """The tokenizer; a `SubjectError` where an adapter or a fine-tune brings another, or where
        the model does not embed all of its tokens."""
        name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        check_brought(self.tokenizer, name, conditions, **hub)
        check_rows(self.tokenizer, name, self._rows, self.name)
        return self.tokenizer

    def modules(self) -> Any:
        """A copy of the modules that shares the weights, in evaluation mode and with eager
        attention."""
        copied = sharing(self.hf)
        copied.set_attn_implementation("eager")
        return copied.eval()

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Which weights are trained is afterwards what it was: peft freezes those it mounts on."""
        before = [(own, own.requires_grad) for own in self.hf.parameters()]
        try:
            yield
        finally:
            for own, wanted in before:
                own.requires_grad_(wanted)


def sharing(model: Any) -> Any:
    """A copy of a model's modules that has the very same parameters and buffers."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def parted(model: PeftModel, folder: Path) -> tuple[Any, str]:
    """The base of peft's model, in modules of its own, and its active LoRA, saved into `folder`.

    A `SubjectError` for whatever is not the base as it was and a plain LoRA beside it.
    """
    active = model.active_adapters
    if len(active) != 1:
        raise SubjectError(f"one adapter of peft's model is active at a time, not {len(active)}")
    config = model.peft_config[active[0]]
    plain = {**vars(config), "peft_type": getattr(config.peft_type, "value", config.peft_type)}
    if more := beyond_lora(plain):
        raise SubjectError(
            f"peft's model has more than a LoRA ({more}): save it, and give base and adapter apart"
        )
    model.save_pretrained(str(folder), selected_adapters=active)
    inner = folder / active[0]
    base = sharing(model)
    return base.unload(), str(inner if inner.is_dir() else folder)
