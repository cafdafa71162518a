"""The script runs on the bundled model, and its finding is in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from interp.finding import read_finding

SCRIPT = Path(__file__).resolve().parents[2] / "analyses" / "context_distortion.py"


def test_a_little_filler_takes_nothing_away(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--limit", "4", "--lengths", "8", "--bootstrap", "30"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "NOT SUPPORTED" in done.stdout
    out = tmp_path / "runs" / "context_distortion"
    finding = read_finding(out)
    assert finding.contrast.value < 0.05
    assert finding.n == 4
    assert (out / "figures" / "query_mass.csv").is_file()
