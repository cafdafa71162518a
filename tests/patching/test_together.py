"""Heads together: the greedy search, joint patches, and the vectors that heads write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.capture import capture, keep
from interp.conditions import Base, Lora, Prompt
from interp.names import Head, Site
from interp.patching.function_vectors import function_vector, written_to_stream
from interp.patching.greedy import search_heads
from interp.patching.interchange import PatchMove
from interp.patching.joint import approach, divided, heads_replaced
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load

HEADS = [Head(layer, head) for layer in range(2) for head in range(3)]
TEXTS = ("big is", "a river is wide", "hot")
ANSWERS = ("the opposite", None, "is cold.")


# --- the search -----------------------------------------------------------------------------------


@given(st.lists(st.floats(-0.2, 0.6), min_size=6, max_size=6), st.floats(0.1, 1.5))
def test_of_heads_that_add_up_the_largest_are_taken_first(gains: list[float], goal: float) -> None:
    gain = dict(zip(HEADS, gains, strict=True))
    chosen = search_heads(
        lambda sets: np.array([sum(gain[h] for h in s) for s in sets]), HEADS, goal
    )
    order = sorted(gains, reverse=True)
    assert [gain[head] for head in chosen] == order[: len(chosen)]
    reached = sum(order[: len(chosen)])
    assert all(g > 0 for g in order[: len(chosen)])
    if reached < goal and len(chosen) < len(HEADS):
        assert order[len(chosen)] <= 0 or reached + order[len(chosen)] <= reached  # none helped
    if chosen:
        assert reached - gain[chosen[-1]] < goal


def test_no_more_is_tried_than_is_left() -> None:
    asked: list[int] = []

    def recovered(sets: Sequence[Sequence[Head]]) -> np.ndarray:
        asked.append(len(sets))
        return np.array([0.1 * len(s) for s in sets])

    assert len(search_heads(recovered, HEADS, goal=0.35)) == 4
    assert asked == [6, 5, 4, 3]


# --- on models ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama", "neox", "gemma2"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = tmp_path_factory.mktemp(request.param)
    model = tiny_models.save_model(request.param, folder / "model")
    targets = tiny_models.all_targets(request.param)
    adapter = tiny_models.save_adapter(model, folder / "lora", targets)
    conditions = {"base": Base(), "lora": Lora(adapter), "prompt": Prompt(text="tom said: no?")}
    return load(model, conditions, [TEXTS[0]])


def everyone(subject: Subject) -> list[Head]:
    return [Head(i, j) for i in range(subject.n_layers) for j in range(subject.n_heads)]


@pytest.mark.parametrize("condition", ["lora", "prompt"])
def test_heads_and_bias_write_what_the_attention_writes(subject: Subject, condition: str) -> None:
    """Also under a post-norm, and with a LoRA on the output projection."""
    setting, layer = subject.settings[condition], 1
    batch = Batch.of(encode(map(Query, TEXTS), subject.tokenizer))
    read = {Site("z", layer): keep, Site("attn_out", layer): keep}
    got = capture(subject, setting, batch, subject.prefill(setting), read)
    rows = torch.arange(len(TEXTS)), batch.lengths - 1
    z = got.values[Site("z", layer)][rows[0], :, rows[1]]
    heads = [head for head in everyone(subject) if head.layer == layer]
    parts = [written_to_stream(subject, setting, {layer: z}, [head]) for head in heads]
    whole = written_to_stream(subject, setting, {layer: z}, heads)
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, atol=1e-5, rtol=1e-4)
    rest = got.values[Site("attn_out", layer)][rows] - whole  # of the biases: no query's own
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), atol=2e-5, rtol=1e-4)


def test_a_function_vector_is_the_mean_over_all_queries(subject: Subject) -> None:
    queries = encode(map(Query, TEXTS, ANSWERS), subject.tokenizer)
    caches = {"prompt": subject.prefill(subject.settings["prompt"])}
    heads = [Head(0, 1), Head(2, 3), Head(2, 0)]
    vectors = [function_vector(subject, "prompt", some, caches, 2, heads) for some in
               (queries, queries[:1], queries[1:2], queries[2:])]  # fmt: skip
    torch.testing.assert_close(vectors[0], sum(vectors[1:]) / 3, atol=1e-6, rtol=1e-5)
    before = [replace(query, answer_ids=()) for query in queries]  # it is of the token before them
    bare = function_vector(subject, "prompt", before, caches, 2, heads)
    torch.testing.assert_close(vectors[0], bare, atol=1e-5, rtol=1e-5)
    assert vectors[0].norm() > 0.1


def test_no_head_recovers_nothing_and_all_of_a_prompt_everything(subject: Subject) -> None:
    """Under a prompt only what attention reads differs: all heads make base the prompt's run."""
    queries = encode(map(Query, TEXTS, ANSWERS), subject.tokenizer)
    caches = {name: subject.prefill(s) for name, s in subject.settings.items()}
    sets = [[Head(0, 0)], everyone(subject)]
    found = approach(
        subject, PatchMove("prompt", "base"), queries, caches, 64, heads_replaced(sets)
    )
    own = approach(subject, PatchMove("base", "base"), queries, caches, 64, heads_replaced(sets))
    assert own.to_source.max() < 1e-10
    if "gpt2" not in subject.name:  # its learned positions move the embedding, too
        assert found.recovery[1] == pytest.approx(1, abs=1e-5)
    assert found.recovery[0] < 1


def test_queries_are_divided() -> None:
    queries = encode(map(Query, TEXTS), tiny_models.tokenizer("gpt2"))
    here, there = divided(queries, np.array([True, False, True]))
    assert [q.text for q in here] == [TEXTS[0], TEXTS[2]]
    assert [q.text for q in there] == [TEXTS[1]]
