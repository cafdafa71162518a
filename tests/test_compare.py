"""Runs of the bundled model about other pairs than a prompt and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import organism
from interp.config import Experiment, bundled
from interp.manifest import fingerprints
from interp.patching.run import patch
from interp.patching.settings import Patching
from interp.plots import figures
from interp.report import text_table
from interp.report.page import page
from interp.runs.files import sha256
from interp.runs.sentences import verdict_words
from interp.runs.view import Run, load_run
from interp.study import run_study

LORAS = [str(organism.ADAPTERS / f"lora_{i}") for i in (0, 1)]
TEXT = {"file": str(organism.PROMPTS / "instruction_0.txt")}
SMALL: dict[str, Any] = {
    "limit": 6,
    "bootstrap": 5,
    "permutations": 19,
    "sample": 0,
    "max_positions": 1,
}
SIDES: dict[str, Any] = {
    "p": {"prompt": TEXT},
    "both": [{"prompt": TEXT}, {"lora": {"adapter": LORAS[0]}}],
}
RUNS: dict[str, dict[str, Any]] = {
    "usual": {"prompt_file": (TEXT["file"],), "adapter": LORAS[:1]},
    "added": {"conditions": SIDES},
    "loras": {"adapter": LORAS, "compare": ("lora_1", "lora_0")},
    "alone": {"adapter": LORAS[:1], "compare": ("base", "lora")},
}
"""By name: a prompt and an adapter; a prompt, and the same with the adapter; two adapters; base."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The four runs."""
    folder, common = tmp_path_factory.mktemp("runs"), bundled(Path())
    common = {name: common[name] for name in ("model", "queries")} | SMALL
    return {
        name: load_run(run_study(Experiment(**common | fields, out=folder / name)))
        for name, fields in RUNS.items()
    }


def named(pair: tuple[str, str]) -> dict[str, str]:
    return {"condition": pair[0], "reference": pair[1]}


@pytest.mark.parametrize(
    ("name", "pair", "nulls", "tested"),
    [
        (
            "usual",
            ("prompt", "lora"),
            {
                "neutral": 0,
                "shuffled_tokens": 0,
                "shifted": 0,
                "random_lora": 1,
                "logit_bias": 0,
                "untrained": 1,
            },
            {"prompt": "neutral", "lora": "random_lora"},
        ),
        (
            "added",
            ("p", "both"),
            {"random_lora": 1, "logit_bias": 0, "untrained": 1},
            {"both": "random_lora"},
        ),
        (
            "loras",
            ("lora_1", "lora_0"),
            {"random_lora": 0, "logit_bias": 0, "untrained": 0},
            {"lora_1": "random_lora"},
        ),
        (
            "alone",
            ("lora", "base"),
            {"random_lora": 0, "logit_bias": 0, "untrained": 0},
            {"lora": "random_lora"},
        ),
    ],
)
def test_headline_nulls_and_tests(
    runs: dict[str, Run],
    name: str,
    pair: tuple[str, str],
    nulls: dict[str, int],
    tested: dict[str, str],
) -> None:
    manifest, table = runs[name].manifest, runs[name].table
    assert manifest["headline"] == named(pair)
    places = {c: (c, pair[1]) if at == 0 else (pair[0], c) for c, at in nulls.items()}
    assert manifest["nulls"] == [{"control": c} | named(two) for c, two in places.items()]
    null = places["neutral" if "neutral" in nulls else "random_lora"]
    assert manifest["null_pair"] == named(null)
    against = {pair: null}
    for side, own in tested.items():
        against |= {(side, "base"): (own, "base"), (side, ""): (own, "")}
    assert manifest["tests"]["against"] == [[list(a), list(b)] for a, b in against.items()]
    kinds = {c: entry["kind"] for c, entry in manifest["conditions"].items()}
    assert {c for c in kinds if kinds[c] == "control"} == set(nulls)
    have_p = table[table["p_adjusted"].notna()]
    found = set(zip(have_p["condition"], have_p["reference"].fillna(""), strict=True))
    assert found == set(against)
    headline = runs[name].rows("relative_l2", "resid_post", pair, "last")
    assert headline["p_adjusted"].between(1 / 20, 1).all()
    assert len(headline) == manifest["model"]["n_layers"]


def test_a_prompt_with_a_random_lora_is_its_null_and_not_the_random_lora_alone(
    runs: dict[str, Run],
) -> None:
    """The prompt is on both sides: as many tokens before the query, and nearer than without."""
    entries = runs["added"].manifest["conditions"]
    assert entries["random_lora"]["n_prefix"] == entries["p"]["n_prefix"] > 1
    assert entries["random_lora"]["description"].startswith("“opposite :” + a random LoRA")

    def distance(name: str, pair: tuple[str, str]) -> np.ndarray:
        return runs[name].rows("relative_l2", "resid_post", pair, "last")["value"].to_numpy()

    shared = distance("added", ("p", "random_lora"))
    alone = distance("usual", ("prompt", "random_lora"))
    assert (shared > 0).all()
    assert (shared < alone).all()


def test_the_same_states_whatever_the_headline(runs: dict[str, Run]) -> None:
    """A condition's distance from base does not depend on what it is compared with."""
    pairs = [("usual", "lora"), ("loras", "lora_0"), ("alone", "lora")]
    found = [
        runs[name].rows("relative_l2", "resid_post", (side, "base"), "last")["value"]
        for name, side in pairs
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.to_numpy(), found[0].to_numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_the_report_names_the_two(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    a, b = run.manifest["headline"].values()
    same = "when they make it say" if run.verdict().passed else "Here they do not make it say"
    mark = "," if run.verdict().passed else "?"
    assert f" do {a} and {b} diverge{mark} {same} the same thing" in page(run, figures(run))
    assert text_table(run) is not None
    assert "residual streams" in verdict_words(run) or "NOT matched" in verdict_words(run)


def test_every_adapter_of_a_condition_is_hashed() -> None:
    """A run whose second adapter has changed is not the run that it was."""
    two = [{"lora": {"adapter": adapter}} for adapter in LORAS]
    fields = {"model": "m", "queries": Path("q"), "out": Path(), "conditions": {"both": two}}
    experiment = Experiment(**fields, compare=("both", "base"))
    hashes = fingerprints(experiment, experiment.build())
    for name in ("both", "random_lora"):
        assert hashes[f"adapter of {name}"] == sha256(LORAS[0])
        assert hashes[f"adapter of {name}, 2"] == sha256(LORAS[1])


def test_patch_takes_the_headline_whatever_it_is(runs: dict[str, Run]) -> None:
    settings = Patching(
        run=runs["loras"].path,
        sites=("resid_post",),
        head_sites=(),
        positions=0,
        attribution=False,
        greedy=0,
        ablate=(),
        bootstrap=5,
        permutations=19,
    )
    patch(settings)
    found = load_run(settings.run).manifest["interchange"]
    assert (found["condition"], found["reference"]) == ("lora_1", "lora_0")
