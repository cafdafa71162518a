"""The chain of a prompt on the bundled model: exact for its own token, and for no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interp.experiments import trial_named
from interp.experiments.trial import Measurement
from interp.progress import no_progress

N, TOKENS = 3, 2


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    kind = trial_named("exact_chain")
    fields = kind.bundled_fields(tmp_path_factory.mktemp("exact_chain"))
    trial = kind(**fields, queries_used=N, tokens=TOKENS, bootstrap=40, limit=N)
    return trial.measure(no_progress)


def test_its_own_chain_is_exact_and_another_query_s_is_not(measured: Measurement) -> None:
    table = measured.table.set_index(["panel", "series", "x"])["value"].sort_index()
    nats = table["KL from the prompted model (nats)"]
    assert nats["its own chain"].max() < 1e-8
    assert nats["base", "1"] > 1
    assert 0.1 * nats["base", "1"] < nats["another query's chain", "1"] < nats["base", "1"]
    assert nats["the first token's chain, kept", "2"] > 0.01
    assert nats["LoRA", "1"] < 0.05 * nats["base", "1"]
    strength = 1 - nats["another query's chain", "1"] / nats["base", "1"]
    assert measured.contrast.value == pytest.approx(strength)
    assert measured.contrast.verdict == "not supported"
    assert f"writes {N * TOKENS} of {N * TOKENS} tokens as with it" in measured.sentence


def test_chains_of_queries_are_far_apart(measured: Measurement) -> None:
    table = measured.table.set_index(["panel", "series", "x"])
    apart = table.loc["relative distance of chains"]
    assert apart["value"].between(0.5, 2).all()
    assert np.isfinite(measured.table[["value", "ci_low", "ci_high"]]).all(axis=None)
    assert set(measured.figures) == {"exact_chain", "chain_distances"}


def test_a_prompt_is_needed(tmp_path: Path) -> None:
    kind = trial_named("exact_chain")
    trial = kind(**kind.bundled_fields(tmp_path) | {"prompt_file": None})
    with pytest.raises(Exception, match="give --prompt-file"):
        trial.measure(no_progress)
