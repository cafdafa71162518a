"""The chat study, end to end at a small size: LoRAs, a run, its interchange; and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from chatting import save_chat_model
from scripts import script

MESSAGES = ["hot is", "big is the", "the river is wide", "lily said: yes"]
SMALL = (
    "--prompts calm --seeds 2 --tokens 3 --rank 2 --targets q_proj --epochs 1 --limit 3 "
    "--patched 2 --every 2 --bootstrap 20 --permutations 19"
)


def made(folder: Path) -> dict[Path, int]:
    """The adapters and arrays there, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_the_study_ends_in_one_table_and_goes_on(tmp_path: Path) -> None:
    model, texts, out = save_chat_model("llama", tmp_path / "model"), tmp_path / "prompts", "out"
    texts.mkdir()
    (texts / "calm_0.txt").write_text("hot is the opposite of cold")
    (texts / "calm_1.txt").write_text("the weather was mild")
    lines = "\n".join(json.dumps({"text": text}) for text in MESSAGES)
    (tmp_path / "asked.jsonl").write_text(lines)
    places = ["--model", model, "--out", out, "--texts", str(texts)]
    places += ["--queries", "asked.jsonl", "--heldout", "asked.jsonl"]
    for _ in range(2):  # the second time nothing is trained or measured again
        before = made(tmp_path / out)
        done = script("chat/study.py", *places, *SMALL.split(), folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert before in ({}, made(tmp_path / out))
    found = pd.read_csv(tmp_path / out / "segments.csv")
    assert {"prompt_0"} <= set(found["condition"]) <= {"prompt_0", "lora_0"}
    assert {"query", "template", "answer", "all"} >= set(found["position"]) >= {"answer", "all"}
    shown = pd.read_csv(tmp_path / out / "calm" / "plotted.csv")
    assert {"relative_l2", "damage", "recovery"} <= set(shown["measure"])
    signed = pd.read_csv(tmp_path / out / "calm" / "certificates.csv")
    assert {"prompt_0", "lora_0"} <= set(signed["condition"])
    assert "report: " in done.stdout
