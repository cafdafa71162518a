"""Where memory runs out, batches halve, no result is lost, and the run says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp import Experiment, capabilities, cli, load_run, sweep
from interp.errors import RunError
from interp.halving import Halving, memory_errors, sizes_of
from interp.measures.tally import Key, Tally
from interp.memory import is_out_of_memory, peak_memory
from interp.statistics import PerQuery
from interp.study import run_study
from tests.studies import quick_study

TOO_MUCH = 1 << 58
"""Bytes that no allocator has."""

SQUARES = Key("squares", "", "", "")


def squares(fitting: int) -> Any:
    """A measure that takes more memory than there is for more than so many queries at once."""

    def measure(numbers: Sequence[int]) -> Tally:
        torch.empty(TOO_MUCH if len(numbers) > fitting else 1, dtype=torch.uint8)
        return {SQUARES: PerQuery.of(numbers, np.array([[float(i * i)] for i in numbers]))}

    return measure


@pytest.mark.parametrize("fitting", [1, 2, 3, 5, 8])
def test_what_does_not_fit_is_measured_in_halves(
    fitting: int, caplog: pytest.LogCaptureFixture
) -> None:
    batches = Halving(8)
    first, second = (batches.measured(range(i, i + 8), squares(fitting)) for i in (0, 8))
    for start, tally in ((0, first), (8, second)):
        kept = tally[SQUARES]
        assert isinstance(kept, PerQuery)
        assert kept.compute()[:, 0].tolist() == [i * i for i in range(start, start + 8)]
    ran = {1: 1, 2: 2, 3: 2, 5: 4, 8: 8}[fitting]
    assert batches.size == ran
    assert sizes_of(first) == sizes_of(second) == {ran: 8}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == {1: 3, 2: 2, 3: 2, 5: 1, 8: 0}[fitting]  # none for the second eight
    assert all("going on with" in line for line in lines)


def test_what_was_measured_before_memory_ran_out_is_kept() -> None:
    """Later queries take more: those before them are not measured again."""
    seen: list[int] = []

    def measure(numbers: Sequence[int]) -> Tally:
        found = squares(8 if numbers[0] < 8 else 1)(numbers)
        seen.extend(numbers)
        return found

    batches, tally = Halving(8), {}
    for shard in (range(8), range(8, 12)):
        tally[shard] = batches.measured(shard, measure)
    assert seen == list(range(12))
    assert [sizes_of(part) for part in tally.values()] == [{8: 8}, {1: 4}]


def test_a_query_that_does_not_fit_alone_is_one_line() -> None:
    with pytest.raises(RunError, match=r"single query: ask for fewer measures") as raised:
        Halving(4).measured(range(4), squares(0))
    assert "\n" not in str(raised.value)


def test_other_errors_are_not_taken_for_it() -> None:
    def broken(_: Sequence[int]) -> Tally:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="size of tensor"):
        Halving(4).measured(range(4), broken)
    with pytest.raises(RuntimeError, match="tensor b"), memory_errors():
        broken([])


@pytest.mark.parametrize("allocate", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_errors_of_real_allocators_are_known(allocate: Any) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate(TOO_MUCH // 8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(RunError, match="memory ran out"), memory_errors():
        allocate(TOO_MUCH // 8)


def test_the_largest_size_of_a_process_is_watched() -> None:
    with peak_memory(torch.device("cpu")) as memory:
        torch.ones(50_000_000, dtype=torch.uint8)
    with peak_memory(torch.device("cpu")) as after:
        pass
    assert 40e6 < memory.most - memory.before < 90e6
    assert after.most - after.before < 20e6


# In a run ---------------------------------------------------------------------------------------


def study(out: Path, **fields: Any) -> Experiment:
    """Without geometry."""
    return quick_study(out, **{"sample": 0} | fields)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of more than three queries ask the allocator for what it has not."""
    measure = sweep.measure_chunk

    def measured(subject: Any, plan: Any, chunk: Any, first: int, caches: Any) -> Tally:
        torch.empty(TOO_MUCH if len(chunk) > 3 else 1, dtype=torch.uint8)
        return measure(subject, plan, chunk, first, caches)

    monkeypatch.setattr(sweep, "measure_chunk", measured)


