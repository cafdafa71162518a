"""What is peculiar to an architecture is measured as the slow reference measures it.

Learned sinks, shared keys and values, per-layer inputs, latent attention, layers without heads,
gates and norms before the output projection, scaled logits, fused multi-query projections: a run
under a prompt, a LoRA, both, and neutral text, against `tests/reference`, which reads each of these
from plain Hugging Face.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny_models
from brute_force import (
    MAX_POSITIONS,
    PROMPT,
    QUERIES,
    TOLERANCE,
    Found,
    answer_id,
    apart,
    differs,
    measured,
    out_of_range,
    pairs,
)
from reference import Condition, Key, States, Value
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import load_run
from interp.config import Experiment
from interp.runs.view import Run
from interp.selection import measures_of
from interp.study import run_study
from interp.validation import architectures

MODELS = (
    "gpt_oss", "gemma4", "deepseek_v3", "qwen3_5", "cohere2", "falcon", "falcon_grouped", "bitnet",
    "mixtral",
)  # fmt: skip
WITHHELD = {"gemma4": {"scores"}}
"""What cannot be right: Gemma 4 runs its own attention, which shows patterns only."""
ASKED = QUERIES["matched"][:6]
SEPARATOR = "\n"


@dataclass(frozen=True)
class Compared:
    """A finished run, its rows and the reference's."""

    name: str
    run: Run
    observed: dict[str, list[States]]
    found: dict[Key, Found]
    expected: dict[Key, Value]

    @property
    def base(self) -> list[States]:
        return self.observed["base"]


@pytest.fixture(scope="module", params=MODELS)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """One run of the library and one of the reference."""
    folder = tmp_path_factory.mktemp(request.param)
    model = architectures.save_architecture(request.param, folder / "model")
    lora = tiny_models.save_adapter(model, folder / "lora", targets(request.param, model))
    run = load_run(run_study(experiment(model, lora, folder)))
    tokenizer = AutoTokenizer.from_pretrained(model)
    conditions = settings(tokenizer, lora)
    assert list(conditions) == list(run.manifest["conditions"])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in ASKED]
    observed = reference.observe(model, conditions, ids)
    study = reference.Study(
        conditions,
        observed,
        pairs(conditions, {}),
        [answer_id(tokenizer, *query) for query in ASKED],
        MAX_POSITIONS,
        headline=("prompt", "lora"),
        families={},
    )
    left_out = measures_of(WITHHELD.get(request.param, ()))
    expected = {key: v for key, v in reference.rows(study).items() if key[0] not in left_out}
    return Compared(request.param, run, observed, measured(run, "matched"), expected)


def targets(name: str, model: str) -> list[str]:
    """The linear layers under the LoRA; peft would move one on DeepSeek's MLPs to its experts."""
    layers = architectures.linear_layers(AutoModelForCausalLM.from_pretrained(model))
    return [layer for layer in layers if name != "deepseek_v3" or ".mlp." not in layer]


def experiment(model: str, lora: str, folder: Path) -> Experiment:
    lines = [json.dumps({"text": text, "answer": answer}) for text, answer in ASKED]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompt.txt").write_text(PROMPT)
    prompt = {"prompt": {"text": PROMPT, "separator": SEPARATOR}}
    return Experiment(
        model=model,
        adapter=(lora,),
        prompt_file=(folder / "prompt.txt",),
        separator=SEPARATOR,
        queries=folder / "queries.jsonl",
        conditions={
            "both": [prompt, {"lora": {"adapter": lora}}],
            "neutral": {"neutral": {"like": "prompt", "text": tiny_models.TEXT}},
        },
        out=folder / "run",
        controls=(),
        device="cpu",
        batch_size=4,
        bootstrap=0,
        permutations=0,
        sample=0,
        max_positions=MAX_POSITIONS,
    )


def settings(tokenizer: object, lora: str) -> dict[str, Condition]:
    """The same conditions for the reference."""
    [prompt] = {tiny_models.preceding(PROMPT + SEPARATOR, text, tokenizer) for text, _ in ASKED}
    passage = tokenizer(tiny_models.TEXT, add_special_tokens=False)["input_ids"]
    return {
        "base": Condition(),
        "prompt": Condition(prompt),
        "lora": Condition(adapter=lora),
        "both": Condition(prompt, adapter=lora),
        "neutral": Condition(tuple(passage[: len(prompt)])),
    }


PECULIAR: dict[str, Callable[[States], bool]] = {
    "gpt_oss": lambda s: s.sink.max() > 0.1,
    "gemma4": lambda s: len(s.per_layer_out) == 4 and not s.z[0, ..., tiny_models.D_HEAD :].any(),
    "deepseek_v3": lambda s: s.values.shape[-1] < tiny_models.D_HEAD,
    "qwen3_5": lambda s: s.heads == (1,) and s.mixers == (0, 2) and gated(s),
    "cohere2": lambda s: not s.sink.any() and not gated(s),
    "mixtral": lambda s: s.routers == (0, 1, 2) and s.chosen.sum(-1).max() == 2,
    "bitnet": lambda s: gated(s),
}
"""What there must be in the states of an architecture."""


def gated(states: States) -> bool:
    """Whether the output projection reads something else than what the heads mix."""
    return not np.allclose(states.z, states.mixed, atol=1e-3)


def test_what_is_peculiar_is_there(compared: Compared) -> None:
    peculiar = PECULIAR.get(compared.name, lambda states: not gated(states))
    assert all(peculiar(states) for states in compared.base)


def test_only_what_cannot_be_right_is_withheld(compared: Compared) -> None:
    assert compared.run.manifest["withheld"].keys() == WITHHELD.get(compared.name, set())


def test_every_value_lies_in_the_range_of_its_measure(compared: Compared) -> None:
    assert out_of_range(compared.run.table) == []


def test_no_row_is_missing_and_none_is_extra(compared: Compared) -> None:
    expected, found = compared.expected.keys(), compared.found.keys()
    assert sorted(map(str, expected - found))[:5] == []
    assert sorted(map(str, found - expected))[:5] == []


def test_every_value_is_the_reference(compared: Compared) -> None:
    known = {key: want for key, want in compared.expected.items() if want.meaningful}
    assert len(known) > 0.9 * len(compared.expected)
    largest = max(apart(compared.found[key].value, want) for key, want in known.items())
    print(f"{compared.name}: {len(known)} rows, largest difference {largest:.2g}")
    wrong = [
        (key, compared.found[key].value, want.value)
        for key, want in known.items()
        if differs(compared.found[key].value, want)
    ]
    assert wrong[:10] == [], f"{len(wrong)} of {len(known)} rows differ"
    counts = [key for key, want in known.items() if compared.found[key].n != want.n]
    assert counts[:10] == []


def test_certificates_are_the_reference(compared: Compared) -> None:
    signed = {(c["condition"], c["reference"]): c for c in compared.run.manifest["certificates"]}
    assert ("prompt", "lora") in signed
    for (a, b), found in signed.items():
        want = reference.certificate(compared.observed[a], compared.observed[b])
        assert {name: found[name] for name in want} == pytest.approx(want, abs=TOLERANCE)
