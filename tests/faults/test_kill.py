"""SIGKILL at any moment of a run, its report included: `--resume` ends in the same bytes.

`make faults` kills 20 runs; the suite two. Moments are drawn, the same ones every time; every
second one counts from the first chunk on disk, since measuring is a small part of so small a run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import in_child
from tiny_models import MODULES, save_adapter, save_model

from interp import study
from interp.config import Experiment
from interp.errors import RunError
from interp.report import write
from interp.runs.claiming import UNFINISHED, has_begun
from interp.runs.files import ANSWERS, ARRAYS, MANIFEST, QUERIES, REPORT, TABLE, TEMPORARY

KILLS = 20 if os.environ.get("INTERP_FAULTS") else 2
FILES = (TABLE, ARRAYS, QUERIES, ANSWERS, REPORT)


QUERIES_ASKED = ["hot is", "big is the", "up", "the river is wide", "lily said: yes"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    model = save_model("gpt2", folder / "model")
    save_adapter(model, folder / "lora", MODULES["gpt2"]["qkv"])
    (folder / "prompt.txt").write_text("the weather was mild")
    lines = [json.dumps({"text": text, "answer": "cold"}) for text in QUERIES_ASKED]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    return folder


def experiment(inputs: Path, out: Path, **fields: Any) -> Experiment:
    return Experiment(
        model=str(inputs / "model"), adapter=(str(inputs / "lora"),), out=out, controls=(),
        prompt_file=(inputs / "prompt.txt",), queries=inputs / "queries.jsonl", bootstrap=10,
        permutations=9, sample=0, preset="quick", batch_size=1, device="cpu", **fields,
    )  # fmt: skip


def whole(asked: Experiment) -> None:
    """A run and its report, as `interp diverge` makes them; its shards and parts are small."""
    study.run_study(asked)
    write(asked.out)


@pytest.fixture
def often_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.store.SHARD", 2)
    monkeypatch.setattr("interp.study.SHARD", 2)
    monkeypatch.setattr("interp.shards.KEEP_EVERY", 0.0)


def contents(out: Path) -> dict[str, object]:
    """All that a run consists of, but for the time at which it was made."""
    manifest = json.loads((out / MANIFEST).read_text())
    for name in ("created", "sha256 of this manifest"):
        del manifest[name]
    figures = {p.name: p.read_bytes() for p in (out / "figures").iterdir()}
    return {
        **{name: (out / name).read_bytes() for name in FILES},
        **{f"manifest: {name}": json.dumps(entry) for name, entry in manifest.items()},
        "order of the manifest": list(manifest),
        "figures": figures,
    }


@pytest.mark.usefixtures("often_kept")
def test_runs_that_are_killed_at_any_moment_end_in_the_same_bytes(
    inputs: Path, tmp_path: Path
) -> None:
    out, began = tmp_path / "run", time.monotonic()
    in_child(lambda: whole(experiment(inputs, out)))
    took, expected = time.monotonic() - began, contents(out)
    stages: list[str] = []
    for number, moment in enumerate(np.random.default_rng(0).uniform(0.05, 1.0, KILLS) * took):
        shutil.rmtree(out)
        work = partial(whole, experiment(inputs, out))
        if number % 2:
            killed = in_child(work, moment / 10, since=lambda: has_begun(out))
        else:
            killed = in_child(work, moment)
        stages.append(_stage(out) if killed else "not in time")
        if (out / MANIFEST).exists() and not has_begun(out):
            in_child(lambda: write(out))
        else:
            in_child(lambda: whole(experiment(inputs, out, resume=True)))
        found = contents(out)
        assert [name for name in expected if found[name] != expected[name]] == [], stages[-1]
        assert not (out / UNFINISHED).exists()
        assert not list(out.glob(f"**/{TEMPORARY}*"))
    counted = {stage: stages.count(stage) for stage in dict.fromkeys(stages)}
    print(f"\n{KILLS} SIGKILLs ({counted}): files, report and figures equal to the byte")


def _stage(out: Path) -> str:
    if (out / REPORT).exists():
        return "report there"
    if (out / MANIFEST).exists():
        return "written"
    return "measuring" if has_begun(out) else "before the first shard"


def test_a_killed_overwrite_leaves_the_old_run_whole_and_says_so(
    inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    study.run_study(experiment(inputs, out))
    before = {name: (out / name).read_bytes() for name in (TABLE, ARRAYS, MANIFEST)}

    def dies(what: str, newly: int, total: int) -> None:
        if what == "matched":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run_study(experiment(inputs, out, overwrite=True, seed=1), dies)
    with pytest.raises(RunError, match=r"finished run, which is whole, .*--overwrite --resume"):
        study.run_study(experiment(inputs, out))
    assert {name: (out / name).read_bytes() for name in before} == before
