"""A prompt as weights: the distilled LoRA is matched on fitted queries, the verdict follows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from scripts import script

SMALL = ["--limit", "12", "--ranks", "1", "8", "--ridges", "0.1", "--bootstrap", "20"]


def test_one_adapter_carries_the_prompt_on_the_queries_it_was_fitted_to(tmp_path: Path) -> None:
    done = script("prompt_as_weights.py", *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "prompt_as_weights"
    table = pd.read_csv(out / "table.csv").set_index(["panel", "series", "x"])["value"].sort_index()
    fitted = table["fitted queries", "fitted to the implicit updates"]
    unseen = table["unseen queries", "fitted to the implicit updates"]
    assert fitted[8] > 0.99
    assert fitted[1] < fitted[8]
    assert (unseen < fitted).all()
    assert table["unseen queries", "distilled LoRA"].gt(0.95).all()
    finding = json.loads((out / "finding.json").read_text())
    assert abs(finding["contrast"]["value"] - unseen[8]) < 1e-6
    assert finding["verdict"].upper() in done.stdout
    assert "have effective rank" in finding["sentence"]
    assert (out / "figures" / "implicit.csv").is_file()
