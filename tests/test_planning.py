"""What a run computes is what it is asked for, and what a plan says of a run is what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp import Experiment, Run, cli, diverge, load, load_run
from interp.errors import ConfigError
from interp.organism import ADAPTERS, MODEL, QUERIES
from interp.planning import MEMORY_FACTOR, foresee
from interp.preparing import inputs_of, open_subject
from interp.registry import SECTIONS
from interp.report import text_table, write
from interp.selection import ALL_GROUPS, GROUP_OF, NEEDS, PRESETS, chosen, computed
from interp.study import run_study
from interp.subject import Subject
from tests.studies import quick_study

WHERE = ["measure", "condition", "reference", "site", "layer", "head", "position", "queries"]
PINNED = {"pinned inputs", "change decomposition"}


def experiment(out: Path, **fields: Any) -> Experiment:
    """A study of five conditions in chunks of four queries."""
    return quick_study(out, **{"batch_size": 4, "controls": ("neutral", "logit_bias")} | fields)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    asked = experiment(tmp_path_factory.mktemp("opened"))
    built, queries, _ = inputs_of(asked)
    return open_subject(asked, built, queries["matched"])


@pytest.fixture(scope="module")
def made(
    opened: Subject, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Run, int]]:
    """A run with these settings, and the forward passes that it took; every run is made once."""
    kept: dict[str, tuple[Run, int]] = {}

    def run(**fields: Any) -> tuple[Run, int]:
        if (name := repr(fields)) not in kept:
            asked = experiment(tmp_path_factory.mktemp("run"), **fields)
            kept[name] = _counted(asked, fresh(opened))
        return kept[name]

    return run


def fresh(subject: Subject) -> Subject:
    """The subject with settings of its own: biases are fitted into them."""
    return replace(subject, settings=dict(subject.settings))


def _counted(asked: Experiment, subject: Subject) -> tuple[Run, int]:
    passes: list[int] = []
    handle = subject.hf_model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        run_study(asked, subject=subject)
    finally:
        handle.remove()
    return load_run(asked.out), len(passes)


# What is asked for ------------------------------------------------------------------------------


def test_every_measure_of_a_run_has_one_group() -> None:
    others = ("Interchange and ablation", "Subspaces", "Edges", "Weights")
    others += ("Equivalence ladder", "Readings of differences", "A LoRA's own variables")
    elsewhere = {name for section in others for name in SECTIONS[section]}
    assert GROUP_OF.keys() == {n for part in SECTIONS.values() for n in part} - elsewhere
    assert set(ALL_GROUPS) >= NEEDS.keys() | {need for needs in NEEDS.values() for need in needs}


def test_the_default_is_what_it_was() -> None:
    asked = experiment(Path("run"))
    assert asked.preset == "full"
    assert asked.unasked == {"score split"}
    assert experiment(Path("run"), lens=False).unasked == {"score split", "lens"}
    assert experiment(Path("run"), score_split=True).unasked == set()


def test_quick_leaves_out_pinned_inputs_and_geometry() -> None:
    asked = experiment(Path("run"), preset="quick")
    assert asked.unasked == {*PINNED, "score split", "geometry"}
    assert computed(asked.written) == PRESETS["quick"]


@pytest.mark.parametrize("name", ["score split", "score-split", "score_split", "Score-Split"])
def test_the_words_of_a_group_may_be_joined(name: str) -> None:
    found = chosen([name])
    assert found == {"score_query", "score_key", "score_weights", "score_interaction"}
    assert computed(found) == {"score split", "scores", "patterns", "pinned inputs"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("contnt_js", "did you mean content_js?"),
        ("pattern", "did you mean patterns?"),
        ("pinned-imputs", "did you mean pinned-inputs?"),
        ("zzz", "groups are output, states, patterns"),
        ("damage", "interp patch RUN"),
        ("stable_rank", "interp weights RUN"),
    ],
)
def test_a_name_that_is_not_there_is_one_line(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "m", "--queries", "q", "--out", str(tmp_path), "--measures", name]
    assert cli.main(["diverge", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("interp: ")
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"measures": ("lens",), "lens": False}, "leave --preset quick"),
        ({"measures": ("lens",), "preset": "quick"}, "leave --preset quick"),
        ({"measures": ("lens",), "score_split": True}, "leave --preset quick"),
        ({"preset": "quick", "score_split": True}, "leave one of them away"),
        ({"measures": ("content_js",), "keys_values": True}, "add states"),
        ({"measures": ("linear_cka",), "sample": 0}, "give a --sample"),
    ],
)
def test_what_is_named_is_not_switched_off(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment(Path("run"), **fields)


@pytest.mark.parametrize(
    ("name", "words"), [("routing", "routes to no experts"), ("families", "fewer than two")]
)
def test_a_run_of_nothing_is_refused(
    name: str, words: str, opened: Subject, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        run_study(experiment(tmp_path / "run", measures=(name,)), subject=fresh(opened))
    with pytest.raises(ConfigError, match=words):
        foresee(experiment(tmp_path / "run", measures=(name,)), subject=fresh(opened))


# What is computed -------------------------------------------------------------------------------

CHOSEN: dict[str, dict[str, Any]] = {
    "quick": {"preset": "quick"},
    "one measure": {"measures": ("content_js",)},
    "output": {"measures": ("output",)},
    "readout": {"measures": ("lens_js", "influence")},
    "what keeps states": {"measures": ("linear_cka", "change_value")},
}


@pytest.mark.parametrize("fields", CHOSEN.values(), ids=CHOSEN)
def test_rows_are_bit_for_bit_those_of_the_full_run(
    fields: dict[str, Any], made: Callable[..., tuple[Run, int]]
) -> None:
    (full, _), (run, _) = made(), made(**fields)
    stems = run.table["measure"].str.removesuffix("_chance").str.removesuffix("_calibrated")
    found = experiment(Path("run"), **fields).written
    assert set(stems) == found - {"router_js", "expert_overlap", "content_entropy_no_sink"} - {
        "content_js_no_sink", "sequence_kl", "answer_agreement", "own_agreement", "own_difference",
        "probe_transfer", "divergence_index", "permanova_f",
    }  # fmt: skip
    there = full.table.set_index(WHERE).index.isin(run.table.set_index(WHERE).index)
    pd.testing.assert_frame_equal(
        full.table[there].reset_index(drop=True), run.table.reset_index(drop=True), check_exact=True
    )


def test_nothing_is_computed_that_nobody_asked_for(made: Callable[..., tuple[Run, int]]) -> None:
    """Per chunk a pass for every condition, and in full four at pinned inputs and one of base's
    weights; without patterns there is no head to look at."""
    chunks, conditions, pinned = 3, 5, 5
    _, full = made()
    _, quick = made(preset="quick")
    _, output = made(measures=("output",))
    tried = 2 + pinned  # what is tried on two queries before the run
    assert full - quick == chunks * pinned + tried
    prefixes = conditions
    assert quick - output == chunks * conditions + prefixes


@pytest.mark.parametrize("fields", CHOSEN.values(), ids=CHOSEN)
def test_a_run_says_what_it_left_out_and_is_shown(
    fields: dict[str, Any], made: Callable[..., tuple[Run, int]]
) -> None:
    run, _ = made(**fields)
    asked = experiment(Path("run"), **fields)
    assert run.manifest["unasked"] == sorted(asked.unasked)
    assert run.manifest["config"]["preset"] == asked.preset
    assert tuple(run.manifest["config"]["measures"]) == asked.measures
    text_table(run)
    write(run.path)


def test_the_notebook_door_has_presets_and_measures(tmp_path: Path) -> None:
    lab = load(str(MODEL), prompt="opposite :", separator=" ", lora=str(ADAPTERS / "lora_0"))
    fields: dict[str, Any] = {"permutations": 0, "bootstrap": 0}
    quick = load_run(diverge(lab, ["hot ->", "up ->"], tmp_path / "a", preset="quick", **fields))
    assert not set(quick.table["measure"]) & {"petrov_residual", "change_value", "linear_cka"}
    run = diverge(lab, ["hot ->", "up ->"], tmp_path / "b", measures=["content_js"], **fields)
    assert set(load_run(run).table["measure"]) == {"content_js"}
    with pytest.raises(ConfigError, match="did you mean patterns"):
        diverge(lab, ["hot ->"], tmp_path / "c", measures=["patern"])


# What a plan says -------------------------------------------------------------------------------

PLANNED = {
    "full": {},
    **CHOSEN,
    "answers": {"answers_from": "prompt", "answer_tokens": 2, "limit": 3, "lens": False},
    "two groups": {
        "heldout": QUERIES / "heldout.jsonl", "keys_values": True, "score_split": True, "limit": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("fields", PLANNED.values(), ids=PLANNED)
def test_the_passes_of_a_plan_are_those_of_the_run(
    fields: dict[str, Any],
    opened: Subject,
    made: Callable[..., tuple[Run, int]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    planned = foresee(experiment(out, **fields), subject=fresh(opened))
    _, passes = made(**fields)
    assert planned.total.passes == passes
    assert not out.exists()


def test_a_plan_says_what_it_counted(opened: Subject, tmp_path: Path) -> None:
    planned = foresee(experiment(tmp_path / "run", preset="quick"), subject=fresh(opened))
    assert planned.chunks == 3
    assert planned.chunk.passes == len(planned.conditions) == 5
    assert planned.conditions["prompt"][1] == opened.settings["prompt"].n_prefix
    assert "geometry" not in planned.computed
    assert planned.files["results.parquet"] > 0
    text = "\n".join(planned.lines())
    for words in ("prompt", "5 forward passes", "not asked for: pinned inputs", "nothing was writ"):
        assert words in text


def test_the_files_are_as_large_as_planned(
    opened: Subject, made: Callable[..., tuple[Run, int]], tmp_path: Path
) -> None:
    planned = foresee(experiment(tmp_path / "run"), subject=fresh(opened))
    run, _ = made()
    for name, size in planned.files.items():
        assert 0.5 < size / (run.path / name).stat().st_size < 2, name


def test_the_command_stops_after_its_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", tmp_path / "experiment.yaml"
    asked = experiment(out, limit=2, permutations=0, bootstrap=0, controls=(), preset="quick")
    file.write_text(json.dumps(asked.model_dump(mode="json", exclude_defaults=True)))
    assert cli.main(["diverge", str(file), "--plan"]) == 0
    assert "forward passes" in capsys.readouterr().out
    assert not out.exists()


PEAK = """
import sys
from interp import Experiment
from interp.memory import peak_memory
from interp.planning import foresee
from interp.study import run_study
import torch
asked = Experiment.model_validate_json(sys.argv[2])
with peak_memory(torch.device("cpu")) as memory:
    planned = foresee(asked) if sys.argv[1] == "plan" else run_study(asked)
print("BYTES", planned.memory if sys.argv[1] == "plan" else memory.most)
"""


def test_the_memory_of_a_plan_is_that_of_the_run(tmp_path: Path) -> None:
    asked = experiment(tmp_path / "run", limit=54, batch_size=27, sample=0).model_dump_json()
    found = []
    for what in ("plan", "run"):
        words = [sys.executable, "-c", PEAK, what, asked]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ)
        assert done.returncode == 0, done.stderr
        found.append(int(done.stdout.split("BYTES")[1]))
    assert 1 / MEMORY_FACTOR < found[0] / found[1] < MEMORY_FACTOR
