"""Two workers of a local Ray: the same bytes as in process, also where one is killed; no wait
without an end, and nothing left running."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray_trial
import ray_work
from command_line import failed
from tiny_models import MODULES, save_adapter, save_model

from interp import cli
from interp.cli import series
from interp.config import Distillation, Experiment
from interp.engines.on_ray import RESTARTS, Request, ray_workers
from interp.errors import QueryError, RunError
from interp.matching.seeds import distil_seeds
from interp.patching.run import patch
from interp.patching.settings import Patching
from interp.runs.files import ANSWERS, ARRAYS, INTERCHANGE, QUERIES, TABLE
from interp.store import FOLDER
from interp.study import run_study

pytest.importorskip("ray")

TEXTS = ["hot is", "big is the", "up", "the river is wide", "lily said: yes", "no", "a hill is"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray with two CPUs in this process, and its end."""
    beside = [str(Path(ray_work.__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as context:
        context.setenv("RAY_USAGE_STATS_ENABLED", "0")
        context.setenv("PYTHONPATH", os.pathsep.join(filter(None, beside)))  # of the workers
        import ray

        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        yield
        ray.shutdown()


def workers() -> dict[int, str]:
    """Process id and title of our workers."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:  # it has ended meanwhile
            continue
        if "_Actor" in title:
            found[process.pid] = title
    return found


def none_left() -> bool:
    """Whether all workers end within a few seconds."""
    deadline = time.monotonic() + 20
    while workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not workers()


# The engine alone -------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("begin", [ray_work.squares, ray_work.deadly])
def test_every_item_is_done_once_whoever_dies(begin: Any, tmp_path: Path) -> None:
    ticks: list[int] = []
    with ray_workers(Request(2), partial(ray_work.opened_in, tmp_path)) as engine:
        found = dict(engine.run(begin, range(7), ticks.append))
        again = dict(engine.run(ray_work.squares, [9], ticks.append))
    assert {number: result.tolist() for number, result in found.items()} == {
        number: [number, number**2] for number in range(7)
    }
    assert again[0].tolist() == [9, 81]
    assert sum(ticks) == sum(range(7)) + 9
    found[0][0] = 5  # as writable as if made here
    killed = begin is ray_work.deadly
    assert (tmp_path / "dead").exists() == killed
    assert len(list(tmp_path.glob("opened *"))) == 2 + killed
    assert none_left()


def only_here() -> Any:
    """Work of a module that no worker can import."""
    module = types.ModuleType("only_here")
    exec("def begin(context): pass", vars(module))
    sys.modules["only_here"] = module
    return module.begin


@pytest.mark.usefixtures("cluster")
def test_faults_in_a_worker_are_those_of_its_work(tmp_path: Path) -> None:
    with ray_workers(Request(1), partial(ray_work.opened_in, tmp_path)) as engine:
        with pytest.raises(QueryError, match=r"^query 3 cannot be used$"):
            list(engine.run(ray_work.refusing, [3], print))
        with pytest.raises(ZeroDivisionError):
            list(engine.run(ray_work.broken, [3], print))
        with pytest.raises(RunError, match=r"^.*No module named 'only_here'.*same interp$"):
            list(engine.run(only_here(), [3], print))
        assert len(dict(engine.run(ray_work.squares, [3], lambda _: None))) == 1


@pytest.mark.usefixtures("cluster")
def test_work_that_kills_every_worker_ends_in_one_line(tmp_path: Path) -> None:
    with (
        ray_workers(Request(1), partial(ray_work.opened_in, tmp_path)) as engine,
        pytest.raises(RunError, match="Ray's logs") as caught,
    ):
        list(engine.run(ray_work.always_deadly, [3], print))
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.glob("opened *"))) == 1 + RESTARTS


@pytest.mark.usefixtures("cluster")
def test_who_is_busy_for_longer_than_the_limit_is_alive(tmp_path: Path) -> None:
    with ray_workers(Request(1), partial(ray_work.opened_in, tmp_path)) as patient:
        assert dict(patient.run(ray_work.squares, [0], print))  # imported and opened
        patient.request = Request(1, timeout=2.0)  # what follows takes longer
        assert dict(patient.run(ray_work.slow, [7], print)) == {0: 7}


@pytest.mark.usefixtures("cluster")
def test_ctrl_c_leaves_no_worker(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        assert len(workers()) == 2
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        ray_workers(Request(2), partial(ray_work.opened_in, tmp_path)) as engine,
    ):
        list(engine.run(ray_work.slow, range(9), interrupt))
    assert none_left()


# Whole runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A chat whose answers are written, with a control that is fitted."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("inputs")
    model = save_model("gpt2", folder / "model")
    words = AutoTokenizer.from_pretrained(model)
    words.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    words.save_pretrained(model)
    (folder / "system.txt").write_text("people talked")
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    return Experiment(
        model=model,
        adapter=(save_adapter(model, folder / "lora", MODULES["gpt2"]["qkv"]),),
        system_file=(folder / "system.txt",),
        queries=folder / "queries.jsonl",
        out=folder / "none",
        chat=True,
        answer_tokens=3,
        answers_from="prompt",
        controls=("logit_bias", "random_lora"),
        bootstrap=20,
        permutations=9,
        sample=4,
        batch_size=1,
        device="cpu",
    )


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.store.SHARD", 2)


def into(experiment: Experiment, out: Path, **fields: Any) -> Experiment:
    return experiment.model_copy(update={"out": out, **fields})


def files(out: Path, *names: str) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def here(asked: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in process."""
    out = tmp_path_factory.mktemp("runs") / "here"
    with pytest.MonkeyPatch.context() as context:
        context.setattr("interp.store.SHARD", 2)
        return run_study(into(asked, out))


@pytest.mark.usefixtures("cluster")
def test_a_run_whose_worker_is_killed_has_the_same_bytes(
    asked: Experiment, here: Path, tmp_path: Path
) -> None:
    counted: list[int] = []
    killed: set[int] = set()
    seen: set[int] = set()

    def progress(stage: str, newly: int, total: int) -> None:
        seen.update(workers())
        if stage == "matched":
            counted.append(newly)
            if not killed:
                killed.add(min(pid for pid, title in workers().items() if "work" in title))
                os.kill(min(killed), signal.SIGKILL)

    out = run_study(into(asked, tmp_path / "run", engine="ray", workers=2), progress)
    names = (TABLE, ARRAYS, QUERIES, ANSWERS)
    assert files(out, *names) == files(here, *names)
    assert sum(counted) == len(TEXTS)
    assert len(killed) == 1
    assert len(seen) == 3  # two workers, and the one that took a place
    assert not (out / FOLDER).exists()
    assert none_left()


@pytest.mark.usefixtures("cluster")
def test_an_interchange_has_the_same_bytes(here: Path, tmp_path: Path) -> None:
    found = {}
    for engine in ("in-process", "ray"):
        run = Path(shutil.copytree(here, tmp_path / engine))
        settings = Patching(
            run=run,
            bootstrap=10,
            permutations=9,
            positions=1,
            limit=4,
            greedy=2,
            engine=engine,
            workers=1 if engine == "ray" else None,
        )
        found[engine] = files(patch(settings), INTERCHANGE)
    assert found["ray"] == found["in-process"]


@pytest.mark.usefixtures("cluster")
def test_loras_of_several_seeds_have_the_same_bytes(asked: Experiment, tmp_path: Path) -> None:
    def trained(**fields: Any) -> dict[str, bytes]:
        out = tmp_path / fields["engine"]
        settings = Distillation(
            model=asked.model,
            system_file=asked.system_file[0],
            chat=True,
            answer_tokens=2,
            queries=asked.queries,
            out=out,
            seeds=2,
            epochs=2,
            device="cpu",
            **fields,
        )
        found = distil_seeds(settings)
        assert list(found) == [out / "lora_0", out / "lora_1"]
        assert all(
            signed["n"] == len(TEXTS) for certificates in found.values() for signed in certificates
        )
        return {f.name: (f / "adapter_model.safetensors").read_bytes() for f in found}

    here, there = trained(engine="in-process"), trained(engine="ray", workers=2)
    assert there == here
    assert len(set(here.values())) == 2  # seeds differ


@pytest.mark.usefixtures("cluster")
def test_experiments_leave_the_same_findings_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(series, "trial_named", ray_trial.TRIALS.__getitem__)
    kept = {}
    for flags in ([], ["--engine", "ray", "--workers", "1"]):
        words = ["experiment", "all", "--only", *ray_trial.TRIALS, "--seed", "5", *flags]
        assert cli.main([*words, "--out", str(tmp_path / "all")]) == 2
        error = capsys.readouterr().err
        assert "generalisation: FAILED: no queries; give --queries, " in error
        assert "golden_zone: done, " in error
        findings = [
            tmp_path / "all" / "golden_zone" / name for name in ("finding.json", "table.csv")
        ]
        kept[len(flags)] = [file.read_bytes() for file in findings]
        shutil.rmtree(tmp_path / "all")
    assert kept[0] == kept[4]


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_there_is_room_for_are_one_line(
    asked: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["diverge", "--model", asked.model, "--adapter", *asked.adapter]
    words += ["--queries", str(asked.queries), "--controls", "--out", str(tmp_path)]
    line = failed([*words, "--engine", "ray", "--workers", "3", "--timeout", "5"], capsys)
    silent = r"asked for 3 workers with 1 CPU each; [1-3] of 3 gave no sign of life within 5 s"
    assert re.search(silent, line)  # all three, where the two that are placed start slowly
    assert "The cluster has 2 CPU (0 free)" in line
    assert none_left()
