"""One condition of every kind, for the library and for the slow reference, on six models.

made = materials("gpt2", folder)
run = load_run(diverge(experiment("gpt2", made, folder)))
observed = reference.observe(made.model, settings("gpt2", tokenizer, made), queries)
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import reference
import tiny_models
import torch
from reference import Condition, Key, Value
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Prompt, ShuffledLabels, ShuffledTokens, prefix_body
from interp.config import Experiment
from interp.registry import MEASURES
from interp.runs.view import Run
from interp.subject.controls import random_like, untrained

MODELS = ("gpt2", "neox", "llama", "qwen3", "gemma2", "stories260K")
FULL = ("gpt2",)
"""Models that run every condition; the others leave out what adds little to the rest."""
LEFT_OUT = ("labels", "tuned", "steered")
MAX_POSITIONS = 3
PROMPT = "hot is the opposite of cold. up is the opposite of"
OTHER_PROMPT = "people talked about"
TAUGHT = ("big is the opposite", "up")
"""What base is taught to answer, so that one answer is right before any prompt or adapter."""
FEW = (
    (("hot", "cold"), ("up", "down"), ("big", "small")),
    (("down", "up"), ("small", "big"), ("cold", "hot")),
    (("wide", "high"), ("up", "down"), ("hill", "river")),
)
"""Demonstrations of three few-shot prompts, which are a family."""
FAMILIES = {
    "plain": ("neutral", "shuffled"),
    "lora": ("lora_0", "lora_1"),
    "few": ("few_0", "few_1", "few_2"),
}
HEADLINE = ("prompt", "lora_0")
QUERIES: dict[str, list[tuple[str, str | None]]] = {
    "matched": [
        ("the", "up"),
        ("up is", "the"),
        ("the opposite of big", "up"),
        ("lily said: yes", None),
        TAUGHT,
        ("a river is wide; a hill", "up"),
        ("people walked along the road", "up"),
        ("the weather was mild that day.", None),
        ("cold is", "the"),
        ("people talked", None),
        ("a hill is", "the"),
        ("tom said", "the"),
        ("small is", "the"),
        ("a river is", "the"),
        ("hot is", None),
        ("big", "up"),
        ("the hill", "up"),
    ],
    "heldout": [("down", "up"), ("big is the opposite of", None), ("tom said: no", "the")],
}


def label(text: str) -> str:
    """What a probe is to read off a query's state."""
    return "verb" if text.endswith(" is") else "other"


BIAS = {"up": 15.0, "the": 2.0}
"""Added to the logits of these words, as they follow a query: most answers then come first."""


@dataclass(frozen=True)
class Materials:
    """Folders and files that conditions are made of."""

    model: str
    adapters: tuple[str, str]
    tuned: str
    soft: str
    keys: str
    vector: str
    random: str
    untrained: str


def experiment(name: str, made: Materials, folder: Path) -> Experiment:
    """A run with one condition of every kind; held-out queries for one model."""
    for group, queries in QUERIES.items():
        lines = [
            json.dumps({"text": text, "answer": answer, "label": label(text)})
            for text, answer in queries
        ]
        (folder / f"{group}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompt.txt").write_text(PROMPT)
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    separator = "\n" + tiny_models.separator_of(tokenizer).removeprefix("\n")
    specs = specifications(made, bias_tokens(tokenizer), separator)
    return Experiment(
        model=made.model,
        adapter=made.adapters,
        prompt_file=(folder / "prompt.txt",),
        queries=folder / "matched.jsonl",
        heldout=folder / "heldout.jsonl" if name == "gpt2" else None,
        separator=separator,
        out=folder / "run",
        controls=(),
        families={"plain": FAMILIES["plain"]},
        conditions={
            condition: spec
            for condition, spec in specs.items()
            if name in FULL or condition not in LEFT_OUT
        },
        device="cpu",
        batch_size=6,
        bootstrap=10 if name in FULL else 0,
        permutations=19,
        max_positions=MAX_POSITIONS,
    )


def specifications(made: Materials, words: Mapping[str, float], separator: str) -> dict[str, Any]:
    """Conditions as in a YAML file, beside those of the prompt file and the adapters."""
    lora, template = made.adapters[0], f"{{query}} {{answer}}{separator}"
    return {
        "neutral": {"neutral": {"like": "prompt", "text": tiny_models.TEXT}},
        "shuffled": {"shuffled_tokens": {"of": "prompt"}},
        "shifted": {"shifted": {"by": "prompt"}},
        "bias": {"logit_bias": {"bias": words, "positions": [0, -2, 7]}},
        "half": [
            {"lora": {"adapter": lora, "scale": 0.5}},
            {"logit_bias": {"bias": words, "positions": [-1, 3]}},
        ],
        "tuned": {"fine_tuned": {"model": made.tuned}},
        **{
            f"few_{i}": {"prompt": {"pairs": pairs, "template": template}}
            for i, pairs in enumerate(FEW)
        },
        "labels": {"shuffled_labels": {"of": "few_0", "seed": 1}},
        "soft": {"soft_prompt": {"adapter": made.soft}},
        "keys": {"prefix": {"adapter": made.keys}},
        "steered": {"steering": {"vector": made.vector, "layer": 1, "scale": 0.5}},
        "mixed": [
            {"prompt": {"text": OTHER_PROMPT, "separator": separator}},
            {"soft_prompt": {"adapter": made.soft}},
            {"lora": {"adapter": made.adapters[1]}},
            {"steering": {"vector": made.vector, "layer": 0}},
            {"logit_bias": {"bias": words}},
        ],
        "random": {"random_lora": {"like": "lora_0", "seed": 5}},
        "untrained": {"untrained": {"seed": 6}},
    }


