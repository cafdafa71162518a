"""What counts as recalled, what a guess is worth, and what is trained on facts recalls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import organism
from interp.errors import ConfigError
from interp.experiments.recall import answered_right, certain
from interp.experiments.storing import (
    LORA_LABEL,
    PREFIX_LABEL,
    SOFT_PROMPT_LABEL,
    TEXT_LABEL,
    StorageBudget,
    chance,
    shuffled_facts,
    store,
    ways,
)
from interp.matching.settings import Emulation, bundled_emulation
from interp.measures.output import kl_divergence
from interp.organism.facts import LEFT_OUT, TRAINED
from interp.queries import Encoded, Query, read_queries


def test_every_token_of_the_answer_has_to_rank_first() -> None:
    queries = [
        Encoded("a", "", (5,), (1, 2)),
        Encoded("b", "", (5, 6), (3,)),
        Encoded("c", "", (5,)),
    ]
    logits = torch.zeros(3, 3, 8)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[1, 1, 3] = 1.0
    np.testing.assert_array_equal(answered_right(queries, logits), [1, 1, np.nan])
    logits[0, 1, 4] = logits[1, 1, 7] = 2.0
    np.testing.assert_array_equal(answered_right(queries, logits), [0, 0, np.nan])


def test_the_divergence_from_a_certain_answer_is_its_surprise() -> None:
    said = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    surprise = -said.double().log_softmax(-1)[[0, 1], [4, 1]]
    torch.testing.assert_close(kl_divergence(certain((4, 1), 6), said), surprise)


def test_a_guess_is_right_as_often_as_a_relation_has_few_answers() -> None:
    facts = [Query("a", "x", "r"), Query("b", "y", "r"), Query("c", "y", "r"), Query("d", "z", "s")]
    np.testing.assert_array_equal(chance(facts), [0.5, 0.5, 0.5, 1])


def test_facts_are_drawn_by_seed_and_need_answers() -> None:
    facts = read_queries(organism.QUERIES / "left_out.jsonl")
    assert shuffled_facts(facts, 0) == shuffled_facts(facts, 0) != shuffled_facts(facts, 1)
    assert sorted(map(str, shuffled_facts(facts, 0))) == sorted(map(str, facts))
    with pytest.raises(ConfigError, match="has no answer"):
        shuffled_facts([*facts, Query("big ->")], 0)


def test_no_fact_that_was_left_out_is_one_that_the_model_was_taught() -> None:
    known = {(f"{w} ->", a) for r in TRAINED for w, a in r.answers.items()}
    left_out = {(f.text, f.answer) for f in read_queries(organism.QUERIES / "left_out.jsonl")}
    assert len(left_out) == sum(len(r.answers) for r in LEFT_OUT)
    assert not known & left_out


def test_what_is_trained_on_facts_recalls_them_at_equal_size(tmp_path: Path) -> None:
    settings = Emulation(**bundled_emulation(tmp_path))
    facts = shuffled_facts(read_queries(organism.QUERIES / "left_out.jsonl"), 0)[:6]
    done: list[int] = []
    budget = StorageBudget((2,), steps=40)
    base, *stored = store(settings, facts, budget, lambda: done.append(1))
    assert len(done) == ways(budget)
    assert base.right.mean() == 0
    by_way = {one.way: one for one in stored}
    assert list(by_way) == [TEXT_LABEL, LORA_LABEL, SOFT_PROMPT_LABEL, PREFIX_LABEL]
    assert by_way[LORA_LABEL].given.mean() == by_way[PREFIX_LABEL].given.mean() == 1
    assert len(by_way[LORA_LABEL].others) == 4
    parameters = by_way[LORA_LABEL].parameters
    assert all(
        0.9 * parameters < by_way[way].parameters <= parameters
        for way in (SOFT_PROMPT_LABEL, PREFIX_LABEL)
    )
    assert by_way[TEXT_LABEL].right.tolist() == [float(_plain(facts, fact)) for fact in facts]


def _plain(facts: list[Query], asked: Query) -> bool:
    """Whether plain Hugging Face gives the answer after the first two facts."""
    model = AutoModelForCausalLM.from_pretrained(organism.MODEL)
    tokenizer = AutoTokenizer.from_pretrained(organism.MODEL)
    text = "".join(f"{fact.text} {fact.answer} ; " for fact in facts[:2])
    with torch.no_grad():
        best = model(**tokenizer(text + asked.text, return_tensors="pt")).logits[0, -1].argmax()
    return bool(tokenizer.decode(best) == asked.answer)
