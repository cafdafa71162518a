"""Unfinished runs: what was done survives, what was damaged is done again, and the bits agree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import in_child
from tiny_models import MODULES, save_adapter, save_model

from interp import study, sweep
from interp.cli import OF_RUN, resume_hint
from interp.config import Experiment
from interp.errors import RunError, SubjectError
from interp.measures.tally import Key, Tally
from interp.runs.files import ARRAYS, MANIFEST, TABLE
from interp.runs.view import load_run
from interp.statistics import PerQuery, Ratio
from interp.store import FOLDER, Store

SETTINGS = {"model": "m", "seed": 0}


# The store alone --------------------------------------------------------------------------------


def some_tally(seed: int = 0) -> Tally:
    generator = np.random.default_rng(seed)
    numerator, denominator = generator.normal(size=(2, 5, 3, 2))
    numerator[0, 0] = np.nan, -0.0
    return {
        Key("cosine", "a", "b", "z"): Ratio(numerator, denominator, np.arange(6).reshape(3, 2)),
        Key("certificate", "a", "", "output"): PerQuery.of([0, 1], generator.normal(size=(2, 2))),
    }


def bits(tally: Tally | None) -> Any:
    assert tally is not None
    return {
        key: (type(a), {n: (v.shape, v.dtype, v.tobytes()) for n, v in a.arrays().items()})
        for key, a in sorted(tally.items())
    }


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run folder with two finished shards."""
    with Store.open(tmp_path, SETTINGS) as store:
        store.put("matched-00000", some_tally(0))
        store.put("matched-00001", some_tally(1))
    return tmp_path


def shards(out: Path) -> list[Path]:
    return sorted((out / FOLDER).glob("*.safetensors"))


def test_shards_survive_to_the_bit(begun: Path) -> None:
    with Store.open(begun, SETTINGS, resume=True) as store:
        assert bits(store.get("matched-00000")) == bits(some_tally(0))
        assert bits(store.get("matched-00001")) == bits(some_tally(1))
        assert store.get("matched-00002") is None
        assert store.get("heldout-00000") is None


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_shard_is_not_found_and_makes_room(begun: Path, share: float) -> None:
    content = shards(begun)[0].read_bytes()
    shards(begun)[0].write_bytes(content[: int(share * len(content))])
    with Store.open(begun, SETTINGS, resume=True) as store:
        assert store.get("matched-00000") is None
        store.put("matched-00000", some_tally(0))
        assert bits(store.get("matched-00000")) == bits(some_tally(0))
        assert store.get("matched-00001") is not None
    assert len(shards(begun)) == 2


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_one_flipped_byte_makes_a_shard_not_found(begun: Path, place: float) -> None:
    content = bytearray(shards(begun)[0].read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    shards(begun)[0].write_bytes(content)
    with Store.open(begun, SETTINGS, resume=True) as store:
        assert store.get("matched-00000") is None


def test_a_shard_under_another_s_name_is_not_found(begun: Path) -> None:
    first, second = shards(begun)
    first.write_bytes(second.read_bytes())
    with Store.open(begun, SETTINGS, resume=True) as store:
        assert store.get("matched-00000") is None


def test_temporary_files_of_a_killed_run_are_cleaned(begun: Path) -> None:
    (begun / FOLDER / ".tmp-half").write_bytes(b"half a shard")
    with Store.open(begun, SETTINGS, resume=True) as store:
        assert store.get("matched-00000") is not None
    assert not list((begun / FOLDER).glob(".tmp-*"))


def test_finishing_leaves_nothing(begun: Path) -> None:
    with Store.open(begun, SETTINGS, resume=True) as store:
        store.finish()
    assert list(begun.iterdir()) == []


def test_an_unfinished_run_is_not_taken_for_a_new_one(begun: Path) -> None:
    with pytest.raises(RunError, match=r"--resume.*--overwrite"), Store.open(begun, SETTINGS):
        pass
    assert len(shards(begun)) == 2


def test_overwriting_starts_anew(begun: Path) -> None:
    with Store.open(begun, SETTINGS | {"seed": 1}, overwrite=True) as store:
        assert store.get("matched-00000") is None
    assert shards(begun) == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_not_written_over(tmp_path: Path, resume: bool) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    with (
        pytest.raises(RunError, match=r"finished run.*--overwrite"),
        Store.open(tmp_path, SETTINGS, resume=resume),
    ):
        pass


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"model": "n", "seed": 1}, "model, seed"),
        ({"limit": 5}, "limit"),
        ({"seed": None}, "seed"),
    ],
)
def test_resuming_with_other_settings_lists_the_fields(
    begun: Path, changed: dict[str, Any], named: str
) -> None:
    with (
        pytest.raises(RunError) as caught,
        Store.open(begun, SETTINGS | changed, resume=True),
    ):
        pass
    assert f"({named})" in str(caught.value)
    assert len(shards(begun)) == 2


