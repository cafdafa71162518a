"""`interp patch` on a small finished run: its rows, its files, what it refuses, and going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_models import N_HEADS, N_LAYERS, all_targets, save_adapter, save_model

from interp.config import Experiment
from interp.errors import ConfigError, InterpError, RunError
from interp.patching import job, stages
from interp.patching.run import patch
from interp.patching.settings import Patching
from interp.report import text_table, write
from interp.runs import files
from interp.runs.files import INTERCHANGE, MANIFEST, TABLE, read_manifest, seal
from interp.runs.view import load_run
from interp.study import run_study

TEXTS = (
    "hot is the opposite",
    "a river",
    "big",
    "people walked along the road",
    "lily said",
    "tom",
    "small things",
    "cold is the",
)
N = len(TEXTS)
QUICK: dict[str, Any] = {
    "sites": ("resid_post",),
    "head_sites": ("z", "pattern"),
    "positions": 2,
    "attribution": False,
    "greedy": 0,
    "ablate": (),
    "bootstrap": 25,
    "permutations": 19,
}
MOVES = {
    (s, t)
    for s in ("prompt", "lora", "base")
    for t in ("prompt", "lora", "base")
    if s != t
}  # fmt: skip


def experiment(root: Path, out: Path, **changes: Any) -> Experiment:
    """A prompt against a LoRA; the file has more queries than the run reads."""
    fields: dict[str, Any] = {
        "model": str(root / "model"),
        "adapter": (str(root / "lora"),),
        "prompt_file": (str(root / "prompt.txt"),),
        "queries": root / "queries.jsonl",
        "out": out,
        "controls": ("neutral", "logit_bias"),
        "limit": N,
        "bootstrap": 20,
        "permutations": 0,
        "sample": 0,
        "max_positions": 1,
    }
    return Experiment.model_validate(fields | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the run is made of."""
    root = tmp_path_factory.mktemp("inputs")
    model = save_model("qwen3", root / "model")
    save_adapter(model, root / "lora", all_targets("qwen3"))
    (root / "prompt.txt").write_text("up is the opposite of down")
    write_queries(root / "queries.jsonl", (*TEXTS, "a hill is high", "yes"))
    run_study(experiment(root, root / "RUN"))
    return root


def write_queries(path: Path, texts: tuple[str, ...]) -> None:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Path:
    """A finished run in a folder of its own (moved, as far as it can tell)."""
    return Path(shutil.copytree(root / "RUN", tmp_path / "moved"))


@pytest.fixture(scope="module")
def quick(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, patched in a hurry."""
    folder = Path(shutil.copytree(root / "RUN", tmp_path_factory.mktemp("quick") / "RUN"))
    return patch(Patching(run=folder, **QUICK))


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, with everything that `interp patch` does."""
    folder = Path(shutil.copytree(root / "RUN", tmp_path_factory.mktemp("whole") / "RUN"))
    return patch(Patching(run=folder, bootstrap=25, permutations=19, positions=2))


def table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / INTERCHANGE)


