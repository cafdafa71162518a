"""`interp read` on a run: plain Hugging Face + peft and numpy say the same of every difference."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference.models
import reference.running
import tiny_models
from reference.conditions import Condition
from reference.readout import unembedding
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.config import Experiment
from interp.errors import ConfigError, RunError
from interp.reading.run import read_run
from interp.reading.settings import DifferenceReading
from interp.runs.files import READ_TOKENS, READING
from interp.runs.view import Run, load_run
from interp.study import run_study

from .conftest import LAST, OTHERS, PLANTED, TEXTS, WORDS

ACTING = {"patchscope": True, "steer": (3.0,), "steer_layer": LAST, "steer_texts": 1}
ACTING |= {"steer_tokens": 2, "variables": False}
"""Vectors put to work, on little."""


def states(made: Any, run: Run, condition: str, group: str) -> np.ndarray:
    """`[query, layer, pos...]` as lists: plain runs of one query at a time, all of its tokens."""
    adapter = made["lora"] if condition == "lora" else None
    plain = Condition(prefix=tuple(prefix_of(made, run, condition)), adapter=adapter)
    return plainly(made["model"], plain, group)


@functools.cache
def plainly(folder: str, plain: Condition, group: str) -> Any:
    model = reference.models.open_model(folder, *plain.weights)
    words = AutoTokenizer.from_pretrained(folder)
    texts = TEXTS if group == "matched" else OTHERS
    queries = [words(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [reference.running.run(model, plain, ids).resid_post for ids in queries]


def prefix_of(made: Any, run: Run, condition: str) -> list[int]:
    words = AutoTokenizer.from_pretrained(made["model"])
    joint = "people talked about small things "
    bos = [words.bos_token_id] if "llama" in str(made["root"]) else []
    if condition != "prompt":
        return bos
    ids = words(joint.strip() + ("" if bos else "\n"), add_special_tokens=False)["input_ids"]
    return [*bos, *ids]


def value(
    run: Run, measure: str, pair: tuple[str, str], group: str, position: str, layer: int
) -> Any:
    rows = run.rows(measure, "resid_post", pair, position, group)
    return rows[rows["layer"] == layer].iloc[0]


@pytest.mark.parametrize("group", ["matched", "unrelated"])
@pytest.mark.parametrize("position", ["last", "mean"])
@pytest.mark.parametrize("pair", [("prompt", "base"), ("lora", "base"), ("lora", "prompt")])
def test_scores_ranks_and_sizes_are_numpys(
    made: Any, run: Run, pair: tuple[str, str], position: str, group: str
) -> None:
    """From states of plain models: mean over tokens, difference, the norm's gain and centring by
    hand, the unembedding's rows, a standard score over the vocabulary."""
    of = {name: states(made, run, name, group) for name in {*pair, "base"}}
    pool = (lambda x: x[:, -1]) if position == "last" else (lambda x: x.mean(1))
    means = {name: np.stack([pool(x) for x in own]) for name, own in of.items()}
    hf = AutoModelForCausalLM.from_pretrained(made["model"])
    norm, (weight, _) = reference.models.final_norm(hf), unembedding(hf)
    words = [
        AutoTokenizer.from_pretrained(made["model"])(f" {w}", add_special_tokens=False)
        for w in WORDS
    ]
    tokens = [own["input_ids"][0] for own in words]
    for layer in range(tiny_models.N_LAYERS):
        mean = (means[pair[0]] - means[pair[1]])[:, layer].mean(0)
        size = np.linalg.norm(mean)
        scale = np.linalg.norm(means["base"][:, layer], axis=-1).mean()
        found = value(run, "difference_norm", pair, group, position, layer)
        assert found["value"] == pytest.approx(size / scale, rel=1e-4, abs=1e-9)
        score = value(run, "word_score", pair, group, position, layer)
        if size < 1e-5 * scale:  # below the LoRA's first layer: nothing is said
            assert np.isnan(score["value"])
            continue
        logits = norm.linear(mean, np.ones(1)) @ weight.T
        each = (means[pair[0]] - means[pair[1]])[:, layer]
        single = norm.linear(each, np.ones(1)) @ weight.T
        above = single[:, tokens].mean(1) - single.mean(1)
        wanted = above.mean() / np.sqrt(single.var(1).mean())
        assert score["value"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
        assert score["ci_low"] <= score["value"] <= score["ci_high"]
        ranks = [1 + (logits > logits[t]).sum() for t in tokens]
        rank = value(run, "word_rank", pair, group, position, layer)
        assert rank["value"] == pytest.approx(np.median(ranks), abs=1)
        said = run.reading.said(pair, group, layer, position)
        np.testing.assert_allclose(
            said["score"], (logits[said["token_id"]] - logits.mean()) / logits.std(), atol=2e-3
        )
        assert said.iloc[0]["token_id"] == logits.argmax()


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_a_vector_along_an_unembedding_row_is_named_first(made: Any, tmp_path: Path) -> None:
    """The planted shift is the same at every query: it is all of the difference, named first, and
    its word is told from random differences."""
    manifest = json.loads((made["settings"].run / "manifest.json").read_text())
    fields = {**manifest["config"], "compare": ["steered", "lora"], "out": str(tmp_path)}
    run_study(Experiment.model_validate(fields))
    settings = made["settings"].model_copy(update={"run": tmp_path, "words": (PLANTED,)} | ACTING)
    run = load_run(read_run(settings))
    pair = ("steered", "base")
    for group in ("matched", "unrelated"):
        for position in ("last", "mean"):
            said = run.reading.said(pair, group, LAST, position)
            assert said.iloc[0]["token_id"] == made["token"]
            assert said.iloc[0]["task"]
            assert value(run, "word_rank", pair, group, position, LAST)["value"] == 1
            row = value(run, "word_score", pair, group, position, LAST)
            assert row["value"] > 2
            assert row["ci_high"] - row["ci_low"] < 0.05
            for layer in range(LAST):  # nothing is added below
                assert np.isnan(value(run, "word_score", pair, group, position, layer)["value"])
        scope = run.reading.rows("patchscope_score", pair, group, "last")
        assert np.isnan(scope["value"].tolist()[:-1]).all()  # no difference, nothing to write
        assert scope.iloc[-1]["value"] > 1
        strongest = run.reading.strongest(pair, group)
        assert strongest is not None
        assert strongest["layer"] == LAST
    samples = run.table[run.table["measure"] == "steered_words"]
    own = samples[(samples["condition"] == "steered") & (samples["queries"] == "matched")]
    assert own["value"].tolist() == [1.0]
    assert samples[samples["condition"] == "base"]["value"].max() < 1
    row = value(run, "word_score", pair, "matched", "last", LAST)
    assert row["p_adjusted"] <= 0.04  # no two of base's states differ by it


def test_each_pair_stands_beside_its_controls(run: Run) -> None:
    of = run.reading
    assert of.against_base == [
        ("prompt", "base"), ("lora", "base"), ("neutral", "base"), ("random_lora", "base"),
    ]  # fmt: skip
    assert of.pairs["prompt", "base"] == ("neutral", "base")
    assert of.pairs["lora", "base"] == ("random_lora", "base")
    assert ("lora", "prompt") in of.pairs
    for position in ("last", "mean"):
        own, null, more = (
            value(run, measure, pair, "matched", position, LAST)["value"]
            for measure, pair in (
                ("word_score", ("lora", "base")),
                ("word_score", ("random_lora", "base")),
                ("word_score_excess", ("lora", "base")),
            )
        )
        assert more == pytest.approx(own - null)


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_a_killed_reading_is_resumed_with_the_same_bytes(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second group of texts fails: what the first left is not read again."""
    import interp.reading.run as module

    folder = Path(shutil.copytree(made["settings"].run, tmp_path / "run"))
    settings = made["settings"].model_copy(update={"run": folder})
    names = ("results.parquet", READING, READ_TOKENS)
    before = {name: (folder / name).read_bytes() for name in names}
    real, seen = module.segment_means, []

    def breaking(subject: Any, name: str, queries: Any, *rest: Any) -> Any:
        seen.append(queries[0].key)
        if queries[0].key.startswith("unrelated"):
            raise KeyboardInterrupt
        return real(subject, name, queries, *rest)

    monkeypatch.setattr(module, "segment_means", breaking)
    with pytest.raises(KeyboardInterrupt):
        read_run(settings)
    assert any(key.startswith("matched") for key in seen)
    seen.clear()
    monkeypatch.setattr(
        module, "segment_means", lambda *given: seen.append(given[2][0].key) or real(*given)
    )
    read_run(settings.model_copy(update={"resume": True}))
    assert not any(key.startswith("matched") for key in seen)
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert not (folder / ".unfinished").exists()


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_faults_are_one_line(made: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        read_run(DifferenceReading(run=tmp_path))
    with pytest.raises(ConfigError, match="no token for ''"):
        read_run(made["settings"].model_copy(update={"words": ("",)}))
