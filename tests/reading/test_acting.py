"""Vectors that act: patchscope and steered samples are those of plain Hugging Face with a hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from interp.conditions import Base, Lora
from interp.generating import generate
from interp.queries import Query, encode
from interp.reading.patchscope import patchscope
from interp.reading.scores import word_score
from interp.reading.steering import steered_answers
from interp.subject import Subject, load

from .conftest import said_by

CARRIER, TEXTS, LAYER = "hot -> hot ; up -> up ; small", ["the weather", "a river is"], 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save_model("llama", tmp_path_factory.mktemp("acting") / "model")


@pytest.fixture(scope="module")
def subject(model: str) -> Subject:
    """The LoRA is mounted, and must not act."""
    folder = tiny_models.save_adapter(model, Path(model).parent / "lora", ["q_proj", "down_proj"])
    return load(model, {"base": Base(), "lora": Lora(folder)}, TEXTS[:1], device="cpu")


class Plain:
    """The plain model, with a hook on one block's output from a position on."""

    def __init__(self, folder: str) -> None:
        self.hf: Any = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def logits(self, ids: list[int], layer: int, change: Any = None) -> torch.Tensor:
        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden = change(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles = []
        if change is not None:
            handles.append(self.hf.model.layers[layer].register_forward_hook(hook))
        try:
            return self.hf(torch.tensor([ids])).logits[0, -1].double()
        finally:
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize("layer", range(tiny_models.N_LAYERS))
def test_a_patchscope_is_a_plain_models_with_the_state_replaced(
    subject: Subject, model: str, layer: int
) -> None:
    (carrier,) = encode([Query(CARRIER)], subject.tokenizer)
    ids, plain = [subject.tokenizer.bos_token_id, *carrier.ids], Plain(model)
    vectors = torch.randn(3, subject.d_model, generator=torch.Generator().manual_seed(0))
    found = patchscope(subject, carrier, vectors, layer)
    own = plain.logits(ids, layer)
    for vector, said in zip(vectors, found, strict=True):

        def change(hidden: torch.Tensor, vector: torch.Tensor = vector) -> torch.Tensor:
            hidden[0, -1] = vector / vector.norm() * hidden[0, -1].norm()
            return hidden

        wanted = plain.logits(ids, layer, change) - own
        torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-4)
        assert float(wanted.abs().max()) > 0.1
    again = patchscope(subject, carrier, 9 * vectors, layer)  # only the direction counts
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-5)


def test_the_carriers_own_state_changes_nothing(subject: Subject) -> None:
    from interp.capture import capture, keep
    from interp.names import Site
    from interp.subject import Batch

    (carrier,) = encode([Query(CARRIER)], subject.tokenizer)
    base, site = subject.settings["base"], Site("resid_post", LAYER)
    got = capture(subject, base, Batch.of([carrier]), subject.prefill(base), {site: keep})
    said = patchscope(subject, carrier, got.values[site][0, -1][None], LAYER)
    assert float(said.abs().max()) < 1e-5


def test_a_planted_word_is_said_by_the_patchscope(subject: Subject, model: str) -> None:
    vector, token = said_by(model, "cold")
    (carrier,) = encode([Query(CARRIER)], subject.tokenizer)
    said = patchscope(subject, carrier, vector[None], tiny_models.N_LAYERS - 1)[0].numpy()
    assert word_score(said, [token]) > 2
    assert (said > said[token]).sum() <= 2


def test_steered_samples_are_a_plain_models_token_by_token(subject: Subject, model: str) -> None:
    """The vector is added at the text's tokens and at what is written, not at what precedes."""
    queries, plain = encode(map(Query, TEXTS), subject.tokenizer), Plain(model)
    vector = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(1))
    found = steered_answers(subject, queries, vector, LAYER, 2.0, 5)
    stop = subject.hf_model.generation_config.eos_token_id

    def change(hidden: torch.Tensor) -> torch.Tensor:
        hidden[:, 1:] += 2.0 * vector
        return hidden

    for query, answer in zip(queries, found, strict=True):
        ids, written = [subject.tokenizer.bos_token_id, *query.ids], []
        while len(written) < 5 and stop not in written:
            written.append(int(plain.logits([*ids, *written], LAYER, change).argmax()))
        assert list(answer) == written
    base = generate(subject, subject.settings["base"], queries, 5)
    assert steered_answers(subject, queries, vector, LAYER, 0.0, 5) == base
    assert found != base


def test_a_vector_along_an_unembedding_row_makes_base_write_its_word(
    subject: Subject, model: str
) -> None:
    vector, token = said_by(model, "cold")
    queries = encode(map(Query, TEXTS), subject.tokenizer)
    last = tiny_models.N_LAYERS - 1
    found = steered_answers(subject, queries, vector, last, 50.0, 4)
    assert np.mean([t == token for ids in found for t in ids]) == 1
    assert len(subject.insertions.vectors) == 0  # the subject itself is as it was
