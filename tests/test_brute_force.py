"""Every row of a run equals the slow reference: plain Hugging Face, one query at a time, numpy.

Batched, prefix-cached, right-padded runs of six models under ten conditions against
`tests/reference`, which recomputes every number from the definitions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import reference
import tiny_models
import torch
from reference import Condition, Key, Study, Value
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import load_run
from interp.conditions import Prompt, ShuffledTokens, prefix_body
from interp.config import Experiment
from interp.results import Run
from interp.study import diverge

MODELS = ("gpt2", "neox", "llama", "qwen3", "gemma2", "stories260K")
TOLERANCE = 1e-4
MAX_POSITIONS = 4
PROMPT = "hot is the opposite of cold. up is the opposite of"
OTHER_PROMPT = "people talked about"
TAUGHT = ("big is the opposite", "is")
"""What base is taught to answer, so that one answer is right before any prompt or adapter."""
QUERIES: dict[str, list[tuple[str, str | None]]] = {
    "matched": [
        ("the", "is"),
        ("up is", "the"),
        ("the opposite of big", "is"),
        ("lily said: yes", None),
        TAUGHT,
        ("a river is wide; a hill", "is"),
        ("people walked along the road", "is"),
        ("the weather was mild that day.", None),
    ],
    "heldout": [("down", "is"), ("big is the opposite of", None), ("tom said: no", "the")],
}
BIAS = {"is": 15.0, "the": 2.0}
"""Added to the logits of these words, as they follow a query: most answers then come first."""


@dataclass(frozen=True)
class Compared:
    """A finished run and what the reference says of it, by group of queries."""

    run: Run
    observed: dict[str, dict[str, list[reference.States]]]
    expected: dict[str, dict[Key, Value]]


def experiment(name: str, model: str, adapter: str, tuned: str, folder: Path) -> Experiment:
    """A run with one condition of every kind; held-out queries for one model."""
    for group, queries in QUERIES.items():
        lines = [json.dumps({"text": text, "answer": answer}) for text, answer in queries]
        (folder / f"{group}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompt.txt").write_text(PROMPT)
    words = bias_tokens(AutoTokenizer.from_pretrained(model))
    return Experiment(
        model=model,
        adapter=(adapter,),
        prompt_file=(folder / "prompt.txt",),
        queries=folder / "matched.jsonl",
        heldout=folder / "heldout.jsonl" if name == "gpt2" else None,
        out=folder / "run",
        neutral=False,
        conditions={
            "neutral": {"neutral": {"like": "prompt", "text": tiny_models.TEXT}},
            "shuffled": {"shuffled_tokens": {"of": "prompt"}},
            "shifted": {"shifted": {"by": "prompt"}},
            "bias": {"logit_bias": {"bias": words, "positions": [0, -2, 7]}},
            "half": [
                {"lora": {"adapter": adapter, "scale": 0.5}},
                {"logit_bias": {"bias": words, "positions": [-1, 3]}},
            ],
            "both": [
                {"prompt": {"text": OTHER_PROMPT}},
                {"lora": {"adapter": adapter}},
                {"logit_bias": {"bias": words}},
            ],
            "tuned": {"fine_tuned": {"model": tuned}},
        },
        device="cpu",
        batch_size=4,
        bootstrap=25,
        max_positions=MAX_POSITIONS,
    )


def settings(tokenizer: Any, adapter: str, tuned: str) -> dict[str, Condition]:
    """The same conditions for the reference, as token ids."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    bos = tuple(tokenizer("")["input_ids"])
    prompt, passage = ids(PROMPT + "\n"), ids(tiny_models.TEXT)
    shuffled = tuple(prefix_body(ShuffledTokens(of=Prompt(text=PROMPT)), tokenizer))
    assert sorted(shuffled) == sorted(prompt)
    assert shuffled != prompt

    def bias(*positions: int) -> tuple[tuple[int, float, tuple[int, ...] | None], ...]:
        tokens = tokenizer.convert_tokens_to_ids(list(bias_tokens(tokenizer)))
        values = zip(tokens, BIAS.values(), strict=True)
        return tuple((token, value, positions or None) for token, value in values)

    return {
        "base": Condition(bos),
        "prompt": Condition(bos + prompt),
        "lora": Condition(bos, adapter=adapter),
        "neutral": Condition(bos + passage[: len(prompt)]),
        "shuffled": Condition(bos + shuffled),
        "shifted": Condition(bos, shift=len(prompt)),
        "bias": Condition(bos, bias=bias(0, -2, 7)),
        "half": Condition(bos, adapter=adapter, scale=0.5, bias=bias(-1, 3)),
        "both": Condition(bos + ids(OTHER_PROMPT + "\n"), adapter=adapter, bias=bias()),
        "tuned": Condition(bos, model=tuned),
    }


