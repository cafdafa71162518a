"""Filler has the length and the place asked for; a reading is what plain Hugging Face gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from interp import organism
from interp.design import BASE
from interp.errors import ConfigError
from interp.experiments.context_distortion import (
    ALONE,
    distortion_table,
    strength_lost_to_filler,
    sweep_fillers,
)
from interp.experiments.filler import PLACES, fillers, lengths_that_fit, placed, repeated
from interp.matching.evaluation import Evaluation
from interp.matching.settings import Emulation, bundled_emulation


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    settings = Emulation(**bundled_emulation(Path("out")) | {"floor": (), "limit": 4})
    return Evaluation.open(settings)


def test_filler_is_cut_at_its_start() -> None:
    assert repeated((1, 2, 3), 5) == (2, 3, 1, 2, 3)
    assert repeated((1, 2, 3), 2) == (2, 3)
    assert repeated((1, 2, 3), 0) == ()


def test_filler_stands_after_around_and_before() -> None:
    got = [placed((7, 8), (1, 2), 4, place) for place in PLACES]
    assert got == [(7, 8, 1, 2, 1, 2), (1, 2, 7, 8, 1, 2), (1, 2, 1, 2, 7, 8)]


def test_filler_that_cannot_be_read_is_cut_to_what_can(evaluation: Evaluation) -> None:
    room = evaluation.subject.context - 1 - 2 - 3  # BOS, instruction, query with its answer
    assert lengths_that_fit(evaluation, (5, 6), [8, 1000, 2000]) == [8, room]
    with pytest.raises(ConfigError, match="at least 1 token"):
        lengths_that_fit(evaluation, (5, 6), [0, 8])
    with pytest.raises(ConfigError, match="room for 0"):
        lengths_that_fit(evaluation, (5,) * 512, [8])


def test_kinds_of_filler_differ_as_they_should(evaluation: Evaluation) -> None:
    kinds = fillers(evaluation, organism.QUERIES / "rival.jsonl")
    assert list(kinds) == ["relevant", "neutral", "wrong answers", "another task"]
    assert sorted(kinds["relevant"]) == sorted(kinds["wrong answers"])
    assert len(kinds["relevant"]) == len(kinds["another task"])
    queries, answers = slice(0, None, 4), slice(2, None, 4)
    assert kinds["relevant"][queries] == kinds["another task"][queries]
    pairs = zip(kinds["relevant"][answers], kinds["wrong answers"][answers], strict=True)
    assert all(one != other for one, other in pairs)


def test_a_reading_is_what_plain_hugging_face_gives(evaluation: Evaluation) -> None:
    kinds = {"neutral": fillers(evaluation)["neutral"]}
    instruction = tuple(evaluation.subject.tokenizer("opposite :")["input_ids"][1:])
    found = sweep_fillers(evaluation, instruction, kinds, [6])
    got = found["neutral", "after", 6]
    plain = AutoModelForCausalLM.from_pretrained(organism.MODEL, attn_implementation="eager")
    for i, query in enumerate(evaluation.queries["matched"]):
        ids = [0, *placed(instruction, kinds["neutral"], 6, "after"), *query.ids]
        with torch.no_grad():
            out = plain(torch.tensor([ids]), output_attentions=True)
        log_p = out.logits[0, -1].double().log_softmax(-1)
        own = torch.stack(out.attentions)[:, 0, :, -1, -len(query.ids) :].sum(-1).mean()
        assert got.entropy[i] == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-4)
        assert got.query_mass[i] == pytest.approx(float(own), abs=1e-5)
        assert got.accuracy[i] == (int(log_p.argmax()) == query.answer_ids[0])


def test_no_filler_is_the_short_prompt_and_no_instruction_is_base(evaluation: Evaluation) -> None:
    instruction = tuple(evaluation.subject.tokenizer("opposite :")["input_ids"][1:])
    found = sweep_fillers(evaluation, instruction, {"neutral": fillers(evaluation)["neutral"]}, [6])
    moved = found["neutral", "before", 0].moved.max()
    assert moved < 1e-10  # float32 in batches of another size: 0 on one CPU, 4e-13 on another
    base = evaluation.kl(BASE, "matched")
    np.testing.assert_allclose(found["neutral", ALONE, 0].kl, base, rtol=1e-4)
    table = distortion_table(found, evaluation).set_index(["measure", "series", "x"])["value"]
    assert table["strength", ALONE, "0"] == pytest.approx(0, abs=1e-5)
    assert table["strength", "instruction first", "0"] > 0.99
    places = ("instruction first", "in the middle", "instruction last")
    after = np.mean([table["strength", series, "6"] for series in places])
    short = table["strength", "instruction last", "0"]
    assert strength_lost_to_filler(found, evaluation, "neutral", 6)[0] == pytest.approx(
        short - after, abs=1e-9
    )