def test_a_run_in_halves_is_the_run_of_that_batch_size(limited: None, tmp_path: Path) -> None:
    run = load_run(run_study(study(tmp_path / "a", batch_size=4)))
    same = load_run(run_study(study(tmp_path / "b", batch_size=2)))
    assert run.manifest["batch_sizes"]["matched"] == [{"batch_size": 2, "queries": 10}]
    note = "memory ran out at 4 matched queries per batch; measured: 10 at 2"
    assert note in run.manifest["notes"]
    assert same.manifest["batch_sizes"] == run.manifest["batch_sizes"]
    assert not any("memory" in note for note in same.manifest["notes"])
    pd.testing.assert_frame_equal(run.table, same.table, check_exact=True)


def test_memory_that_runs_out_elsewhere_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it is tried what can be measured, this is not taken for the model's fault."""

    def observe(*_: Any, **__: Any) -> Any:
        return torch.empty(TOO_MUCH)

    monkeypatch.setattr(capabilities, "observe", observe)
    asked = study(tmp_path / "run")
    file = tmp_path / "experiment.yaml"
    file.write_text(asked.model_dump_json(exclude_defaults=True))
    assert cli.main(["diverge", str(file)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("interp: memory ran out")
    assert not (tmp_path / "run" / "manifest.json").exists()


CHILD = """
import re, resource, sys
from pathlib import Path
import torch
from interp import Experiment
from interp.engines import InProcess
from interp.halving import Halving, sizes_of
from interp.measures.tally import absorb_
from interp.memory import peak_memory
from interp.preparing import inputs_of, open_subject, prepare
from interp.store import Store
from interp.sweep import measure_chunk

torch.set_num_threads(1)
asked = Experiment.model_validate_json(sys.argv[1])
built, queries, _ = inputs_of(asked)
subject = open_subject(asked, built, queries["matched"])
folder = Path(sys.argv[2])
prepared = prepare(asked, subject, InProcess(subject), built, queries, Store(folder))

queries = prepared.groups["matched"]
caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
parts = []

def chunk(numbers):
    some = [queries[i] for i in numbers]
    found = measure_chunk(subject, prepared.plan, some, numbers[0], caches)
    parts.append(numbers)
    return found

def limit(more):
    size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    soft = resource.RLIM_INFINITY if more is None else size + more
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))

chunk(range(48))  # what is made once is there from now on
with peak_memory(torch.device("cpu")) as memory:
    chunk(range(48))
needed = memory.most - memory.before
parts.clear()
limit(needed // 3)
found = Halving(48).measured(range(48), chunk)
limit(None)
sizes, same = sizes_of(found), {}
assert sum(sizes.values()) == 48 and max(sizes) < 48, (needed, sizes)
for part in list(parts):
    absorb_(same, chunk(part))
for key, accumulator in same.items():
    for name, array in accumulator.arrays().items():
        assert array.tobytes() == found[key].arrays()[name].tobytes(), key
print("SIZE", min(sizes), "NEEDED", needed)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
def test_a_process_that_may_not_grow_goes_on_in_halves(tmp_path: Path) -> None:
    """It may take a third of what 48 queries at once need. Whatever it frees goes back at once, so
    that it must ask for it again."""
    asked = study(tmp_path / "run", limit=48, score_split=True, bootstrap=0).model_dump_json()
    words = [sys.executable, "-c", CHILD, asked, str(tmp_path)]
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=600, env=os.environ | returned
    )
    assert done.returncode == 0, done.stderr
    assert "memory ran out on 48 queries at once: going on with 24" in done.stderr
    assert "SIZE" in done.stdout
