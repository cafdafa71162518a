"""Every row of an interchange equals the slow reference: plain hooks on plain Hugging Face modules.

Batched, stacked, prefix-cached and started at the first edited block, against one query and one
edit at a time over the whole sequence (`tests/reference/patching.py`). A prompt against a LoRA on
all modules: prefixes of different lengths, other weights; whole pattern rows between two LoRAs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import tiny_models
from brute_force import answer_id, real_model
from reference import Condition, Key, Value, patching
from reference.patching import Cell
from transformers import AutoTokenizer

from interp.causal.settings import Patching
from interp.causality import patch
from interp.config import Experiment
from interp.results import load_run
from interp.study import diverge

TOLERANCE = 1e-4
POSITIONS = 2
PROMPT = "hot is the opposite of cold. up is the opposite of"
QUERIES = (("the opposite of big", "is"), ("up", None))


@dataclass(frozen=True)
class Case:
    """A model, and between which conditions what of a pattern moves."""

    model: str
    pattern: str = "content"
    by_head: tuple[str, ...] = ("z", "pattern", "q", "k", "v")

    @property
    def pair(self) -> tuple[str, str]:
        return ("prompt", "lora_0") if self.pattern == "content" else ("lora_0", "lora_1")


CASES = [
    *map(Case, ("gpt2", "neox", "llama", "qwen3", "gemma2", "phi3")),
    Case("gemma2", "row", ("z", "pattern")),
    Case("stories260K", "content", ("z", "pattern")),
]


@dataclass(frozen=True)
class Compared:
    """Value and number of queries of every row: the library's, and the reference's."""

    found: dict[Key, tuple[float, int]]
    expected: dict[Key, Value]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.model}-{case.pattern}")
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    case, folder = request.param, tmp_path_factory.mktemp("case")
    real = case.model == "stories260K"
    model = real_model() if real else tiny_models.save_model(case.model, folder / "model")
    targets = tiny_models.all_targets("llama" if real else case.model)
    adapters = [
        tiny_models.save_adapter(model, folder / f"adapter_{seed}", targets, seed=seed)
        for seed in (1, 2)
    ]
    found = library_rows(case, model, adapters, folder)
    return Compared(found, reference_rows(case, model, adapters))


def library_rows(
    case: Case, model: str, adapters: Sequence[str], folder: Path
) -> dict[Key, tuple[float, int]]:
    lines = [json.dumps({"text": text, "answer": answer}) for text, answer in QUERIES]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    (folder / "prompt.txt").write_text(PROMPT)
    experiment = Experiment(
        model=model,
        adapter=tuple(adapters),
        prompt_file=(folder / "prompt.txt",),
        queries=folder / "queries.jsonl",
        separator=tiny_models.separator_of(AutoTokenizer.from_pretrained(model)),
        out=folder / "run",
        controls=(),
        device="cpu",
        bootstrap=0,
        permutations=0,
    )
    a, b = case.pair
    asked = Patching(
        run=diverge(experiment),
        condition=a,
        reference=b,
        sites=patching.sites(model),
        head_sites=case.by_head,
        pattern=case.pattern,
        positions=POSITIONS,
        greedy=0,
        ablate=(),
        bootstrap=0,
        permutations=0,
    )
    return measured(load_run(patch(asked)).table)


def measured(table: pd.DataFrame) -> dict[Key, tuple[float, int]]:
    """Rows of the measures that the reference has, by what they are about."""
    found: dict[Key, tuple[float, int]] = {}
    for row in table[[*reference.KEY, "value", "n"]].astype(object).itertuples(index=False):
        key = tuple(None if part is pd.NA else part for part in row[: len(reference.KEY)])
        if key[0] in patching.MEASURES:
            assert key not in found, f"twice: {key}"
            found[key] = row[-2:]
    return found


def reference_rows(case: Case, model: str, adapters: Sequence[str]) -> dict[Key, Value]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in QUERIES]
    bos = tuple(tokenizer("")["input_ids"])
    text = PROMPT + tiny_models.separator_of(tokenizer)
    [prompt] = {tiny_models.preceding(text, query, tokenizer) for query, _ in QUERIES}
    known = {"base": Condition(bos), "prompt": Condition(bos + prompt)}
    known |= {f"lora_{i}": Condition(bos, adapter=path) for i, path in enumerate(adapters)}
    names = (*case.pair, "base")
    everything = patching.look_at_all(model, {name: known[name] for name in names}, ids)
    answers = [answer_id(tokenizer, *query) for query in QUERIES]
    tokens = patching.targets(everything[case.pair[1]], answers)
    cells = patching.all_cells(model, POSITIONS, case.by_head)
    moves = [*permutations(names, 2)]
    return patching.interchange_rows(model, everything, tokens, moves, cells, case.pattern)


def test_no_row_is_missing_and_none_is_extra(compared: Compared) -> None:
    found, expected = compared.found, compared.expected
    assert sorted(map(str, expected.keys() - found.keys()))[:5] == []
    assert sorted(map(str, found.keys() - expected.keys()))[:5] == []


def test_every_value_is_the_reference(compared: Compared) -> None:
    wrong, largest = [], 0.0
    for key, want in compared.expected.items():
        got, n = compared.found[key]
        error = abs(got - want.value) / max(1.0, abs(want.value))
        if n == want.n and math.isnan(got) and math.isnan(want.value):
            continue
        if not (n == want.n and error <= TOLERANCE + want.rounding):
            wrong.append((key, got, n, want))
        if not want.rounding:
            largest = max(largest, error)
    print(f"largest difference {largest:.2g} in {len(compared.expected)} rows")
    assert wrong[:10] == [], f"{len(wrong)} rows differ"


def test_almost_every_row_is_a_number(compared: Compared) -> None:
    """But where base's state does nothing: in a rotary model nothing that the first block reads
    depends on the prefix, and no other token sees what the last block leaves at an early one."""
    expected = compared.expected
    last = max(key[4] for key in expected)
    early = {str(position) for position in range(POSITIONS)}
    undefined = {key for key, want in expected.items() if math.isnan(want.value)}
    assert {key[0] for key in undefined} == {"relative_damage"}
    assert all(layer == 0 or (layer == last and p in early) for *_, layer, _, p in undefined)
    assert len(undefined) < len(expected) / 20


# --- the reference itself ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny_models.CONFIGS)
def test_the_reference_obeys_its_laws(architecture: str, tmp_path: Path) -> None:
    """A condition's own values change nothing; the source's last state says what the source says,
    and so does its last `resid_mid` where the weights are the same."""
    model = tiny_models.save_model(architecture, tmp_path / "model")
    targets = tiny_models.all_targets(architecture)
    conditions = {
        "base": Condition((1,)),
        "prompt": Condition((1, 40, 41, 42, 43)),
        "lora": Condition(
            (1,), adapter=tiny_models.save_adapter(model, tmp_path / "lora", targets)
        ),
        "soft": Condition((1,), soft=tiny_models.save_soft_prompt(model, tmp_path / "soft")),
    }
    everything = patching.look_at_all(model, conditions, [[20, 21, 22]])
    cells = patching.all_cells(model, 2, ("z", "pattern", "q", "k", "v"))
    last = tiny_models.LAYERS - 1
    for name, [own] in everything.items():
        for cell in cells[len(name) % 9 :: 9]:
            same = patching.patched(model, own, own, cell)
            np.testing.assert_allclose(same, own.logits, atol=5e-6, err_msg=f"{name} {cell}")
        for other, [source] in everything.items():
            cell = Cell("resid_post", last)
            there = patching.patched(model, source, own, cell)
            np.testing.assert_array_equal(there, source.logits, err_msg=f"{other} into {name}")
    if "resid_mid" in patching.sites(model):
        [base], [prompt] = everything["base"], everything["prompt"]
        there = patching.patched(model, prompt, base, Cell("resid_mid", last))
        np.testing.assert_allclose(there, prompt.logits, atol=1e-5)
