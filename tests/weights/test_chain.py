"""A prompt as a chain of patches: plain Hugging Face with them written in says what it says with
the prompt, and writes the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from interp import organism
from interp.conditions import Base, Neutral, Prompt
from interp.errors import SubjectError
from interp.queries import Encoded, Query, encode
from interp.subject import Subject, load
from interp.validation.architectures import save_architecture
from interp.weights.chain import (
    longer,
    patch_chain,
    patched_weights,
    relative_distances,
    stacked_chains,
)

PROMPT = "people walked along"
QUERY = "a river is wide and high"
TOKENS = 2
PARALLEL = ("neox", "falcon", "phi")
POST_NORMED = ("gemma2", "olmo2")
OTHERS = ("gpt2", "llama", "phi3", "granite")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Architecture -> its subject, a plain model of the same weights, and an encoded query."""
    known: dict[str, tuple[Subject, Any, Encoded]] = {}

    def of(architecture: str) -> tuple[Subject, Any, Encoded]:
        if architecture not in known:
            folder = save_architecture(architecture, tmp_path_factory.mktemp("chain"))
            conditions = {"base": Base(), "prompt": Prompt(text=PROMPT)}
            subject = load(folder, conditions, ["the river"], device="cpu")
            plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
            (query,) = encode([Query(QUERY)], subject.tokenizer)
            known[architecture] = subject, plain.eval(), query
        return known[architecture]

    return of


@torch.no_grad()
def says(plain: Any, *ids: int) -> torch.Tensor:
    """The logits after these tokens, of a plain model."""
    return plain(torch.tensor([ids]), use_cache=False).logits[0, -1]


def written_with_both(
    subject: Subject, plain: Any, query: Encoded, tokens: int
) -> tuple[list[int], list[int], float, float]:
    """Greedy tokens with the prompt, and without it but patched anew for every token; the largest
    difference of a logit, and the smallest that the prompt makes where nothing is patched."""
    before, prefix = (subject.settings[name].prefix for name in ("base", "prompt"))
    with_it: list[int] = []
    patched: list[int] = []
    error, effect = 0.0, float("inf")
    for _ in range(tokens):
        wanted = says(plain, *prefix, *query.ids, *with_it)
        chain = patch_chain(subject, "base", "prompt", longer(query, patched))
        effect = min(
            effect, float((says(plain, *before, *query.ids, *patched) - wanted).abs().max())
        )
        with patched_weights(plain, chain):
            found = says(plain, *before, *query.ids, *patched)
        error = max(error, float((found - wanted).abs().max()))
        with_it.append(int(wanted.argmax()))
        patched.append(int(found.argmax()))
    return with_it, patched, error, effect


@pytest.mark.parametrize("architecture", [*PARALLEL, *POST_NORMED, *OTHERS])
def test_patched_plain_hugging_face_writes_what_the_prompt_makes_it_write(
    architecture: str, opened: Any
) -> None:
    subject, plain, query = opened(architecture)
    with_it, patched, error, effect = written_with_both(subject, plain, query, TOKENS)
    assert patched == with_it
    assert error < 1e-4
    assert effect > 0.05  # there was something to write into the weights


