"""A target whose state is a map of base's is found at that rung by what it does, and not below."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from interp import Experiment, Ladder, ladder, load_run
from interp.edits import Edit
from interp.edits import replace as replace_by
from interp.moments import ShiftMoments
from interp.names import Site
from interp.patching.interchange import ConditionRun, read_conditions
from interp.patching.patched import patched_logits
from interp.patching.sites import reached
from interp.rungs.climbing import MappedStates, output_kl, state_squares
from interp.rungs.job import LadderJob, folds_of, prepare_ladder
from interp.rungs.maps import fit_maps
from interp.runs.files import read_manifest
from interp.study import run_study
from interp.subject import Batch

LAYER, MARGIN, RANKS = 1, 0.05, (1, 2, 4)
WORDS = "hot is the opposite of cold and a river wide hill high tom said lily yes people walked"
TEXTS = tuple(" ".join(np.random.default_rng(i).permutation(WORDS.split())[:5]) for i in range(32))
Plant = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of base and of base with a constant added to its states after a layer."""
    root = tmp_path_factory.mktemp("planted")
    model = tiny_models.save_model("qwen3", root / "model")
    vector = tiny_models.save_steering(model, root / "vector.safetensors", size=4.0)
    (root / "fit.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    steering = {"steering": {"vector": vector, "layer": LAYER}}
    experiment = Experiment(
        model=model,
        conditions={"steered": steering},
        queries=root / "fit.jsonl",
        controls=(),
        measures=("js_divergence", "relative_l2"),
        out=root / "RUN",
        bootstrap=20,
        permutations=0,
        device="cpu",
    )
    run_study(experiment)
    return root


def test_a_steering_vector_is_a_constant_and_nothing_less(root: Path) -> None:
    """Where it is added; below that layer base's state is the condition's own, and carries none of
    it; no map of the states above is a constant."""
    asked = Ladder(run=root / "RUN", condition="steered", ranks=(1, 4), margin=MARGIN, bootstrap=50)
    of = load_run(ladder(asked)).ladder
    there = {one.layer: one for one in of.enough("base", "steered")}
    own = {one.layer: one for one in of.enough("base", "steered", into="source")}
    assert there[0].rung == "as it is"
    assert there[0].unmapped == 0.0
    assert own[0].rung == "nothing"
    for found in (there[LAYER], own[LAYER]):
        assert found.rung == "constant"
        assert (found.value, found.full) == pytest.approx((1, 1), abs=1e-4)
        assert 1 - MARGIN < found.ci_low <= found.ci_high <= 1 + 1e-6
    assert own[LAYER + 1].rung != "constant"
    explained = of.rows("mapped_variance", "base", "steered", "constant").set_index("layer")
    assert explained.loc[LAYER, "value"] == pytest.approx(1, abs=1e-6)
    assert np.isnan(explained.loc[0, "value"])  # nothing to explain is no share of it
    assert explained.loc[0, "n"] == 0
    assert explained.loc[LAYER + 1, "value"] < 0.95


@pytest.fixture(scope="module")
def job(root: Path) -> LadderJob:
    asked = Ladder(run=root / "RUN", condition="steered", ranks=RANKS)
    return prepare_ladder(asked, read_manifest(root / "RUN"))


def constant(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return x + 3 * torch.randn(x.shape[-1], generator=g)


def rotated(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    turn = torch.linalg.qr(torch.randn(x.shape[-1], x.shape[-1], generator=g))[0]
    return 1.1 * x @ turn


def low_rank(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    u, v = (torch.randn(x.shape[-1], 2, generator=g) for _ in range(2))
    return x + x @ u @ v.T / 3


@pytest.mark.parametrize(
    ("plant", "rung"), [(constant, "constant"), (rotated, "rigid"), (low_rank, "rank_2")]
)
def test_a_planted_map_recovers_what_the_state_says(
    job: LadderJob, plant: Plant, rung: str
) -> None:
    folds = folds_of([query.key for query in job.fitted], job.seed)
    sums = [
        moments(job, [q for q, own in zip(job.fitted, folds, strict=True) if own == fold], plant)
        for fold in range(3)
    ]
    maps = {(LAYER, "all"): fit_maps(sums, RANKS)}
    chunk = job.scored
    base, target = runs(job, chunk, plant)
    states, cells = MappedStates(base, target, maps), job.cells([LAYER])
    kl = output_kl(job, states, "base", base, cells, chunk).sum(0)
    left, shift, _ = (array.sum(0) for array in state_squares(states, cells, chunk))
    recovery = {c.rung: 1 - kl[n] / kl[0] for n, c in enumerate(cells)}
    explained = {c.rung: 1 - left[n] / shift[n] for n, c in enumerate(cells)}
    assert recovery["full"] == pytest.approx(1, abs=1e-6)
    assert recovery["none"] == explained["none"] == 0
    assert recovery[rung] > 1 - 1e-3, recovery
    assert explained[rung] > 1 - 1e-3, explained
    below = job.rungs[: job.rungs.index(rung)]
    assert all(recovery[name] < 1 - MARGIN for name in below), recovery
    assert all(explained[name] < 1 - MARGIN for name in below), explained


def runs(job: LadderJob, chunk: Sequence[Any], plant: Plant) -> tuple[ConditionRun, ConditionRun]:
    """Base's run, and the same from a mapped state on."""
    batch, site = Batch.forced(chunk), Site("resid_post", LAYER)
    base = read_conditions(job.subject, batch, job.caches, ["base"], ["resid_post"])["base"]
    value = plant(base.values[site], torch.Generator().manual_seed(5))
    setting = job.subject.settings["base"]
    made = patched_logits(
        job.subject, setting, batch, base.cache, base.entries, [[Edit(site, replace_by(value))]], 99
    )
    [(_, logits)] = made
    return base, replace(base, values={**base.values, site: value}, logits=logits[0])


def moments(job: LadderJob, chunk: Sequence[Any], plant: Plant) -> ShiftMoments:
    base, target = runs(job, chunk, plant)
    rows = torch.from_numpy(reached(chunk, "all"))
    x, y = (run.values[Site("resid_post", LAYER)][rows].double().numpy() for run in (base, target))
    return ShiftMoments.of(x, y - x)
