"""`interp ladder` on a small finished run: against plain Hugging Face + peft, its files, going on.

The reference reads states and patches runs with plain hooks, one query at a time over the whole
sequence (`tests/reference/patching.py`), and fits maps on whole arrays (`restated.py`).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
from reference import Condition, patching
from reference.numbers import kl_logits
from reference.patching import Asked, Cell, Observed
from rungs import restated
from transformers import AutoTokenizer

from interp import Experiment, Ladder, ladder, load_run
from interp.errors import ConfigError, RunError
from interp.patching.effects import halves
from interp.plots import equivalence_ladder
from interp.plots.tidy import tidy
from interp.report import ladder_table
from interp.report.ladder import ladder_section
from interp.rungs.climbing import fitted_maps
from interp.runs.files import LADDER, read_manifest
from interp.runs.view import NotMeasured
from interp.study import run_study

PROMPT = "hot is the opposite of cold. up is the opposite of"
TEXTS = (
    "the opposite of big", "up", "tom said", "a river is wide", "people walked along the road",
    "small things", "the weather was mild that day", "lily said", "a hill is high", "cold is the",
    "down", "big is the opposite", "talked about", "yes", "hot is", "the road",
)  # fmt: skip
ANSWERS = ("is small", "and talked", "no? yes", "of down")
HELDOUT = ("wide is", "a hill", "lily talked about the weather")
RANKS = (2,)
QUICK: dict[str, Any] = {"ranks": RANKS, "bootstrap": 20, "segments": ("answer",)}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt in two wordings, a LoRA, neutral text and a random LoRA, answers of two tokens."""
    root = tmp_path_factory.mktemp("ladder")
    model = tiny_models.save_model("llama", root / "model")
    tiny_models.save_adapter(model, root / "lora", tiny_models.all_targets("llama"))
    for name, texts in (("fit", TEXTS), ("heldout", HELDOUT)):
        lines = [{"text": t, "answer": ANSWERS[i % 4]} for i, t in enumerate(texts)]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for number, text in enumerate((PROMPT, "people talked about small things. big is")):
        (root / f"{number}.txt").write_text(text)
    experiment = Experiment(
        model=model,
        adapter=(str(root / "lora"),),
        prompt_file=(root / "0.txt", root / "1.txt"),
        queries=root / "fit.jsonl",
        heldout=root / "heldout.jsonl",
        separator=" ",
        controls=("neutral", "random_lora"),
        measures=("js_divergence", "relative_l2"),
        out=root / "RUN",
        bootstrap=20,
        permutations=0,
        device="cpu",
    )
    run_study(experiment)
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Path:
    """The run in a folder of its own."""
    return Path(shutil.copytree(root / "RUN", tmp_path / "moved"))


@pytest.fixture(scope="module")
def climbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with its ladder."""
    folder = Path(shutil.copytree(root / "RUN", tmp_path_factory.mktemp("climbed") / "RUN"))
    return ladder(Ladder(run=folder, **QUICK))


def rows(folder: Path, *maps: tuple[str, str]) -> pd.DataFrame:
    """The rows of some maps, or of all."""
    found = pd.read_parquet(folder / LADDER)
    pairs = pd.MultiIndex.from_frame(found[["condition", "reference"]])
    return found[pairs.isin(maps)].reset_index(drop=True) if maps else found


# --- plain Hugging Face + peft --------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """Every query under the conditions of one map, and which of them fit it."""

    model: str
    everything: dict[str, list[Observed]]
    fit: list[int]

    @cached_property
    def layers(self) -> range:
        return range(len(self.everything["base"][0].states.resid_post))

    def tokens(self, name: str, layer: int, position: str) -> np.ndarray:
        """States of the fitting half, token by token."""
        own = [self.everything[name][i] for i in self.fit]
        return np.concatenate([o.states.resid_post[layer][o.query.rows(position)] for o in own])

    def mapped(self, pair: tuple[str, str], cell: Cell, rung: str, ridge: float, i: int) -> Any:
        """The source's query with its states of a layer mapped as a rung says."""
        own = self.everything[pair[0]][i]
        states = own.states.resid_post.copy()
        x, y = (self.tokens(name, cell.layer, cell.position) for name in pair)
        if rung == "full":
            states[cell.layer] = self.everything[pair[1]][i].states.resid_post[cell.layer]
        elif rung != "none":
            states[cell.layer] = restated.fitted(rung, x, y, ridge, states[cell.layer])
        return replace(own, states=replace(own.states, resid_post=states))


