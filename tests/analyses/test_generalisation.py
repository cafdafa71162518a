"""Prompts fitted to few queries are scored on others, and the verdict follows from the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from scripts import script

SMALL = ["--counts", "1", "--draws", "2", "--limit", "6", "--steps", "3", "--text-steps", "2"]


def test_a_prompt_is_scored_on_what_it_has_not_seen(tmp_path: Path) -> None:
    done = script("generalisation.py", *SMALL, "--tokens", "1", "--shots", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "generalisation"
    table = pd.read_csv(out / "table.csv")
    prompts = table[table["series"].isin(["text", "soft prompt", "prefix", "demonstrations"])]
    seen, unseen = (
        prompts[prompts["panel"] == panel].set_index(["series", "x"])["value"]
        for panel in ("fitted queries", "unseen queries")
    )
    assert len(seen) == len(unseen) == 8
    assert not seen.equals(unseen)
    equals = table[table["series"] == "other LoRA seeds"]["value"]
    assert equals.min() > 0.9
    assert table["value"].max() <= 1
    finding = json.loads((out / "finding.json").read_text())
    assert finding["n"] == 6
    assert finding["verdict"].upper() in done.stdout


def test_wordings_must_have_every_heldout_query(tmp_path: Path) -> None:
    file = tmp_path / "reworded.jsonl"
    file.write_text('{"text": "big ->"}\n')
    done = script("generalisation.py", "--wordings", str(file), folder=tmp_path)
    assert done.returncode == 2
    assert "write the held-out queries in their order" in done.stderr
    assert done.stderr.count("\n") == 1