def test_the_bundled_model_writes_the_same_tokens() -> None:
    words = (organism.PROMPTS / "instruction_0.txt").read_text().strip()
    conditions = {"base": Base(), "prompt": Prompt(text=words)}
    subject = load(str(organism.MODEL), conditions, ["risky ->"], device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(organism.MODEL, attn_implementation="eager")
    for query in encode(map(Query, ("risky ->", "tender ->")), subject.tokenizer):
        with_it, patched, error, effect = written_with_both(subject, plain, query, TOKENS)
        assert patched == with_it
        assert error < 1e-4
        assert effect > 0.5


@pytest.mark.parametrize("architecture", PARALLEL)
def test_of_a_parallel_block_only_the_output_projection_is_patched(
    architecture: str, opened: Any
) -> None:
    subject, _, query = opened(architecture)
    updates = patch_chain(subject, "base", "prompt", query).updates
    size = {path: float(u.written.norm() * u.read.norm()) for path, u in updates.items()}
    out = {p: s for p, s in size.items() if p.endswith(("4h_to_h", "fc2", "down_proj"))}
    assert len(out) == subject.n_layers
    assert min(out.values()) > 1e-3
    assert max(s for p, s in size.items() if p not in out) < 1e-4 * min(out.values())


@pytest.mark.parametrize("architecture", POST_NORMED)
def test_behind_a_norm_its_gain_is_scaled_by_one_number(architecture: str, opened: Any) -> None:
    subject, plain, query = opened(architecture)
    chain = patch_chain(subject, "base", "prompt", query)
    assert len(chain.gains) == subject.n_layers
    modules, moved = dict(plain.named_modules()), []
    for path, added in chain.gains.items():
        gain = modules[path].weight.detach().double() + ("gemma" in architecture)
        factors = added / gain
        torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=1e-4, atol=1e-6)
        moved.append(float(factors[0].abs()))
    assert max(moved) > 1e-3  # less where a sliding window does not reach the prompt


def test_weights_are_back_to_the_bit_also_after_an_error(opened: Any) -> None:
    subject, plain, query = opened("gemma2")
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    chain = patch_chain(subject, "base", "prompt", query)

    def halt() -> None:
        with patched_weights(plain, chain):
            now = plain.state_dict()
            changed = [name for name in now if not torch.equal(now[name], before[name])]
            assert len(changed) == len(chain.updates) + len(chain.gains)
            raise RuntimeError("halt")

    with pytest.raises(RuntimeError, match="halt"):
        halt()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_no_prompt_is_no_patch(opened: Any) -> None:
    """Base's chain to itself changes nothing."""
    subject, plain, query = opened("llama")
    chain = patch_chain(subject, "base", "base", query)
    for path, update in chain.updates.items():
        weight = plain.state_dict()[f"{path}.weight"]
        assert float(update.written.norm() * update.read.norm()) < 1e-5 * float(weight.norm())


def test_distances_are_those_of_the_matrices_written_out(opened: Any) -> None:
    subject, _, query = opened("llama")
    asked = [longer(query, more) for more in ((), (5,), (7, 9))]
    chains = [patch_chain(subject, "base", "prompt", one) for one in asked]
    flat = np.stack(
        [
            np.concatenate(
                [np.outer(u.written[0], u.read[0]).ravel() for u in chain.updates.values()]
            )
            for chain in chains
        ]
    )
    norms = np.linalg.norm(flat, axis=1)
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    wanted = apart / ((norms[:, None] + norms[None]) / 2)
    np.testing.assert_allclose(relative_distances(chains), wanted, atol=1e-6)
    assert float(relative_distances(chains[:1], chains[:1])) < 1e-6
    assert [len(u.written) for u in stacked_chains(chains).values()] == [3] * len(chains[0].updates)


def test_any_text_has_a_chain_a_neutral_one_too(opened: Any, tmp_path: Path) -> None:
    """The identity says nothing of what the text means: that is what must not be read into it."""
    subject, plain, query = opened("llama")
    neutral = load(
        subject.name,
        {"base": Base(), "prompt": Neutral(like=Prompt(text=PROMPT), text="the weather was mild")},
        ["the river"],
        device="cpu",
    )
    with_it, patched, error, _ = written_with_both(neutral, plain, query, 1)
    assert (patched, error < 1e-4) == (with_it, True)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("mixtral", "block 0 has no MLP of its own projections"), ("opt", "does not see a batch")],
)
def test_what_cannot_be_patched_is_refused_in_one_line(
    architecture: str, reason: str, opened: Any
) -> None:
    subject, _, query = opened(architecture)
    with pytest.raises(SubjectError, match=reason):
        patch_chain(subject, "base", "prompt", query)
