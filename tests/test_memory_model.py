"""The batch size follows from what a query takes: the model of it is held against a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from interp.capture import MEMORY_MODEL_FACTOR

CHILD = """
import sys
from pathlib import Path
import torch
from interp import Experiment
from interp.capture import bytes_per_query, chunk_size
from interp.conditions import Base, Lora, Prompt
from interp.memory import peak_memory
from interp.design import Design
from interp.organism import ADAPTERS, MODEL, QUERIES
from interp.preparing import make_plan
from interp.queries import Encoded
from interp.subject import load
from interp.sweep import measure_chunk

torch.set_num_threads(1)
before, length = map(int, sys.argv[1:])
conditions = {
    "base": Base(),
    "prompt": Prompt(text="hot " * before, separator=" "),
    "lora": Lora(str(ADAPTERS / "lora_0")),
}
subject = load(str(MODEL), conditions, ["hot ->", "up ->"])
queries = [Encoded(str(i), "", tuple(range(5 + i, 5 + i + length))) for i in range(64)]
paths = {"queries": Path("queries"), "out": Path("run")}
asked = Experiment(model=str(MODEL), adapter=("lora",), controls=(), **paths)
plan = make_plan(asked, subject, Design.of(conditions, {}, None), {"matched": queries}, {})
caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}

def most(size):
    with peak_memory(subject.device) as memory:
        measure_chunk(subject, plan, queries[:size], 0, caches)
    return memory.most - memory.before

most(1)
small, large = most(8), most(64)
print("RATIO", (large - small) / 56 / bytes_per_query(subject, length))
assert chunk_size(subject, length, 10 * bytes_per_query(subject, length)) == 10
"""


@pytest.mark.parametrize(("before", "length"), [(3, 32), (200, 32)])
def test_what_a_query_takes_is_within_the_factor(before: int, length: int) -> None:
    words = [sys.executable, "-c", CHILD, str(before), str(length)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout.split("RATIO")[1].split()[0])
    assert 1 / MEMORY_MODEL_FACTOR < ratio < MEMORY_MODEL_FACTOR
