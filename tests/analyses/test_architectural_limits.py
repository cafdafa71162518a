"""The script runs on the bundled model, and what it says of facts is in its table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scripts import script

from interp.finding import read_finding

LIMITS = ("architectural_limits.py", "--examples", "0", "--counts", "2", "--steps", "30")
LIMITS += ("--limit", "8", "--bootstrap", "30")


def test_a_lora_recalls_the_facts_that_it_was_given(tmp_path: Path) -> None:
    done = script(*LIMITS, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "architectural_limits"
    table = pd.read_csv(out / "table.csv").set_index(["panel", "series"])
    assert table.loc[("facts that were stored", "LoRA, rank 1"), "value"] == 1
    assert table.loc[("facts that were stored", "nothing added"), "value"] == 0
    assert table.loc[("facts that were not", "LoRA, rank 1"), "n"] == 6
    assert read_finding(out).point == 4


def test_no_facts_to_store_is_one_line(tmp_path: Path) -> None:
    done = script(*LIMITS, "--counts", "0", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "interp: give --counts of 1 fact or more, and --ranks\n"
