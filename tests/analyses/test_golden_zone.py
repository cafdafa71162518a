"""The golden zone: a full factorial, scored on queries that nothing was fitted to."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from scripts import script

SMALL = ["--limit", "6", "--shots", "0", "1", "--steps", "2", "--text-steps", "2"]


def test_every_combination_is_scored_and_the_verdict_follows(tmp_path: Path) -> None:
    done = script("golden_zone.py", *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "golden_zone"
    table = pd.read_csv(out / "table.csv", dtype={"x": str}, keep_default_na=False)
    cells = table[~table["intent"].eq("random vector") & ~table["series"].eq("neutral text")]
    assert len(cells) == 2 * 3 * 3 * 2 * 2  # shots, anchors, intents, biases, groups
    assert not cells.duplicated(["x", "series", "intent", "bias", "queries"]).any()
    unseen = cells[cells["queries"] == "heldout"].set_index(["x", "series", "intent", "bias"])
    nothing = unseen.loc[("0", "no anchor", "none", "none"), "value"]
    assert nothing == 0
    assert unseen.loc[("0", "instruction", "none", "none"), "value"] > 0.9
    finding = json.loads((out / "finding.json").read_text())
    assert (unseen["value"] - finding["contrast"]["value"]).abs().min() < 1e-6
    assert "Of 36 combinations" in finding["sentence"]
    assert finding["verdict"].upper() in done.stdout
