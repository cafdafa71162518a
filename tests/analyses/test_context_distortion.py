"""The script runs on the bundled model, and its finding is in its folder."""

from __future__ import annotations

from pathlib import Path

from scripts import script

from interp.finding import read_finding


def test_a_little_filler_takes_nothing_away(tmp_path: Path) -> None:
    few = ("--limit", "4", "--lengths", "8", "--bootstrap", "30")
    done = script("context_distortion.py", *few, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NOT SUPPORTED" in done.stdout
    out = tmp_path / "runs" / "context_distortion"
    finding = read_finding(out)
    assert finding.contrast.value < 0.05
    assert finding.n == 4
    assert (out / "figures" / "query_mass.csv").is_file()