def settings(name: str, tokenizer: Any, made: Materials) -> dict[str, Condition]:
    """The same conditions for the reference."""
    every = all_settings(tokenizer, made)
    return {key: c for key, c in every.items() if name in FULL or key not in LEFT_OUT}


def all_settings(tokenizer: Any, made: Materials) -> dict[str, Condition]:
    """Every condition as token ids and folders."""

    separator = "\n" + tiny_models.separator_of(tokenizer).removeprefix("\n")

    def ids(text: str) -> tuple[int, ...]:
        """Before every query."""
        queries = [query for group in QUERIES.values() for query, _ in group]
        [found] = {tiny_models.preceding(text, query, tokenizer) for query in queries}
        return found

    bos = tuple(tokenizer("")["input_ids"])
    prompt, other = ids(PROMPT + separator), ids(OTHER_PROMPT + separator)
    passage = tuple(tokenizer(tiny_models.TEXT, add_special_tokens=False)["input_ids"])
    own = Prompt(text=PROMPT, separator=separator)
    shuffled = tuple(prefix_body(ShuffledTokens(of=own), tokenizer))
    assert sorted(shuffled) == sorted(prompt)
    assert shuffled != prompt
    few = {f"few_{i}": Condition(bos + ids(shots(pairs, separator))) for i, pairs in enumerate(FEW)}

    def bias(*positions: int) -> tuple[tuple[int, float, tuple[int, ...] | None], ...]:
        tokens = tokenizer.convert_tokens_to_ids(list(bias_tokens(tokenizer)))
        values = zip(tokens, BIAS.values(), strict=True)
        return tuple((token, value, positions or None) for token, value in values)

    vector = load_file(made.vector)["vector"]
    lora = made.adapters[0]
    return {
        "base": Condition(bos),
        "prompt": Condition(bos + prompt),
        "lora_0": Condition(bos, adapter=lora),
        "lora_1": Condition(bos, adapter=made.adapters[1]),
        "neutral": Condition(bos + passage[: len(prompt)]),
        "shuffled": Condition(bos + shuffled),
        "shifted": Condition(bos, shift=len(prompt)),
        "bias": Condition(bos, bias=bias(0, -2, 7)),
        "half": Condition(bos, adapter=lora, scale=0.5, bias=bias(-1, 3)),
        "tuned": Condition(bos, model=made.tuned),
        **few,
        "labels": Condition(bos + ids(shuffled_labels(separator))),
        "soft": Condition(bos, soft=made.soft),
        "keys": Condition(bos, keys=made.keys),
        "steered": Condition(bos, steering=(tuple((0.5 * vector).tolist()), 1)),
        "mixed": Condition(
            bos + other,
            adapter=made.adapters[1],
            bias=bias(),
            soft=made.soft,
            steering=(tuple(vector.tolist()), 0),
        ),
        "random": Condition(bos, adapter=made.random),
        "untrained": Condition(bos, model=made.untrained),
    }


def shots(pairs: Iterable[tuple[str, str]], separator: str) -> str:
    """A few-shot prompt."""
    return "".join(f"{query} {answer}{separator}" for query, answer in pairs)


def shuffled_labels(separator: str) -> str:
    """The first few-shot prompt with every answer at another query."""
    pairs = ShuffledLabels(of=Prompt(pairs=FEW[0]), seed=1).prompt.pairs
    assert [query for query, _ in pairs] == [query for query, _ in FEW[0]]
    assert sorted(answer for _, answer in pairs) == sorted(answer for _, answer in FEW[0])
    assert not set(pairs) & set(FEW[0])
    return shots(pairs, separator)


CONTROLS = {"neutral", "shuffled", "shifted", "bias", "labels", "random", "untrained"}


Families = Mapping[str, tuple[str, ...]]


def pairs(
    conditions: Mapping[str, Condition], families: Families = FAMILIES
) -> list[tuple[str, str]]:
    """Everything against base; what has the base's weights against what has its own, but neither
    control against control nor later members of families; neighbours within families."""
    others = [name for name in conditions if name != "base"]
    plain = conditions["base"].weights
    later = [name for members in families.values() for name in members[1:]]
    heads = [name for name in others if name not in later]
    reweighted = [name for name in heads if conditions[name].weights != plain]
    crossed = [
        (a, b) for a in heads if a not in reweighted for b in reweighted if not {a, b} <= CONTROLS
    ]
    floors = [(b, a) for members in families.values() for a, b in pairwise(members)]
    return crossed + floors + [(name, "base") for name in others]


