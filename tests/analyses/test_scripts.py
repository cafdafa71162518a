"""The analysis scripts run on the bundled model without arguments, and say what went wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from scripts import script

from interp import organism


def test_internal_state_prints_a_verdict_from_its_numbers(tmp_path: Path) -> None:
    words = ("--limit", "8", "--budgets", "1", "--steps", "2", "--longest", "30")
    seed = str(organism.ADAPTERS / "lora_1")
    done = script("internal_state.py", *words, "--floor", seed, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Outputs are matched" in done.stdout
    out = tmp_path / "runs" / "internal_state"
    assert (out / "figures" / "layers.csv").is_file()
    finding = json.loads((out / "finding.json").read_text())
    assert finding["verdict"].upper() in done.stdout
    table = pd.read_csv(out / "table.csv").query("queries == 'heldout'").set_index(["what", "to"])
    assert len(table) == 9
    left = table["relative_l2"]
    seeds = left["other seeds"].item()
    assert seeds < left["prefix", "states"] < left["base"].item()
    assert left["prefix", "states"] < left["prefix", "outputs"]
    if finding["contrast"]["value"] is not None:  # the certificate passed
        ratio = left[:, "states"].min() / seeds
        assert abs(finding["contrast"]["value"] - ratio) < 0.3 * ratio


def test_head_probe_looks_at_the_head_asked_for(tmp_path: Path) -> None:
    words = ("--heads", "L1H7", "--limit", "12", "--permutations", "9")
    done = script("head_probe.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("L1H7: content JS ")
    assert (tmp_path / "runs" / "head_probe" / "figures" / "head_L1H7.csv").is_file()


def test_head_probe_finds_heads_where_a_run_has_two_adapters(tmp_path: Path) -> None:
    adapters = [str(organism.ADAPTERS / f"lora_{i}") for i in (0, 1)]
    words = ("--adapter", *adapters, "--limit", "24", "--sample", "0", "--controls", "neutral")
    done = script("head_probe.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(L\d+H\d+): content JS [\d.]+ nats;", done.stdout, re.M)
    assert len(found) == 3
    assert "under lora_0" in done.stdout
    assert "nan" not in done.stdout.replace("\n", " ").split()
    named = script("head_probe.py", *words, "--heads", found[0], folder=tmp_path)
    assert named.returncode == 0, named.stderr
    assert done.stdout.startswith(named.stdout.splitlines()[0])


def test_head_probe_says_that_a_head_is_not_there(tmp_path: Path) -> None:
    words = ("--heads", "L99H0", "--limit", "8", "--sample", "0", "--controls", "neutral")
    done = script("head_probe.py", *words, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("interp: ")
    assert done.stderr.count("\n") == 1
    assert "L99H0" in done.stderr


def test_head_probe_says_where_no_head_differs_from_its_null(tmp_path: Path) -> None:
    words = ("--limit", "2", "--sample", "0", "--controls", "neutral", "--permutations", "9")
    done = script("head_probe.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "No head's content pattern differs from its null: name some with --heads.\n"
    )


def test_equation_of_influence_splits_a_lead_over_a_token(tmp_path: Path) -> None:
    done = script("equation_of_influence.py", "--against", "cold", "--limit", "12", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prompt moves the answer's lead over cold by" in done.stdout
    assert (tmp_path / "runs" / "equation_of_influence" / "figures" / "waterfall.csv").is_file()


def test_interchange_says_from_which_layer_on(tmp_path: Path) -> None:
    words = ("--limit", "12", "--controls", "neutral", "--tolerance", "0.05")
    done = script("interchange.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "state does at most 0.05 nats of damage in the other's run" in done.stdout
    assert (tmp_path / "runs" / "interchange" / "figures" / "interchange.csv").is_file()


NAMES = ["internal_state.py", "interchange.py", "head_probe.py", "equation_of_influence.py"]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_input_is_one_line(name: str, tmp_path: Path) -> None:
    done = script(name, "--queries", "nothing.jsonl", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("interp: nothing.jsonl: ")
    assert done.stderr.count("\n") == 1
