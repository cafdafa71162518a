"""Every row of an interchange equals the slow reference: plain hooks on plain Hugging Face modules.

Batched, stacked, prefix-cached and started at the first edited block, against one query and one
edit at a time over the whole sequence (`tests/reference/patching.py`). A prompt against a LoRA on
all modules: prefixes of different lengths, other weights; whole pattern rows between two LoRAs.
With answers of one token, of several, and in a chat template, segment by segment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import reference
import tiny_models
import torch
from brute_force import out_of_range, real_model
from reference import Condition, Key, Value, patching
from reference.patching import Asked, Cell
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.config import Experiment
from interp.patching.run import patch
from interp.patching.settings import Patching
from interp.runs.view import load_run
from interp.study import run_study

TOLERANCE = 2e-4
"""Of float32 log-odds, which grow what is rounded: 1.5e-4 in one of 3,120 rows of stories260K on
one CPU, below 1e-4 on others."""
POSITIONS = ("last", "0", "1")
PROMPT = "hot is the opposite of cold. up is the opposite of"
QUERIES: dict[str, tuple[tuple[str, str | None], ...]] = {
    "token": (("the opposite of big", "the"), ("up", None)),
    "answers": (("the opposite of big", "is small"), ("up", None), ("tom said", "no? yes")),
    "chat": (("the opposite of big", "is small"), ("up", None), ("tom said", "no? yes")),
}
SEGMENTS = {
    "token": (),
    "answers": ("query", "answer"),
    "chat": ("query", "template", "answer"),
}
MARKS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A model, between which conditions what of a pattern moves, and what is asked."""

    model: str
    pattern: str = "content"
    by_head: tuple[str, ...] = ("z", "pattern", "q", "k", "v")
    asked: str = "token"

    @property
    def pair(self) -> tuple[str, str]:
        return ("prompt", "lora_0") if self.pattern == "content" else ("lora_0", "lora_1")


CASES = [
    *map(Case, ("gpt2", "neox", "llama", "qwen3", "gemma2", "phi3")),
    Case("gemma2", "row", ("z", "pattern")),
    Case("stories260K", "content", ("z", "pattern")),
    *(Case(m, "content", ("z", "pattern"), "answers") for m in ("gpt2", "llama", "gemma2")),
    Case("llama", "content", ("z", "pattern"), "chat"),
]


@dataclass(frozen=True)
class Compared:
    """Value and number of queries of every row: the library's, and the reference's."""

    found: dict[Key, tuple[float, int]]
    expected: dict[Key, Value]


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case.model}-{case.pattern}-{case.asked}"
)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    case, folder = request.param, tmp_path_factory.mktemp("case")
    real = case.model == "stories260K"
    model = real_model() if real else tiny_models.save_model(case.model, folder / "model")
    if case.asked == "chat":
        add_chatml(model)
    targets = tiny_models.all_targets("llama" if real else case.model)
    adapters = [
        tiny_models.save_adapter(model, folder / f"adapter_{seed}", targets, seed=seed)
        for seed in (1, 2)
    ]
    found = library_rows(case, model, adapters, folder)
    return Compared(found, reference_rows(case, model, adapters))


def add_chatml(model: str) -> None:
    """Give a model's tokenizer a template, and the model embeddings of its marks."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    torch.manual_seed(3)
    hf = AutoModelForCausalLM.from_pretrained(model)
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    hf.save_pretrained(model)


def library_rows(
    case: Case, model: str, adapters: Sequence[str], folder: Path
) -> dict[Key, tuple[float, int]]:
    lines = [json.dumps({"text": text, "answer": answer}) for text, answer in QUERIES[case.asked]]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    (folder / "prompt.txt").write_text(PROMPT)
    chat = case.asked == "chat"
    said: dict[str, Any] = {"system_file" if chat else "prompt_file": (folder / "prompt.txt",)}
    experiment = Experiment(
        model=model,
        adapter=tuple(adapters),
        chat=chat,
        **said,
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
        run=run_study(experiment),
        condition=a,
        reference=b,
        sites=patching.sites(model),
        head_sites=case.by_head,
        pattern=case.pattern,
        contexts=False,  # see test_contexts.py
        head_segments=SEGMENTS[case.asked],
        positions=2,
        greedy=0,
        ablate=(),
        bootstrap=0,
        permutations=0,
    )
    table = load_run(patch(asked)).table
    assert out_of_range(table) == []
    return measured(table)


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
    split = in_chat if case.asked == "chat" else in_raw_text
    base, prompt, asked = split(tokenizer, QUERIES[case.asked])
    known = {"base": Condition(base), "prompt": Condition(prompt)}
    known |= {f"lora_{i}": Condition(base, adapter=path) for i, path in enumerate(adapters)}
    names = (*case.pair, "base")
    everything = patching.look_at_all(model, {name: known[name] for name in names}, asked)
    answers = patching.targets(everything[case.pair[1]])
    segments = SEGMENTS[case.asked]
    cells = patching.all_cells(model, POSITIONS, case.by_head, segments)
    moves = [*permutations(names, 2)]
    return patching.interchange_rows(model, everything, answers, moves, cells, case.pattern)


Split = tuple[tuple[int, ...], tuple[int, ...], list[Asked]]
"""What precedes a query in base and after the prompt, and the queries."""


def in_raw_text(tokenizer: Any, queries: Sequence[tuple[str, str | None]]) -> Split:
    """As plain text: a space between a query and its answer."""
    bos = tuple(tokenizer("")["input_ids"])
    text = PROMPT + tiny_models.separator_of(tokenizer)
    [prompt] = {tiny_models.preceding(text, query, tokenizer) for query, _ in queries}
    asked = []
    for query, answer in queries:
        ids = tuple(tokenizer(query, add_special_tokens=False)["input_ids"])
        whole = tokenizer(f"{query} {answer}", add_special_tokens=False)["input_ids"]
        asked.append(Asked(ids, (), tuple(whole[len(ids) :]) if answer else ()))
    return bos, bos + prompt, asked


def in_chat(tokenizer: Any, queries: Sequence[tuple[str, str | None]]) -> Split:
    """As the tokenizer's own template writes it, with the header of the assistant's turn."""

    def cut(query: str, *before: dict[str, str], answer: str = "") -> tuple[list[int], Asked]:
        turns = [*before, {"role": "user", "content": query}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        begin = text.rindex(query)
        found = tokenizer(text + answer, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = found["input_ids"], np.array([start for start, _ in found["offset_mapping"]])
        borders = (begin, begin + len(query), len(text))
        first, end, last = (int((starts < border).sum()) for border in borders)
        return ids[:first], Asked(*map(tuple, (ids[first:end], ids[end:last], ids[last:])))

    system = {"role": "system", "content": PROMPT}
    bare = [cut(query, answer=answer or "") for query, answer in queries]
    told = [cut(query, system, answer=answer or "") for query, answer in queries]
    asked = [query for _, query in bare]
    assert asked == [query for _, query in told]
    [base], [prompt] = ({tuple(before) for before, _ in both} for both in (bare, told))
    return base, prompt, asked


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
    early = {"0", "1", "query", "template"}
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
    asked = Asked((20, 21, 22), (23, 24), (25, 26))
    everything = patching.look_at_all(model, conditions, [asked])
    heads = ("z", "pattern", "q", "k", "v")
    cells = patching.all_cells(model, POSITIONS, heads, SEGMENTS["chat"])
    last = tiny_models.N_LAYERS - 1
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
