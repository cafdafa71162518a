"""Prompts of growing size are compared with the LoRA; the verdict follows from the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from scripts import script

SMALL = ["--virtual", "1", "--tokens", "1", "--shots", "2", "--draws", "1", "--limit", "6"]


def test_strength_is_given_by_bits_with_and_without_a_bias(tmp_path: Path) -> None:
    done = script(
        "equivalence_strength.py", *SMALL, "--steps", "3", "--text-steps", "2", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "equivalence_strength"
    table = pd.read_csv(out / "table.csv")
    assert set(table["panel"]) == {
        f"fitted to {n}, {where} queries" for n in (1, 6) for where in ("these", "unseen")
    }
    alone = table[
        (table["panel"] == "fitted to 1, these queries") & (table["series"] == "logit bias alone")
    ]
    assert alone["value"].item() < 0.01  # one distribution needs no more than a bias
    text = table[table["series"] == "text"]["x"]
    assert text.min() < table[table["series"] == "soft prompt"]["x"].min() / 100
    finding = json.loads((out / "finding.json").read_text())
    assert finding["verdict"].upper() in done.stdout
    assert {file.name for file in (out / "figures").glob("*.csv")} == {
        "equivalence_strength.csv",
        "with_logit_bias.csv",
    }


def test_unseen_queries_are_needed(tmp_path: Path) -> None:
    done = script("equivalence_strength.py", "--heldout", "None", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "interp: unseen queries are asked for: give --heldout\n"