def pairs(conditions: Mapping[str, Condition]) -> list[tuple[str, str]]:
    """Everything against base; what has the base's weights against what has its own."""
    others = [name for name in conditions if name != "base"]
    plain = conditions["base"].weights
    reweighted = [name for name in others if conditions[name].weights != plain]
    crossed = [(a, b) for a in others if a not in reweighted for b in reweighted]
    return crossed + [(name, "base") for name in others]


def bias_tokens(tokenizer: Any) -> dict[str, float]:
    """`BIAS` by the tokens of these words after a query."""
    ids = [answer_id(tokenizer, "the", word) for word in BIAS]
    return dict(zip(tokenizer.convert_ids_to_tokens(ids), BIAS.values(), strict=True))


def answer_id(tokenizer: Any, text: str, answer: str | None) -> int | None:
    """The first token of an answer as it follows its query."""
    if answer is None:
        return None
    start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return tokenizer(f"{text} {answer}", add_special_tokens=False)["input_ids"][start]


def real_model() -> str:
    """The folder of a small pretrained model beside the project, or a skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "models"
    folder = Path(os.environ.get("INTERP_TEST_MODELS", beside)) / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is not here: set INTERP_TEST_MODELS to the folder that holds it")
    return str(folder)


def other_weights(model: str, folder: Path) -> str:
    """The same model with every weight moved a little."""
    moved = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    moved.save_pretrained(folder)
    return str(folder)


def teach(folder: str, text: str, answer: str) -> None:
    """A few steps of training on the saved model, until it gives this answer and, elsewhere, what
    it gave before."""
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    texts = [text, *(other for other, _ in QUERIES["matched"] if other != text)]
    asked = [torch.tensor([tokenizer(each)["input_ids"]]) for each in texts]
    targets = [int(model(ids).logits[0, -1].argmax()) for ids in asked]
    targets[0] = answer_id(tokenizer, text, answer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(100):
        logits = torch.stack([model(ids).logits[0, -1] for ids in asked])
        if logits.argmax(-1).tolist() == targets:
            break
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(targets)).backward()
        optimizer.step()
    model.save_pretrained(folder)


def materials(name: str, folder: Path) -> tuple[str, str, str]:
    """Folders of a model, of an adapter on all its modules, and of other weights."""
    if name == "stories260K":
        model, targets = real_model(), tiny_models.all_targets("llama")
    else:
        model = tiny_models.save_model(name, folder / name)
        teach(model, *TAUGHT)
        targets = tiny_models.all_targets(name)
    adapter = tiny_models.save_adapter(model, folder / "adapter", targets)
    return model, adapter, other_weights(model, folder / "tuned")


@pytest.fixture(scope="module", params=MODELS)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """One run of the library and one of the reference."""
    folder = tmp_path_factory.mktemp(request.param)
    model, adapter, tuned = materials(request.param, folder)
    asked = experiment(request.param, model, adapter, tuned, folder)
    run = load_run(diverge(asked))
    tokenizer = AutoTokenizer.from_pretrained(model)
    conditions = settings(tokenizer, adapter, tuned)
    assert list(conditions) == list(run.manifest["conditions"])
    observed, expected = {}, {}
    for group in ["matched", "heldout"] if asked.heldout else ["matched"]:
        ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t, _ in QUERIES[group]]
        answers = [answer_id(tokenizer, *query) for query in QUERIES[group]]
        observed[group] = reference.observe(model, conditions, ids)
        study = Study(
            conditions,
            observed[group],
            pairs(conditions),
            answers,
            MAX_POSITIONS,
            headline=("prompt", "lora"),
            families={},
        )
        known = set(run.table["measure"])
        expected[group] = {k: v for k, v in reference.rows(study).items() if k[0] in known}
    return Compared(run, observed, expected)


def measured(run: Run, group: str) -> dict[Key, Value]:
    """The rows of a run by what they are about."""
    table = run.table[run.table["queries"] == group]
    columns = [*reference.KEY, "value", "n"]
    found: dict[Key, Value] = {}
    for *key, value, n in table[columns].astype(object).itertuples(index=False):
        name = tuple(None if part is pd.NA else part for part in key)
        assert name not in found, f"twice: {name}"
        found[name] = Value(float(value), int(n))
    return found


def test_queries_have_different_lengths_and_need_padding(compared: Compared) -> None:
    lengths = [states.length for states in compared.observed["matched"]["base"]]
    assert min(lengths) == 1
    assert max(lengths) > MAX_POSITIONS
    assert len(set(lengths)) >= 4


def test_no_row_is_missing_and_none_is_extra(compared: Compared) -> None:
    for group, expected in compared.expected.items():
        found = measured(compared.run, group)
        assert sorted(map(str, expected.keys() - found.keys()))[:5] == []
        assert sorted(map(str, found.keys() - expected.keys()))[:5] == []
    assert set(compared.run.table["queries"]) == set(compared.expected)


def test_every_value_is_the_reference(compared: Compared) -> None:
    wrong, largest = [], 0.0
    for group, expected in compared.expected.items():
        found = measured(compared.run, group)
        for key, want in expected.items():
            if not want.meaningful:
                continue
            got = found[key].value
            if math.isnan(want.value) and math.isnan(got):
                continue
            difference = abs(got - want.value)
            largest = max(largest, difference)
            if not difference <= TOLERANCE + want.rounding:
                wrong.append((group, key, got, want.value))
    print(f"largest difference {largest:.2g}")
    assert wrong[:10] == [], f"{len(wrong)} rows differ"


def test_every_row_counts_its_queries(compared: Compared) -> None:
    for group, expected in compared.expected.items():
        found = measured(compared.run, group)
        wrong = [
            (key, found[key].n, want.n)
            for key, want in expected.items()
            if want.meaningful and found[key].n != want.n
        ]
        assert wrong[:10] == [], f"{len(wrong)} rows count otherwise"


def test_few_rows_are_left_out_and_only_where_a_change_is_rounding(compared: Compared) -> None:
    """Rotary scores of the first block do not depend on what stands before the query, and where
    nothing does, a shift changes nothing; elsewhere it takes a head that ignores the prefix."""
    for expected in compared.expected.values():
        others = [
            want
            for (measure, condition, _, _, layer, _, _), want in expected.items()
            if condition != "shifted"
            and not (layer == 0 and measure in ("sim_am_delta", "rewiring_share"))
        ]
        left_out = [want for want in others if want.n and not want.meaningful]
        print(f"left out {len(left_out)} of {len(others)} rows")
        assert len(left_out) <= len(others) / 100


def test_the_answers_matter(compared: Compared) -> None:
    """Some conditions know some answers; base itself knows one, which is nobody's gain."""
    known: dict[str, dict[tuple[str, str | None], float]] = {"accuracy": {}, "rec2ftp": {}}
    for (measure, a, b, *_), want in compared.expected["matched"].items():
        if measure in known:
            known[measure][a, b] = want.value
    assert known["accuracy"]["half", None] > 0
    assert 0 < known["rec2ftp"]["bias", "half"] < 1
    if "stories" not in compared.run.manifest["model"]["name"]:
        assert 0 < known["accuracy"]["base", None] < 1


def test_certificates_are_the_reference(compared: Compared) -> None:
    signed = compared.run.manifest["certificates"]
    expected = {
        (a, b, group): reference.certificate(observed[a], observed[b])
        for group, observed in compared.observed.items()
        for a, b in {(key[1], key[2]) for key in compared.expected[group] if key[2]}
    }
    found = {(c["condition"], c["reference"], c["queries"]): c for c in signed}
    assert len(found) == len(signed)
    assert found.keys() == expected.keys()
    for key, want in expected.items():
        got = {name: found[key][name] for name in want}
        assert got == pytest.approx(want, abs=TOLERANCE), key
        passes = want["mean_js"] <= 0.02 and want["top1_agreement"] >= 0.95
        assert found[key]["passed"] == passes, key