@pytest.fixture(scope="module")
def plain(root: Path) -> Plain:
    model = str(root / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    [prompt] = {tiny_models.preceding(f"{PROMPT} ", text, tokenizer) for text in TEXTS}
    bos = tuple(tokenizer("")["input_ids"])
    conditions = {
        "base": Condition(bos),
        "prompt_0": Condition(bos + prompt),
        "lora": Condition(bos, adapter=str(root / "lora")),
    }
    asked = [question(tokenizer, text, ANSWERS[i % 4]) for i, text in enumerate(TEXTS)]
    selection, _ = halves([f"matched:{i}" for i in range(len(TEXTS))], 0)
    everything = patching.look_at_all(model, conditions, asked)
    return Plain(model, {n: [*o] for n, o in everything.items()}, [*np.flatnonzero(selection)])


def question(tokenizer: Any, text: str, answer: str) -> Asked:
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = tokenizer(f"{text} {answer}", add_special_tokens=False)["input_ids"]
    return Asked(ids, (), tuple(whole[len(ids) :]))


RUNGS = ("none", "constant", "gated", "rigid", "rank_2", "affine", "full")


@pytest.mark.parametrize(
    ("pair", "prefix", "position"),
    [
        (("base", "lora"), "steered", "all"),
        (("base", "prompt_0"), "mapped", "all"),
        (("prompt_0", "lora"), "mapped", "answer"),
        (("lora", "prompt_0"), "mapped", "all"),
    ],
)
def test_every_recovery_is_that_of_plain_hooks(
    climbed: Path, plain: Plain, pair: tuple[str, str], prefix: str, position: str
) -> None:
    """On the other half of the queries, every rung, in every other layer and the last."""
    found = rows(climbed, pair).query("queries == 'matched' and position == @position")
    found = found.set_index(["measure", "site", "layer"])["value"]
    receiver = plain.everything[pair[prefix == "mapped"]]
    scored = [i for i in range(len(TEXTS)) if i not in plain.fit]
    for layer in plain.layers[::2]:
        cell, kl, left = Cell("resid_post", layer, None, position), {}, {}
        for rung in RUNGS:
            site = f"resid_post:{rung}"
            ridge = found.get(("mapped_ridge", site, layer), math.nan)
            sources = [plain.mapped(pair, cell, rung, ridge, i) for i in scored]
            kl[rung] = [
                kl_logits(
                    plain.everything[pair[1]][i].logits,
                    patching.patched(plain.model, source, receiver[i], cell),
                ).sum()
                for i, source in zip(scored, sources, strict=True)
            ]
            left[rung] = sum(
                squares(plain, pair[1], cell, i, s) for i, s in zip(scored, sources, strict=True)
            )
            mean = np.mean(kl[rung])
            assert found[f"{prefix}_kl", site, layer] == pytest.approx(mean, abs=TOLERANCE)
        for rung in RUNGS[1:-1]:
            site = f"resid_post:{rung}"
            wanted = {
                f"{prefix}_recovery": 1 - sum(kl[rung]) / sum(kl["none"]),
                f"{prefix}_shortfall": (sum(kl[rung]) - sum(kl["full"])) / sum(kl["none"]),
                "mapped_variance": 1 - left[rung] / left["none"],
            }
            for measure, value in wanted.items():
                assert found[measure, site, layer] == pytest.approx(value, abs=TOLERANCE)


def squares(plain: Plain, target: str, cell: Cell, i: int, source: Observed) -> float:
    own, at = plain.everything[target][i], source.query.rows(cell.position)
    apart = own.states.resid_post[cell.layer] - source.states.resid_post[cell.layer]
    return float((apart[at] ** 2).sum())


# --- what is in the table -------------------------------------------------------------------------


def test_every_map_has_its_rows_on_both_groups(climbed: Path) -> None:
    found = rows(climbed)
    of = load_run(climbed).ladder
    kinds = {(a, b): kind for a, b, kind in of.maps}
    assert kinds == {
        ("base", "prompt_0"): "base",
        ("base", "lora"): "base",
        ("prompt_0", "lora"): "pair",
        ("lora", "prompt_0"): "pair",
        ("prompt_0", "prompt_1"): "within",
        ("base", "neutral"): "nulls",
        ("neutral", "lora"): "nulls",
        ("lora", "neutral"): "nulls",
        ("base", "random_lora"): "nulls",
        ("prompt_0", "random_lora"): "nulls",
        ("random_lora", "prompt_0"): "nulls",
    }
    assert set(zip(found["condition"], found["reference"], strict=True)) == set(kinds)
    steered = found[found["measure"].str.startswith("steered")]
    assert set(steered["condition"]) == {"base"}
    assert of.rungs == ["constant", "gated", "rigid", "rank_2", "affine"]
    assert of.nulls_of("prompt_0", "lora") == [("neutral", "lora"), ("prompt_0", "random_lora")]
    recovery = found[(found["measure"] == "mapped_recovery") & found["value"].notna()]
    n = recovery.groupby("queries")["n"].agg(["min", "max"])
    assert n.loc["matched"].tolist() == [8, 8]
    assert n.loc["heldout"].tolist() == [3, 3]
    place = ["measure", "condition", "reference", "site", "layer", "position", "queries"]
    assert not found.duplicated(place).any()


def test_full_interchange_is_the_ceiling(climbed: Path) -> None:
    """In the target's run the target's own state recovers all, to the bit."""
    found = rows(climbed).query("site == 'resid_post:full'")
    own = found[found["measure"] == "mapped_kl"]
    assert (own["value"] == 0).all()
    assert (found.loc[found["measure"] == "mapped_recovery", "value"].dropna() == 1).all()
    last = found[(found["layer"] == tiny_models.N_LAYERS - 1) & (found["position"] == "all")]
    assert np.allclose(last.loc[last["measure"] == "steered_recovery", "value"].dropna(), 1)


def test_the_findings_say_what_suffices(climbed: Path) -> None:
    run = load_run(climbed)
    said = read_manifest(climbed)["ladder"]
    assert said["no_op"] == 0.0
    assert said["n"] == {"fitted": 8, "matched": 8, "heldout": 3}
    assert said["words"] == run.ladder.words
    assert "with so few" in said["notes"][0]
    assert run.ladder.deciding == "heldout"
    assert len(said["words"]) == 11 + 4  # both receivers of the four from base
    section = ladder_section(run)
    assert section is not None
    assert len(section["layers"].rows) == tiny_models.N_LAYERS
    assert {row[1].text for row in section["segments"].rows} == {"answer"}
    assert ladder_table(run)


def test_the_figure_shows_the_table(climbed: Path) -> None:
    run = load_run(climbed)
    drawn = tidy(equivalence_ladder(run))
    lines = drawn[drawn["measure"].str.endswith("recovery") & drawn["site"].notna()]
    table = run.table[(run.table["position"] == "all") & (run.table["queries"] == "heldout")]
    keys = ["measure", "condition", "reference", "site", "layer"]
    both = lines.merge(table, on=keys, suffixes=("", "_table"))
    assert len(both) == len(lines) > 50
    np.testing.assert_allclose(both["value"], both["value_table"], rtol=1e-5, atol=1e-6)
    assert set(both["measure"]) == {"mapped_recovery", "steered_recovery"}
    nulls = drawn[drawn["band"].notna()]
    assert {"base to random_lora"} < set(nulls["band"])
    with pytest.raises(NotMeasured, match="interp ladder"):
        equivalence_ladder(replace(run, manifest={**run.manifest, "ladder": None}))


# --- the same again -------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    """A key was pressed."""


def test_a_ladder_in_small_pieces_that_is_interrupted_goes_on_to_the_same_numbers(
    run: Path, climbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer fitted at a time, four queries a shard, one or two in a forward pass."""
    monkeypatch.setattr("interp.store.SHARD", 4)
    one: dict[str, Any] = {"maps": ("base",), "condition": "lora", "reference": "base"}
    asked = Ladder(run=run, **QUICK, **one, memory=3e-4, sums=1e-6)
    fitted: list[Sequence[int]] = []

    def counted(job: Any, move: Any, layers: Sequence[int]) -> Any:
        fitted.append(layers)
        return fitted_maps(job, move, layers)

    monkeypatch.setattr("interp.rungs.climbing.fitted_maps", counted)

    def pressed(stage: str, done: int, total: int) -> None:
        if stage == "ladder" and len(fitted) == 2:  # the first shard of the second layer
            raise Interrupted

    with pytest.raises(Interrupted):
        ladder(asked, pressed)
    assert not (run / LADDER).exists()
    assert "ladder" not in load_run(run).manifest
    with pytest.raises(RunError, match=r"begun with other settings \(margin\)"):
        ladder(asked.model_copy(update={"margin": 0.2, "resume": True}))
    ladder(asked.model_copy(update={"resume": True}))
    assert fitted == [(0,), (1,), (1,), (2,)]  # the first layer is not done again
    pair, place = ("base", "lora"), ["measure", "site", "layer", "position", "queries"]
    found, expected = (
        rows(folder, pair).sort_values(place).reset_index(drop=True) for folder in (run, climbed)
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-5)


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"condition": "nobody"}, "no condition 'nobody' in .*: it has prompt_0, prompt_1, lora"),
        ({"maps": ("within",), "condition": "lora", "reference": "base"}, "no map of within"),
    ],
)
def test_what_cannot_be_climbed_is_one_line(
    run: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        ladder(Ladder(run=run, **fields))
    assert "\n" not in str(refused.value)
    assert not (run / LADDER).exists()


def test_too_few_queries_are_one_line(
    root: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.rungs.job.FEWEST", 17)
    with pytest.raises(ConfigError, match="has 16 matched queries: a ladder needs 17 or more"):
        ladder(Ladder(run=run))


def test_a_run_without_a_ladder_says_how_to_make_one(root: Path) -> None:
    with pytest.raises(RunError, match="has no ladder: make one with `interp ladder"):
        ladder_table(load_run(root / "RUN"))