def close(a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> None:
    pd.testing.assert_frame_equal(a, b, rtol=tolerance, atol=tolerance)


# --- rows -----------------------------------------------------------------------------------------


def places(table: pd.DataFrame, measure: str) -> dict[tuple[str, bool, str], int]:
    """(site, by head, position) -> how many rows one move has there."""
    some = table[table["measure"] == measure]
    some = some[(some["condition"] == "lora") & (some["reference"] == "base")]
    counted = some.groupby(["site", some["head"].notna(), "position"]).size()
    return {(str(s), bool(h), str(p)): int(n) for (s, h, p), n in counted.items()}


def test_every_move_has_its_rows(whole: Path) -> None:
    found = table(whole)
    wholes = {(s, False, "all"): N_LAYERS for s in ("resid_post", "attn_out", "mlp_out")}
    alone = {("resid_post", False, p): N_LAYERS for p in ("last", "0", "1")}
    heads = {(site, True, "all"): N_LAYERS * N_HEADS for site in ("z", "pattern")}
    for measure in ("damage", "recovery", "answer_change", "answer_recovery"):
        assert places(found, measure) == wholes | alone | heads
        some = found[found["measure"] == measure]
        assert set(zip(some["condition"], some["reference"], strict=True)) == MOVES
    assert places(found, "damage_random_direction") == wholes
    assert places(found, "recovery_random_difference") == wholes
    related = found[found["measure"] == "relative_damage"]
    pairs = set(zip(related["condition"], related["reference"], strict=True))
    assert pairs == {("prompt", "lora"), ("lora", "prompt")}
    depths = found[found["site"].eq("resid_post") & found["units"].eq("layer")]
    assert sorted(depths["measure"]) == ["interchange_depth"] * 2 + ["state_equivalence_depth"]


def test_no_row_stands_twice(whole: Path) -> None:
    found = table(whole)
    place = ["measure", "condition", "reference", "site", "layer", "head", "position"]
    assert not found.duplicated(place).any()
    assert set(found["queries"]) == {"matched"}
    assert found["n"].between(0, N).all()


def test_a_position_counts_the_queries_that_have_it(quick: Path) -> None:
    found = table(quick)
    damage = found[(found["measure"] == "damage") & (found["site"] == "resid_post")]
    n = damage.groupby("position")["n"].agg(["min", "max"])
    for position in ("all", "last", "0"):
        assert tuple(n.loc[position]) == (N, N)
    assert n.loc["1", "min"] == n.loc["1", "max"] < N  # some queries have one token


def test_both_tables_are_one(quick: Path, root: Path) -> None:
    run = load_run(quick)
    before, own = load_run(root / "RUN").table, table(quick)
    assert len(run.table) == len(before) + len(own)
    pd.testing.assert_frame_equal(run.table.iloc[: len(before)], before)
    assert run.table.dtypes.equals(before.dtypes)


def test_the_findings(whole: Path) -> None:
    said = read_manifest(whole)["interchange"]
    assert said["no_op"] == 0.0
    assert (said["condition"], said["reference"], said["n"]) == ("prompt", "lora", N)
    assert (said["tolerance"], said["interval"]) == (0.02, {"replicates": 25})
    assert said["verdict"].startswith("prompt's state works in lora's run from ")
    assert len(said["best_layers"]) == 4
    assert [told["by"] for told in said["heads"]] == ["lost", "won"]


def test_the_last_state_is_the_output(quick: Path) -> None:
    """All of the last block replaced: the source's output, so what it damages is the distance."""
    found = table(quick)
    last = found[(found["site"] == "resid_post") & (found["layer"] == N_LAYERS - 1)]
    last = last[last["position"].isin(["all", "last"])]
    assert np.allclose(last.loc[last["measure"] == "recovery", "value"], 1, atol=1e-5)
    assert np.allclose(last.loc[last["measure"] == "answer_recovery", "value"], 1, atol=1e-4)


# --- the same again -------------------------------------------------------------------------------


def test_it_is_deterministic_and_moves_with_the_run(run: Path, quick: Path) -> None:
    """To the bit, in another folder."""
    patch(Patching(run=run, **QUICK))
    pd.testing.assert_frame_equal(table(run), table(quick), check_exact=True)
    assert read_manifest(run)["interchange"] == read_manifest(quick)["interchange"]
    assert not (run / ".unfinished").exists()


def test_memory_changes_nothing_but_rounding(run: Path, quick: Path, counted: list[int]) -> None:
    """A few queries at a time instead of eight, and one patch per forward pass."""
    patch(Patching(run=run, **(QUICK | {"head_sites": ("z",)}), memory=1.5e-4))
    assert max(counted) < N == sum(counted)
    numbers, expected = (f[f["site"] != "pattern"] for f in (table(run), table(quick)))
    numbers, expected = (f.reset_index(drop=True) for f in (numbers, expected))
    sums = expected["measure"].str.startswith(("damage", "recovery", "answer_change"))
    for some, bound in ((sums, 1e-6), (~sums, 2e-5)):  # the rest divide by what may be small
        close(numbers[some], expected[some], bound)


class Interrupted(KeyboardInterrupt):
    """A key was pressed."""


def pressed_at(call: int) -> Callable[[str, int, int], None]:
    calls = iter(range(1, 1000))

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "interchange" and next(calls) == call:
            raise Interrupted

    return progress


@pytest.fixture
def interrupted(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose patching was broken off when its second shard of three queries was done."""
    monkeypatch.setattr("interp.store.SHARD", 3)
    with pytest.raises(Interrupted):
        patch(Patching(run=run, **QUICK), pressed_at(2))
    return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries every interchange since was given."""
    given: list[int] = []

    def counting(subject: Any, plan: Any, chunk: Any, *rest: Any) -> Any:
        given.append(len(chunk))
        return interchange(subject, plan, chunk, *rest)

    interchange = stages.run_interchange
    monkeypatch.setattr(stages, "run_interchange", counting)
    return given


def test_an_interrupted_run_goes_on(
    interrupted: Path, counted: list[int], root: Path, tmp_path: Path
) -> None:
    assert not (interrupted / INTERCHANGE).exists()
    assert "interchange" not in load_run(interrupted).manifest  # the run itself is as it was
    patch(Patching(run=interrupted, **QUICK, resume=True))
    assert counted == [2]  # what was done is not done again
    at_once = Path(shutil.copytree(root / "RUN", tmp_path / "at_once"))
    patch(Patching(run=at_once, **QUICK))
    pd.testing.assert_frame_equal(table(interrupted), table(at_once), check_exact=True)
    assert read_manifest(interrupted)["interchange"] == read_manifest(at_once)["interchange"]


def test_without_resume_it_starts_anew(interrupted: Path, counted: list[int]) -> None:
    patch(Patching(run=interrupted, **QUICK))
    assert counted == [3, 3, 2]


def test_it_does_not_go_on_with_other_settings(interrupted: Path, counted: list[int]) -> None:
    changed = QUICK | {"positions": 1, "tolerance": 0.5}
    message = refused(RunError, Patching(run=interrupted, **changed, resume=True))
    assert "was begun with other settings (positions, tolerance)" in message
    assert "--overwrite" not in message  # which `interp patch` does not have
    patch(Patching(run=interrupted, **QUICK, resume=True, memory=0.1))  # that is no other setting
    assert counted == [2]


def test_a_damaged_shard_is_done_again(interrupted: Path, counted: list[int], quick: Path) -> None:
    shard, _ = sorted((interrupted / ".unfinished").glob("interchange-*"))
    shard.write_bytes(shard.read_bytes()[:-8])
    patch(Patching(run=interrupted, **QUICK, resume=True))
    assert counted == [3, 2]
    numbers, expected = (f[f["measure"] == "damage"] for f in (table(interrupted), table(quick)))
    close(numbers, expected, 1e-6)


# --- settings -------------------------------------------------------------------------------------


def test_other_conditions_than_the_headline(run: Path) -> None:
    patch(Patching(run=run, **QUICK, condition="neutral"))
    said = read_manifest(run)["interchange"]
    assert (said["condition"], said["reference"]) == ("neutral", "lora")
    assert set(table(run)["condition"]) == {"neutral", "lora", "base"}


@pytest.mark.parametrize(("limit", "n"), [(5, 5), (100, N)])
def test_a_limit_only_takes_away(run: Path, limit: int, n: int) -> None:
    """The run's certificate says nothing of queries that the run left out."""
    patch(Patching(run=run, **QUICK, limit=limit))
    assert read_manifest(run)["interchange"]["n"] == n
    assert table(run)["n"].max() == n


@pytest.mark.parametrize("every", [2, 5])
def test_every_so_many_layers_are_those_of_all(run: Path, quick: Path, every: int) -> None:
    """The last layer always, with the numbers that it has among all; words and pages follow."""
    patch(Patching(run=run, **QUICK, every=every))
    place = ["measure", "condition", "reference", "site", "layer", "head", "position"]
    some, all_of_them = (
        found[found["measure"].isin(["damage", "recovery"])].set_index(place)
        for found in (table(run), table(quick))
    )
    layers = sorted(set(some.index.get_level_values("layer").dropna()))
    assert layers == list(range(N_LAYERS))[::-every][::-1]
    assert some.index.isin(all_of_them.index).all()
    expected = all_of_them.loc[some.index, ["value", "n"]]
    close(some[["value", "n"]], expected, 1e-4)
    depths = table(run).query("units == 'layer'")["value"].dropna()
    assert set(depths) <= set(layers)
    assert f"at layer {layers[0]}" in read_manifest(run)["interchange"]["verdict"]
    assert text_table(load_run(run))
    assert write(run).exists()


def test_without_intervals_and_tests(run: Path) -> None:
    changed = QUICK | {"bootstrap": 0, "permutations": 0, "greedy": 3}
    patch(Patching(run=run, **changed))
    found = table(run)
    assert found[["ci_low", "ci_high", "p_adjusted"]].isna().all(axis=None)
    assert found.loc[found["measure"] == "damage", "value"].notna().all()
    assert "nan" not in read_manifest(run)["interchange"]["verdict"]


def test_whole_rows_need_as_many_tokens_before_the_query(run: Path) -> None:
    message = refused(ConfigError, Patching(run=run, **QUICK, pattern="row"))
    assert "use content rows" in message


def test_queries_of_one_token(root: Path, tmp_path: Path) -> None:
    """There is no position but all of them."""
    write_queries(tmp_path / "letters.jsonl", ("a", "b", "c", "d"))
    asked = experiment(root, tmp_path / "RUN", queries=tmp_path / "letters.jsonl", controls=())
    patch(Patching(run=run_study(asked), **QUICK))
    found = table(tmp_path / "RUN")
    swept = found[found["measure"].isin(["damage", "recovery", "answer_change"])]
    assert set(swept["position"]) == {"all"}
    content = found[(found["site"] == "pattern") & (found["measure"] == "damage")]
    assert (content["value"] < 1e-9).all()  # one token divides its attention in one way


# --- answers of several tokens --------------------------------------------------------------------

ANSWERS = ("of cold", "is wide", None, "and talked", "yes!", "said: no?", "up", "opposite")
SITES = ("resid_post", "attn_out", "mlp_out")


@pytest.fixture(scope="module")
def answered(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose answers are forced on all conditions."""
    folder = tmp_path_factory.mktemp("answered")
    lines = [json.dumps({"text": t, "answer": a}) for t, a in zip(TEXTS, ANSWERS, strict=True)]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    asked = experiment(root, folder / "RUN", queries=folder / "queries.jsonl", controls=())
    return run_study(asked)


def test_whole_sites_are_replaced_by_segment_too(answered: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(answered, tmp_path / "RUN"))
    more = {"head_segments": ("answer",), "attribution": True, "greedy": 3}
    patch(Patching(run=folder, **(QUICK | more | {"sites": SITES, "ablate": ("layers",)})))
    found = table(folder)
    wholes = {(s, False, p): N_LAYERS for s in SITES for p in ("all", "query", "answer")}
    alone = {("resid_post", False, p): N_LAYERS for p in ("last", "0", "1")}
    heads = {(s, True, "all"): N_LAYERS * N_HEADS for s in ("z", "pattern")}
    heads[("z", True, "answer")] = N_LAYERS * N_HEADS
    assert places(found, "damage") == wholes | alone | heads
    assert places(found, "recovery_random_difference") == wholes
    estimates = places(found, "attribution")
    assert estimates == wholes | alone | heads | {
        ("z", True, p): N_LAYERS * N_HEADS for p in ("query", "last", "0", "1")
    }
    place = ["measure", "condition", "reference", "site", "layer", "head", "position"]
    assert not found.duplicated(place).any()
    assert read_manifest(folder)["interchange"]["no_op"] == 0.0
    last = found[(found["layer"] == N_LAYERS - 1) & (found["site"] == "resid_post")]
    last = last[last["measure"] == "recovery"].set_index("position")["value"]
    assert np.allclose(last[["all", "answer"]], 1, atol=1e-5)
    assert np.allclose(last["query"], 0, atol=1e-5)


def test_segments_can_be_left_out(answered: Path, tmp_path: Path) -> None:
    """What is left has the same numbers: one forward pass knows nothing of another."""
    first, second = (Path(shutil.copytree(answered, tmp_path / name)) for name in ("a", "b"))
    patch(Patching(run=first, **QUICK))
    patch(Patching(run=second, **QUICK, segments=()))
    there, fewer = table(first), table(second)
    assert not set(fewer["position"]) & {"query", "answer"}
    there = there[~there["position"].isin(["query", "answer"])].reset_index(drop=True)
    kept = [column for column in there if column != "p_adjusted"]  # corrected over fewer places
    close(there[kept], fewer[kept], 1e-6)


# --- refused --------------------------------------------------------------------------------------


def refused(kind: type[InterpError], settings: Patching) -> str:
    before = {f.name: f.read_bytes() for f in settings.run.iterdir() if f.is_file()}
    with pytest.raises(kind) as caught:
        patch(settings)
    assert before == {f.name: f.read_bytes() for f in settings.run.iterdir() if f.is_file()}
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"condition": "logit_bias"}, "logit_bias only moves logits"),
        ({"condition": "nobody"}, "no condition 'nobody' to patch in"),
        ({"reference": "base"}, "it has prompt, lora, neutral, logit_bias"),
        ({"condition": "lora"}, "--condition and --reference are both lora"),
    ],
)
def test_conditions_that_cannot_be_patched(run: Path, chosen: dict[str, str], reason: str) -> None:
    assert reason in refused(ConfigError, Patching(run=run, **QUICK, **chosen))


@contextmanager
def changed(file: Path, more: bytes = b"\n") -> Iterator[None]:
    before = file.read_bytes()
    try:
        file.write_bytes(before + more)
        yield
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize(
    ("file", "role"),
    [
        ("queries.jsonl", "queries"),
        ("model/config.json", "model"),
        ("lora/adapter_config.json", "adapter"),
        ("prompt.txt", "prompt"),
    ],
)
def test_inputs_that_changed_since(run: Path, root: Path, file: str, role: str) -> None:
    with changed(root / file, b" and" if role == "prompt" else b"\n"):
        message = refused(RunError, Patching(run=run, **QUICK))
    assert "has changed since" in message
    assert role in message


def test_a_single_query(root: Path, run: Path) -> None:
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["config"]["limit"] = 1
    seal(run, manifest, [])
    assert "an interchange needs two or more" in refused(ConfigError, Patching(run=run, **QUICK))


def test_what_is_no_run(tmp_path: Path) -> None:
    assert "is not a run" in refused(RunError, Patching(run=tmp_path, **QUICK))


@pytest.mark.parametrize("file", [TABLE, INTERCHANGE])
def test_a_changed_table_is_noticed(quick: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(quick, tmp_path / "RUN"))
    with changed(folder / file), pytest.raises(RunError, match=f"{file} has changed since"):
        load_run(folder)
    (folder / INTERCHANGE).unlink()
    with pytest.raises(RunError, match=f"{INTERCHANGE} is missing"):
        load_run(folder)


# --- files ----------------------------------------------------------------------------------------


def test_a_run_that_is_made_again_is_not_patched(quick: Path, root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quick, tmp_path / "RUN"))
    run_study(experiment(root, folder, overwrite=True, controls=()))
    assert not (folder / INTERCHANGE).exists()
    run = load_run(folder)
    assert "interchange" not in run.manifest
    assert not run.table["measure"].eq("damage").any()


def test_patching_again_replaces(quick: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quick, tmp_path / "RUN"))
    patch(Patching(run=folder, **QUICK, condition="neutral"))
    assert "prompt" not in set(table(folder)["condition"])
    assert load_run(folder).manifest["interchange"]["condition"] == "neutral"


def test_a_crash_while_replacing_leaves_the_run(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the new table and the new manifest: a run that is not patched, and can be."""
    folder = Path(shutil.copytree(quick, tmp_path / "RUN"))
    seal = files.seal

    def crashing(path: Path, manifest: dict[str, Any], files: Any) -> None:
        if "interchange" in manifest:
            raise Interrupted
        seal(path, manifest, files)

    monkeypatch.setattr(files, "seal", crashing)
    rows = table(folder).assign(value=0.0)
    with pytest.raises(Interrupted):
        files.add_interchange(folder, rows, {"no_op": 0.0})
    run = load_run(folder)
    assert "interchange" not in run.manifest
    assert not run.table["measure"].eq("damage").any()
    monkeypatch.setattr(files, "seal", seal)
    files.add_interchange(folder, rows, {"no_op": 0.0})
    assert load_run(folder).table["measure"].eq("damage").any()


def test_the_shards_of_a_job_fit_its_memory() -> None:
    nothing: Any = None
    small, large = (job.Job(nothing, nothing, [], {}, rows) for rows in (5, 10_000))
    assert (small.chunk, large.chunk) == (5, job.SHARD)
