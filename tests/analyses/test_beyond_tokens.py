"""What says the same is looked at inside, and the verdict follows from the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from scripts import script

from interp import organism

SMALL = ["--limit", "8", "--steps", "3", "--text-steps", "1", "--shots", "2", "--virtual", "2"]


def test_emulations_are_certified_and_measured_inside(tmp_path: Path) -> None:
    seed = str(organism.ADAPTERS / "lora_1")
    done = script("beyond_tokens.py", *SMALL, "--floor", seed, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "beyond_tokens"
    table = pd.read_csv(out / "table.csv").query("queries == 'matched'").set_index("condition")
    far = table["relative_l2"]
    for biased in ("logit_bias", "bias_per_query"):
        assert far[biased] == pytest.approx(far["base"], rel=1e-4)
    assert far["text"] == far["text_and_bias"]
    assert table.loc["bias_per_query", "passed"]
    assert table["petrov_residual"].drop("other seeds").max() < 1e-12
    assert table.loc["other seeds", "petrov_residual"] > 1e-2
    finding = json.loads((out / "finding.json").read_text())
    prompts = table.loc[["text", "few_shot", "soft_prompt", "prefix"]]
    best = prompts["kl"].idxmin()
    assert finding["verdict"].upper() in done.stdout
    if prompts.loc[best, "passed"]:
        ratio = far[best] / far["other seeds"]
        assert finding["contrast"]["value"] == pytest.approx(ratio, rel=1e-4)
    else:
        assert finding["verdict"] == "undecided"
    assert "A logit bias moves states by 0;" in finding["sentence"]
