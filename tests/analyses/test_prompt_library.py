"""Libraries of prompts are scored on both targets, and the verdict is on the worse one."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from scripts import script

SMALL = ["--limit", "15", "--sizes", "1", "2", "--tokens", "1", "--steps", "2", "--epochs", "2"]


def test_the_verdict_is_on_the_harder_target(tmp_path: Path) -> None:
    done = script("prompt_library.py", *SMALL, "--loras", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "prompt_library"
    table = pd.read_csv(out / "table.csv")
    assert list(table["panel"].unique()) == ["one task", "a mixture of 5 tasks"]
    unseen = table[table["queries"] == "heldout"].set_index(["panel", "series", "x"])["value"]
    for panel in table["panel"].unique():
        for k in (1, 2):
            assert unseen[panel, "oracle router", k] >= unseen[panel, "nearest centroid", k]
        one = [unseen[panel, name, 1] for name in ("oracle router", "random router")]
        assert one[0] == one[1]  # of one prompt there is nothing to pick
    finding = json.loads((out / "finding.json").read_text())
    routed = unseen[unseen.index.get_level_values(1).str.startswith("nearest centroid")]
    assert (routed - finding["contrast"]["value"]).abs().min() < 1e-6
    assert finding["contrast"]["value"] <= routed["one task"].max()
    assert finding["verdict"].upper() in done.stdout
