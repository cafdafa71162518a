"""The script runs on the bundled model, and what it says of facts is in its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from interp.finding import read_finding

SCRIPT = Path(__file__).resolve().parents[2] / "analyses" / "architectural_limits.py"
FEW = ("--examples", "0", "--counts", "2", "--steps", "30", "--limit", "8", "--bootstrap", "30")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *FEW, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_lora_recalls_the_facts_that_it_was_given(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "architectural_limits"
    table = pd.read_csv(out / "table.csv").set_index(["panel", "series"])
    assert table.loc[("facts that were stored", "LoRA, rank 1"), "value"] == 1
    assert table.loc[("facts that were stored", "nothing added"), "value"] == 0
    assert table.loc[("facts that were not", "LoRA, rank 1"), "n"] == 6
    assert read_finding(out).point == 4


def test_no_facts_to_store_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "--counts", "0")
    assert done.returncode == 2
    assert done.stderr == "interp: give --counts of 1 fact or more, and --ranks\n"
