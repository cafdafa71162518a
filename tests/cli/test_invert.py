"""`interp match invert`: four kinds of emulation end to end, resumed, replaced and refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import check_flags, failed
from tiny_models import save_adapter, save_model

from interp import cli
from interp.config import FILE_ONLY, Experiment, from_yaml
from interp.matching import invert as inverting
from interp.matching.settings import Inversion
from interp.runs.view import load_run
from interp.study import run_study

MATCHED = [("hot is", "cold."), ("up is", "down"), ("big is", "small."), ("a river", None)]
HELDOUT = [("people walked", "along the"), ("lily said", None)]
POOL = [("hot is", "cold."), ("up is the opposite", "of down."), ("a hill is", "high.")]
QUICK = ["--steps", "4", "--candidates", "8", "--bootstrap", "30", "--seed", "1"]


def jsonl(path: Path, asked: list[tuple[str, str | None]]) -> Path:
    path.write_text("\n".join(json.dumps({"text": t, "answer": a}) for t, a in asked))
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("invert")
    model = save_model("gpt2", root / "model")
    targets = ["attn.c_attn", "mlp.c_proj"]
    (root / "prompt.txt").write_text("up is the opposite of down")
    return {
        "model": model,
        "adapter": save_adapter(model, root / "lora", targets),
        "floor": save_adapter(model, root / "other", targets, seed=2),
        "fine_tuned": save_model("gpt2", root / "tuned" / "model", seed=3),
        "prompt": str(root / "prompt.txt"),
        "queries": str(jsonl(root / "matched.jsonl", MATCHED)),
        "heldout": str(jsonl(root / "heldout.jsonl", HELDOUT)),
        "pool": str(jsonl(root / "pool.jsonl", POOL)),
    }


def words(given: dict[str, str], out: Path, kind: str, *more: str) -> list[str]:
    named = ("model", "adapter", "queries", "heldout", "pool", "floor")
    flags = [word for name in named for word in (f"--{name}", given[name])]
    return ["match", "invert", *flags, "--kind", kind, "--tokens", "2", "--out", str(out),
            *QUICK, *more]  # fmt: skip


def settings(given: dict[str, str], out: Path, kind: str, **fields: Any) -> Inversion:
    named = {name: given[name] for name in ("model", "adapter", "queries")}
    quick = {"steps": 4, "candidates": 8, "tokens": 2, "bootstrap": 0}
    return Inversion.model_validate({**named, **quick, "kind": kind, "out": out, **fields})


# End to end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft_prompt", "prefix", "text", "few_shot"])
def test_what_is_found_is_a_condition_of_every_other_command(
    kind: str, given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    assert cli.main(words(given, out, kind, "--bias")) == 0
    said = capsys.readouterr().out
    log = json.loads((out / "invert.json").read_text())
    assert [score["queries"] for score in log["scores"]] == ["matched", "heldout"]
    for score in log["scores"]:
        assert f"{score['queries']}: strength {score['strength']:.3f}" in said
        assert score["ci_low"] <= score["strength"] <= score["ci_high"] <= 1
        assert score["strength"] == pytest.approx(1 - score["kl"] / score["ceiling"])
        assert score["floor"] > 0
        assert score["n"] == {"matched": 4, "heldout": 2}[score["queries"]]
    assert min(log["loss_by_step"]) == pytest.approx(log["loss_by_step"][-1], rel=0.5)
    assert log["scores"][0]["kl"] < min(log["loss_by_step"]) + 1e-6  # the bias helps
    assert not (out / ".unfinished").exists()
    assert list(log["condition"][1]) == ["logit_bias"]

    run = tmp_path / "run"
    quick = {"controls": (), "permutations": 0, "bootstrap": 0, "sample": 0, "max_positions": 0}
    run_study(Experiment(**from_yaml(out / "experiment.yaml"), out=run, limit=2, **quick))
    table = load_run(run).table
    rows = table[(table.measure == "kl_divergence") & (table.position == "last")]
    pairs = {tuple(row) for row in rows[["condition", "reference"]].to_numpy()}
    assert any({"emulation", "target"} == set(pair) for pair in pairs)
    experiment = yaml.safe_load((out / "experiment.yaml").read_text())
    assert set(experiment) == {"model", "queries", "heldout", "conditions"}


@pytest.mark.parametrize("target", ["fine_tuned", "prompt"])
def test_other_targets(target: str, given: dict[str, str], tmp_path: Path) -> None:
    field = {"fine_tuned": "fine_tuned", "prompt": "prompt_file"}[target]
    own = settings(given, tmp_path, "prefix", adapter=None, **{field: given[target]}, steps=30)
    (score,) = inverting.invert(own)["scores"]
    assert score["strength"] > 0.1
    assert score["ci_low"] is None
    experiment = yaml.safe_load((tmp_path / "experiment.yaml").read_text())
    assert list(experiment["conditions"]["target"]) == [target]


def test_states_are_matched_too(given: dict[str, str], tmp_path: Path) -> None:
    own = settings(given, tmp_path, "soft_prompt", layers=(0, 2), patterns=(1,), steps=2)
    outputs = settings(given, tmp_path / "outputs", "soft_prompt", steps=2)
    both, alone = inverting.invert(own), inverting.invert(outputs)
    assert both["loss_by_step"][0] > alone["loss_by_step"][0] + 0.01


def test_of_several_searches_the_best_is_kept(given: dict[str, str], tmp_path: Path) -> None:
    losses = []
    for seed in (0, 1):
        one = settings(given, tmp_path / str(seed), "text", seed=seed, steps=2)
        losses.append(inverting.invert(one)["loss_by_step"])
    own = settings(given, tmp_path / "all", "text", restarts=2, steps=2)
    best = min(losses, key=min)
    assert inverting.invert(own)["loss_by_step"] == best
    assert len({tuple(one) for one in losses}) == 2


def test_without_intervals_the_table_still_prints(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(given, tmp_path, "few_shot", "--bootstrap", "0")) == 0
    assert "[–, –]" in capsys.readouterr().out


# Interrupted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "steps", "stop"), [("text", 4, 2), ("prefix", 22, 21)])
def test_an_interrupted_search_goes_on_as_if_never_stopped(
    kind: str, steps: int, stop: int, given: dict[str, str], tmp_path: Path
) -> None:
    def interrupted(_name: str, done: int, _of: int, _best: float) -> None:
        if done == stop:
            raise KeyboardInterrupt

    seen: list[int] = []
    own = settings(given, tmp_path / "stopped", kind, steps=steps)
    with pytest.raises(KeyboardInterrupt):
        inverting.invert(own, interrupted)
    assert not (tmp_path / "stopped" / "invert.json").exists()
    resumed = own.model_copy(update={"resume": True})
    on = inverting.invert(resumed, lambda _name, done, *_: seen.append(done))
    assert seen[0] == {"text": 3, "prefix": 21}[kind]
    whole = inverting.invert(settings(given, tmp_path / "whole", kind, steps=steps))
    assert on["loss_by_step"] == whole["loss_by_step"]
    assert on["scores"] == whole["scores"]
    assert not (tmp_path / "stopped" / ".unfinished").exists()


def test_other_settings_do_not_go_on_with_what_is_left(
    given: dict[str, str], tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    own = settings(given, tmp_path, "text")
    with pytest.raises(KeyboardInterrupt):
        inverting.invert(own, interrupted)
    seen: list[int] = []
    other = own.model_copy(update={"resume": True, "seed": 5})
    inverting.invert(other, lambda _name, done, *_: seen.append(done))
    assert seen[0] == 1


def test_ctrl_c_says_how_to_go_on(
    given: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Inversion] = []

    def interrupted(asked: Inversion, *_: Any) -> None:
        seen.append(asked)
        raise KeyboardInterrupt

    monkeypatch.setattr(inverting, "invert", interrupted)
    assert cli.main(words(given, tmp_path, "text", "--overwrite")) == 130
    resumed = shlex.split(capsys.readouterr().err.split("Go on with: ")[1])
    assert cli.main(resumed[1:]) == 130
    assert seen[1] == seen[0].model_copy(update={"resume": True})
    assert seen[1].overwrite  # the older result is in the way still


# Refused ----------------------------------------------------------------------------------------


def test_a_result_is_replaced_only_when_asked(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(given, tmp_path, "few_shot")) == 0
    before = (tmp_path / "invert.json").read_bytes()
    capsys.readouterr()
    line = failed(words(given, tmp_path, "few_shot", "--seed", "2"), capsys)
    assert "holds a result; choose another --out or pass --overwrite" in line
    assert (tmp_path / "invert.json").read_bytes() == before
    assert cli.main(words(given, tmp_path, "few_shot", "--seed", "2", "--overwrite")) == 0
    assert json.loads((tmp_path / "invert.json").read_text())["settings"]["seed"] == 2


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("text", ["--fine-tuned", "{fine_tuned}"], "give exactly one of --adapter, --fine-tuned"),
        ("text", ["--prompt-file", "{prompt}"], "give exactly one of --adapter, --fine-tuned"),
        ("few_shot", ["--pool", "None"], "give --pool"),
        ("few_shot", ["--pool", "{heldout}"], "the demonstration 'lily said' has no answer"),
        ("few_shot", ["--pool", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        ("few_shot", ["--template", "{{query}} {{answer}} "], "merge across the border"),
        ("soft_prompt", ["--layers", "3"], "no L3.resid_post: layers are 0 to 2"),
        ("prefix", ["--patterns", "-1"], "layers are 0 to 2"),
        ("text", ["--layers", "0"], "for virtual tokens, not text"),
        ("text", ["--separator", " "], "no text of 2 tokens"),
        ("text", ["--tokens", "300"], "the model reads 256"),
        ("prefix", ["--tokens", "300"], "the model reads 256"),
        ("text", ["--tokens", "0"], "tokens"),
        ("text", ["--adapter", "nowhere"], "nowhere is not a peft adapter"),
    ],
)  # fmt: skip
def test_a_fault_of_the_input_is_one_line(
    kind: str,
    more: list[str],
    said: str,
    given: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = words(given, tmp_path, kind, *(word.format(**given) for word in more))
    assert said in failed(line, capsys)
    assert not (tmp_path / "invert.json").exists()


def test_a_folder_that_cannot_be_written(
    given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for kind in ("few_shot", "prefix"):
        assert "writ" in failed(words(given, tmp_path / "file" / "out", kind), capsys)


# Help -------------------------------------------------------------------------------------------


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    check_flags(["match", "invert"], set(Inversion.model_fields) - FILE_ONLY, capsys)
