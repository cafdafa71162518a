"""The whole path on weights trained by others: distil a prompt, diverge, read the run.

Needs the stories260K folder (INTERP_TEST_MODELS, or ../shared/models beside the project).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from interp.cli import main
from interp.runs.view import load_run

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT / "analyses" / "stories"
MODEL = (
    Path(os.environ.get("INTERP_TEST_MODELS", ROOT.parent / "shared" / "models")) / "stories260K"
)
FEW = ["--bootstrap", "20", "--permutations", "19"]
"""What is read below are values, which do not depend on how often they are drawn again."""


@pytest.mark.skipif(not MODEL.is_dir(), reason="the stories260K weights are not on this machine")
def test_a_prompt_is_distilled_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = tmp_path / "lora", tmp_path / "run"
    distil = ["match", "distil", "--model", str(MODEL), "--out", str(adapter), "--epochs", "12"]
    distil += ["--prompt-file", str(STORIES / "prompt.txt"), "--separator", " "]
    distil += ["--queries", str(STORIES / "matched.jsonl"), "--limit", "64", "--rank", "16"]
    distil += ["--answer-tokens", "4", "--positions", "all", "--learning-rate", "4e-3"]
    assert main(distil) == 0
    assert "matched:" in capsys.readouterr().out

    run = ["diverge", str(STORIES / "experiment.yaml"), "--model", str(MODEL)]
    assert main([*run, "--adapter", str(adapter), "--out", str(out), "--limit", "64", *FEW]) == 0
    assert "prompt vs lora" in capsys.readouterr().out

    result = load_run(out)
    js = result.table.query("measure == 'js_divergence' and position == 'last'")
    by_pair = js[js["queries"] == "matched"].set_index(["condition", "reference"])["value"]
    assert by_pair["prompt", "lora"] < 0.1 * by_pair["prompt", "base"]
    assert by_pair["prompt", "lora"] < 0.1 * by_pair["neutral", "lora"]
    state = result.table.query("measure == 'relative_l2' and site == 'resid_post'")
    assert (state.loc[state["condition"] != "logit_bias", "value"] > 0).all()
    biased = state[(state["condition"] == "logit_bias") & (state["reference"] == "base")]
    assert (biased["value"] == 0).all()
    assert (out / "report.html").is_file()
