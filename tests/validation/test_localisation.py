"""The benchmark's cases are what they say, and its scores those of their definitions."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from interp.validation.planted import places_of

FILE = Path(__file__).parents[2] / "benchmarks" / "localisation.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("localisation", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["localisation"] = module
    spec.loader.exec_module(module)
    return module


def test_cases_are_balanced_and_noise_is_elsewhere(benchmark: Any, tmp_path: Path) -> None:
    places = places_of(tiny_models.save_model("phi3", tmp_path / "phi3"))
    cases = list(benchmark.draw(places, range(30), np.random.default_rng(0)))
    counted = Counter((case.place.part, case.way, bool(case.noise)) for case in cases)
    assert set(counted.values()) == {1}
    assert len(counted) == 5 * 3 * 2
    for case in cases:
        modules = [case.place.module, *(place.module for place in case.noise)]
        assert len(set(modules)) == len(modules)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_planted_heads_stand_out_where_they_must(benchmark: Any, architecture: str) -> None:
    found = list(benchmark.of_architecture(architecture, range(12), 1))
    clean = {"q": "petrov_residual", "k": "petrov_residual", "v": "change_value",
             "o": "influence, pinned"}  # fmt: skip
    assert all(one.exact for one in found if one.case.way != "one")
    for one in found:
        if one.case.place.part == "mlp":
            continue
        scores = one.heads[clean[one.case.place.part]]
        assert scores[one.planted].min() > scores[~one.planted].max()


def test_named_layers(benchmark: Any) -> None:
    assert benchmark.named(np.array([0.0, 0.0, 0.3, 0.4])) == {
        "largest": 2, "largest rise": 1, "first over 1e-5": 1,
    }  # fmt: skip
    assert benchmark.named(np.zeros(4))["first over 1e-5"] == -1


def test_raw_cka_is_blind_to_rotation_and_scale(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 5))
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    assert benchmark.raw_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert benchmark.raw_cka(x, rng.standard_normal((20, 5))) < 0.9
