"""One model with its tokenizer and mounted adapters, hooked and parity-checked.

    conditions = {"base": Base(), "lora": Lora("adapters/opposite")}
    subject = load("path/to/model", conditions, probe=["big ->"])
    cache = subject.prefill(subject.settings["lora"])
    logits = subject.run(subject.settings["lora"], batch, cache, {Site("resid_post", 2): read})

One copy of the base weights serves every condition. Adapters are mounted by peft first, then
TransformerBridge is booted on the same modules, its stale fused projections are made live, and
`parity` compares every condition with plain Hugging Face + peft before `load` returns.
"""

from interp.batch import Batch
from interp.subject.held import Held
from interp.subject.opening import load
from interp.subject.subject import Hook, Subject

__all__ = ["Batch", "Held", "Hook", "Subject", "load"]