def test_an_interrupted_overwrite_goes_on_as_the_command_line_says(begun: Path) -> None:
    """Ctrl-C prints a command; the settings it stands for must open the store."""
    (begun / MANIFEST).write_text("{}")  # the finished run that is being replaced
    hint = resume_hint(["diverge", "--out", str(begun), "--overwrite"]).split()
    flags = {flag: f"--{flag}" in hint for flag in ("resume", "overwrite")}
    with Store.open(begun, SETTINGS, **flags) as store:
        assert store.get("matched-00000") is not None


@pytest.mark.parametrize("below", ["run", "runs/run"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / below
    with pytest.raises(RunError, match="choose another --out") as caught, Store.open(out, {}):
        pass
    assert str(out) in str(caught.value)


# Other processes --------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from interp.store import Store
with Store.open(Path(sys.argv[1]), {"model": "m", "seed": 0}, resume=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_is_refused_until_the_first_is_dead(begun: Path) -> None:
    with child(HOLD, str(begun)) as first:
        assert first.stdout
        try:
            assert first.stdout.readline() == "held\n"
            for options in ({"resume": True}, {"overwrite": True}):
                with (
                    pytest.raises(RunError, match="another process is writing"),
                    Store.open(begun, SETTINGS, **options),
                ):
                    pass
            assert len(shards(begun)) == 2
        finally:
            first.kill()
        first.wait(30)
    with Store.open(begun, SETTINGS, resume=True) as store:
        assert store.get("matched-00000") is not None


def test_a_command_of_a_run_leaves_what_another_has_begun(tmp_path: Path) -> None:
    begun = {"command": "ladder", "seed": 0}
    with Store.open(tmp_path, begun) as store:
        store.put("matched-00000", some_tally())
    other = {"command": "patch", "seed": 0}
    for resume in (False, True):
        with (
            pytest.raises(RunError, match=r"unfinished `interp ladder` of it: end that first"),
            Store.open(tmp_path, other, resume=resume, overwrite=True),
        ):
            pass
    with Store.open(tmp_path, begun, resume=True, overwrite=True) as store:
        assert store.get("matched-00000") is not None
    (tmp_path / FOLDER / "settings.json").write_text("{}")
    with (
        pytest.raises(RunError, match=r"unfinished run that is to replace it: end that first"),
        Store.open(tmp_path, other, overwrite=True),
    ):
        pass


@pytest.mark.parametrize("command", OF_RUN)
def test_the_command_that_works_or_has_begun_is_named(command: str, tmp_path: Path) -> None:
    """Whatever else wants the run's folder: a new run, or another command of it."""
    settings = {"command": command, "seed": 0}
    with Store.open(tmp_path, settings) as store:
        store.put("matched-00000", some_tally())
        with (
            pytest.raises(RunError, match=f"another process .*`interp {command}`"),
            Store.open(tmp_path, SETTINGS, overwrite=True),
        ):
            pass
    (tmp_path / MANIFEST).write_text("{}")
    with (
        pytest.raises(RunError, match=f"an unfinished `interp {command}` of it: .*--resume"),
        Store.open(tmp_path, SETTINGS),
    ):
        pass


# Whole runs -------------------------------------------------------------------------------------


def killed_in_a_shard(experiment: Experiment) -> None:
    calls: list[int] = []

    def progress(group: str, done: int, total: int) -> None:
        if group == "matched":
            calls.append(done)
        if len(calls) == 3:  # the first shard is kept, the second is half done
            os.kill(os.getpid(), signal.SIGKILL)

    study.run_study(experiment, progress)


def killed_before_a_rename(experiment: Experiment) -> None:
    replace = os.replace

    def killing(source: Any, target: Any) -> None:
        if "matched-00001" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killing
    study.run_study(experiment)


QUERIES = ["hot is", "big is the", "up", "the river is wide", "lily said: yes"]


@pytest.fixture(scope="module")
def base_experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("inputs")
    model = save_model("gpt2", folder / "model")
    adapter = save_adapter(model, folder / "lora", MODULES["gpt2"]["qkv"])
    (folder / "prompt.txt").write_text("the weather was mild")
    lines = [json.dumps({"text": text, "answer": "cold"}) for text in QUERIES]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    return Experiment(
        model=model,
        adapter=(adapter,),
        prompt_file=(folder / "prompt.txt",),
        queries=folder / "queries.jsonl",
        out=folder / "none",
        controls=(),
        bootstrap=20,
        permutations=19,
        batch_size=1,
        device="cpu",
    )


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.store.SHARD", 2)


def into(experiment: Experiment, out: Path, **fields: Any) -> Experiment:
    return experiment.model_copy(update={"out": out, **fields})


def files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (TABLE, ARRAYS)}


@pytest.fixture(scope="module")
def whole(base_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.store.SHARD", 2)
        study.run_study(into(base_experiment, out))
    assert load_run(out).manifest["queries"] == {"matched": len(QUERIES)}
    assert not (out / FOLDER).exists()
    return out


@pytest.fixture
def uninterrupted(whole: Path) -> dict[str, bytes]:
    return files(whole)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first query of every chunk that is really measured."""
    seen: list[int] = []
    measure = sweep.measure_chunk

    def counting(subject: Any, plan: Any, chunk: Any, first: int, caches: Any) -> Tally:
        seen.append(first)
        return measure(subject, plan, chunk, first, caches)

    monkeypatch.setattr(sweep, "measure_chunk", counting)
    return seen


def test_the_same_seed_twice_is_byte_identical(
    base_experiment: Experiment, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    again = study.run_study(into(base_experiment, tmp_path / "again"))
    assert files(again) == uninterrupted


def test_another_seed_moves_intervals_and_no_value(
    base_experiment: Experiment, whole: Path, tmp_path: Path
) -> None:
    other = load_run(study.run_study(into(base_experiment, tmp_path, seed=1))).table
    table = load_run(whole).table
    drawn = table["measure"].str.contains(
        "_chance|_calibrated"
    )  # by permutations, which have a seed
    np.testing.assert_array_equal(other["value"][~drawn], table["value"][~drawn])
    assert not other["ci_low"].equals(table["ci_low"])


@pytest.mark.parametrize(
    ("killed", "left_over"),
    [(killed_in_a_shard, 0), (killed_before_a_rename, 1)],
    ids=["in mid-shard", "between write and rename"],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    base_experiment: Experiment,
    uninterrupted: dict[str, bytes],
    measured: list[int],
    tmp_path: Path,
    killed: Callable[[Experiment], None],
    left_over: int,
) -> None:
    out = tmp_path / "run"
    assert in_child(lambda: killed(into(base_experiment, out)))
    assert [path.name[:13] for path in shards(out)] == ["matched-00000"]
    assert len(list((out / FOLDER).glob(".tmp-*"))) == left_over
    assert not (out / MANIFEST).exists()
    study.run_study(into(base_experiment, out, resume=True))
    assert measured == [2, 3, 4]
    assert files(out) == uninterrupted
    load_run(out)
    assert not (out / FOLDER).exists()


def interrupt_after(calls: int) -> Callable[[str, int, int], None]:
    seen: list[int] = []

    def progress(group: str, done: int, total: int) -> None:
        if group == "matched":
            seen.append(done)
        if len(seen) == calls:
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_keeps_finished_shards(
    base_experiment: Experiment,
    uninterrupted: dict[str, bytes],
    measured: list[int],
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        study.run_study(into(base_experiment, tmp_path), interrupt_after(3))
    assert [path.name[:18].split("-")[1][:10] for path in shards(tmp_path)] == [
        "00000",
        "00001.part",
    ]
    measured.clear()
    done: list[tuple[int, ...]] = []
    resumed = into(base_experiment, tmp_path, resume=True)
    study.run_study(resumed, lambda what, *count: done.append(count) if what == "matched" else None)
    assert measured == [3, 4]
    assert done == [(2, 5), (1, 5), (1, 5), (1, 5)]
    assert files(tmp_path) == uninterrupted


def test_a_fault_while_the_results_are_written_loses_no_shard(
    base_experiment: Experiment,
    uninterrupted: dict[str, bytes],
    measured: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise RunError("could not write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(study, "write_run", full)
        with pytest.raises(RunError, match="No space"):
            study.run_study(into(base_experiment, tmp_path))
    measured.clear()
    study.run_study(into(base_experiment, tmp_path, resume=True))
    assert measured == []
    assert files(tmp_path) == uninterrupted


def test_a_damaged_shard_alone_is_measured_again(
    base_experiment: Experiment,
    uninterrupted: dict[str, bytes],
    measured: list[int],
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        study.run_study(into(base_experiment, tmp_path), interrupt_after(4))
    content = shards(tmp_path)[0].read_bytes()
    shards(tmp_path)[0].write_bytes(content[:-1])
    measured.clear()
    study.run_study(into(base_experiment, tmp_path, resume=True))
    assert measured == [0, 1, 4]
    assert files(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"seed": 1, "bootstrap": 30}, ("bootstrap", "seed")), ({"limit": 4}, ("limit",))],
)
def test_resuming_a_run_with_other_settings_is_refused_before_the_model_is_loaded(
    base_experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    named: tuple[str, ...],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        study.run_study(into(base_experiment, tmp_path), interrupt_after(3))
    monkeypatch.setattr("interp.preparing.load", None)
    with pytest.raises(RunError, match="other settings") as caught:
        study.run_study(into(base_experiment, tmp_path, resume=True, **fields))
    assert all(name in str(caught.value) for name in named)
    assert "sha256" not in str(caught.value).split("(")[1]


def test_resuming_with_a_changed_file_is_refused(
    base_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the weather was mild")
    experiment = into(base_experiment, tmp_path / "run", prompt_file=(prompt,))
    with pytest.raises(KeyboardInterrupt):
        study.run_study(experiment, interrupt_after(3))
    prompt.write_text("the weather was wild")
    monkeypatch.setattr("interp.preparing.load", None)
    with pytest.raises(RunError, match=r"other settings.*sha256 of condition prompt"):
        study.run_study(into(experiment, tmp_path / "run", resume=True))


def test_a_resumed_run_may_change_the_batch_size(
    base_experiment: Experiment, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        study.run_study(into(base_experiment, tmp_path), interrupt_after(3))
    resumed = into(base_experiment, tmp_path, resume=True, batch_size=2)
    got, expected = (load_run(out).table for out in (study.run_study(resumed), whole))
    numbers = ["value", "ci_low", "ci_high"]
    np.testing.assert_allclose(got[numbers], expected[numbers], rtol=1e-3, atol=1e-5)
    assert got.drop(columns=numbers).equals(expected.drop(columns=numbers))


def test_a_run_that_could_not_begin_can_be_run_once_mended(
    base_experiment: Experiment, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """A wrong adapter leaves no shard behind, so there is nothing to resume or to overwrite."""
    with pytest.raises(SubjectError):
        study.run_study(into(base_experiment, tmp_path, adapter=(str(tmp_path / "misspelt"),)))
    assert shards(tmp_path) == []
    assert files(study.run_study(into(base_experiment, tmp_path))) == uninterrupted


def test_an_output_that_cannot_be_written_fails_before_the_model_is_loaded(
    base_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.preparing.load", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        study.run_study(into(base_experiment, tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == ""