def certified(conditions: Mapping[str, Condition]) -> set[tuple[str, str]]:
    """Pairs whose outputs are compared: also every prompt with every adapter or fine-tune."""
    prompts = ["prompt", *FAMILIES["few"], "soft", "keys"]
    weights = [name for name in (*FAMILIES["lora"], "tuned") if name in conditions]
    return {*pairs(conditions), *((a, b) for a in prompts for b in weights)}


def geometry_pairs(conditions: Mapping[str, Condition]) -> list[tuple[str, str]]:
    """The headline, every control in the place of one of its sides, and both sides against base."""
    prompt, lora = HEADLINE
    later = {name for members in FAMILIES.values() for name in members[1:]}
    nulls = [
        (prompt, name) if conditions[name].weights != conditions["base"].weights else (name, lora)
        for name in conditions
        if name in CONTROLS - later
    ]
    return [HEADLINE, *nulls, (prompt, "base"), (lora, "base")]


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
    asked = [torch.tensor(tokenizer(each)["input_ids"]) for each in texts]
    last = torch.tensor([len(ids) - 1 for ids in asked])
    padded = torch.nn.utils.rnn.pad_sequence(asked, batch_first=True)  # no token sees what follows

    def said() -> torch.Tensor:
        return model(padded).logits[torch.arange(len(last)), last]

    targets = said().argmax(-1)
    targets[0] = answer_id(tokenizer, text, answer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(100):
        logits = said()
        if torch.equal(logits.argmax(-1), targets):
            break
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
    model.save_pretrained(folder)


def random_lora(adapter: str, folder: Path) -> str:
    """The library's random adapter, as a plain one."""
    folder.mkdir()
    shutil.copy(f"{adapter}/adapter_config.json", folder)
    tensors = load_file(f"{adapter}/adapter_model.safetensors")
    save_file(random_like(tensors, seed=5), folder / "adapter_model.safetensors")
    return str(folder)


def untrained_model(model: str, folder: Path) -> str:
    """The library's untrained copy, as a plain model."""
    untrained(AutoModelForCausalLM.from_pretrained(model), seed=6).save_pretrained(folder)
    return str(folder)


def materials(name: str, folder: Path) -> Materials:
    """A model and all that changes it."""
    if name == "stories260K":
        model, targets = real_model(), tiny_models.all_targets("llama")
    else:
        model = tiny_models.save_model(name, folder / name)
        teach(model, *TAUGHT)
        targets = tiny_models.all_targets(name)
    adapters = tuple(
        tiny_models.save_adapter(model, folder / f"adapter_{seed}", targets, seed=seed)
        for seed in (1, 2)
    )
    return Materials(
        model=model,
        adapters=adapters,
        tuned=other_weights(model, folder / "tuned"),
        soft=tiny_models.save_soft_prompt(model, folder / "soft"),
        keys=tiny_models.save_prefix(model, folder / "keys"),
        vector=tiny_models.save_steering(model, folder / "vector.safetensors"),
        random=random_lora(adapters[0], folder / "random"),
        untrained=untrained_model(model, folder / "untrained"),
    )


# --- rows of a run beside those of the reference -------------------------------------------------

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Found:
    """A row of the run."""

    value: float
    n: int
    low: float
    high: float
    p: float


def measured(run: Run, group: str) -> dict[Key, Found]:
    """The rows of a run by what they are about."""
    table = run.table[run.table["queries"] == group]
    numbers = ["value", "n", "ci_low", "ci_high", "p_adjusted"]
    found: dict[Key, Found] = {}
    for row in table[[*reference.KEY, *numbers]].astype(object).itertuples(index=False):
        key = tuple(None if part is pd.NA else part for part in row[: len(reference.KEY)])
        assert key not in found, f"twice: {key}"
        value, n, *rest = row[len(reference.KEY) :]
        found[key] = Found(value, n, *rest)
    return found


def apart(got: float, want: Value) -> float:
    """How far a number is from the reference's, relative to the size of its errors: 0 where both
    are undefined."""
    if math.isnan(want.value) and math.isnan(got):
        return 0.0
    return abs(got - want.value) / want.scale


def differs(got: float, want: Value) -> bool:
    """Whether a number is not the reference's, by more than the tolerance and rounding."""
    return not apart(got, want) <= TOLERANCE + want.rounding / want.scale


def out_of_range(table: pd.DataFrame, rounding: float = 1e-5) -> list[str]:
    """Measures of a run's table with values outside the range that their record states."""
    found = []
    for name, values in table.groupby("measure")["value"]:
        record = MEASURES.get(str(name))  # chance levels have none of their own
        low, high = record.range if record else (-math.inf, math.inf)
        if values.min() < low - rounding or values.max() > high + rounding:
            found.append(str(name))
    return found
