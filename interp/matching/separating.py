"""The separating toy (`interp.toy`), examined: what its committed prefix and LoRA can do.

seen = examined(size=500, seed=0)
seen["lora", toy.NEW_TASK].mean() - seen["prefix", toy.NEW_TASK].mean()
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp import toy
from interp.capture import chunks
from interp.conditions import Base, Condition, Lora, Prefix
from interp.matching.recall import answered_right
from interp.queries import Encoded
from interp.subject import Batch, load
from interp.subject.loading import threads_for

_ADAPTERS: dict[str, tuple[Path, type[Lora | Prefix]]] = {
    "prefix": (toy.PREFIX, Prefix),
    "lora": (toy.LORA, Lora),
    "old_prefix": (toy.OLD_PREFIX, Prefix),
}


def examined(size: int, seed: int) -> dict[tuple[str, str], Float[ndarray, " example"]]:
    """(condition, task) -> 1 for every held-out input whose whole output is right, else 0: base and
    the adapters of the new task on it, and base and the old task's prefix on the old one."""
    conditions: dict[str, Condition] = {"base": Base()}
    conditions |= {name: kind(str(folder)) for name, (folder, kind) in _ADAPTERS.items()}
    subject = load(str(toy.MODEL), conditions, [" ".join("0" * toy.LENGTH)])
    found = {}
    with threads_for(subject.n_parameters):
        for name, setting in subject.settings.items():
            cache = subject.prefill(setting)
            for task in _tasks(name):
                parts = []
                for some in chunks(_queries(size, seed, task), 128):
                    whole = [Encoded(q.key, "", (*q.ids, *q.answer_ids[:-1])) for q in some]
                    logits = subject.run(setting, Batch.of(whole, subject.device), cache)
                    parts.append(answered_right(some, logits))
                found[name, task] = np.concatenate(parts)
    return found


def _tasks(name: str) -> tuple[str, ...]:
    if name == "base":
        return (toy.NEW_TASK, toy.OLD_TASK)
    return (toy.OLD_TASK,) if name == "old_prefix" else (toy.NEW_TASK,)


def _queries(size: int, seed: int, task: str) -> list[Encoded]:
    """Inputs without their first token, which a condition brings, and the outputs as answers."""
    end = 1 + toy.LENGTH
    return [
        Encoded(f"{task}:{i}", "", tuple(row[1:end]), tuple(row[end:]))
        for i, row in enumerate(toy.exam(seed, size, task, told=False).tolist())
    ]
