"""What no prefix can do is 0 for what only precedes the query, and shows a LoRA that re-wires.

Nine architectures. With the inputs of every head pinned to base's, whatever stands before the query
scales a row of content attention and leaves its shape (Petrov et al. 2310.19698); the terms of a
head's change stand where the cause is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.conditions import (
    Base,
    Condition,
    Lora,
    Prefix,
    Prompt,
    Shifted,
    SoftPrompt,
    Steering,
)
from interp.measures.attention import CHANGES, content_js
from interp.measures.plan import Observed
from interp.observe import observe
from interp.queries import Query, encode
from interp.subject import Batch, load

ARCHITECTURES = tuple(tiny_models.CONFIGS)
FUSED = {"gpt2": "attn.c_attn", "neox": "query_key_value", "phi3": "qkv_proj"}
PROMPT = Prompt(text="hot is the opposite of cold.")
TEXTS = ("a river is wide; a hill is high", "up is the opposite of")
STEERED = 1
"""The layer after which a vector is added."""

PRECEDING = ("prompt", "soft", "prefix", "shifted", "steered")
"""What has base's weights: whatever precedes the query, or where the query stands, or is added."""
REWIRING = ("q", "k")
READING = ("v", "o", "mlp")
"""LoRAs that leave every score as it is at these inputs."""

PATTERN, VALUE, PREFIX, INPUT = (
    f"change_{name}" for name in ("pattern", "value", "prefix", "input")
)


class Seen:
    """All conditions on one batch; values are `[head, token]` of the real tokens, by layer."""

    def __init__(self, observed: dict[str, Observed], lengths: Tensor, bos: bool) -> None:
        self.observed, self.base, self.bos = observed, observed["base"], bos
        self.real = torch.arange(int(lengths.max())) < lengths[:, None]

    def tokens(self, value: Tensor) -> Tensor:
        """`[batch, head, query_pos]` without the padding, `[head, token]`."""
        return value.movedim(1, 0)[:, self.real]

    def residual(self, name: str) -> list[Tensor]:
        """`petrov_residual` of every layer."""
        runs = zip(self.observed[name].pinned, self.base.content, strict=True)
        return [self.tokens(content_js(pinned, base)) for pinned, base in runs]

    def difference(self, name: str) -> float:
        """The largest difference of a pinned content pattern from base's."""
        runs = zip(self.observed[name].pinned, self.base.content, strict=True)
        return max(float((pinned - base).abs().max()) for pinned, base in runs)

    def share(self, name: str, term: str) -> list[Tensor]:
        """A term's share of every head's change (a ratio of sums over tokens), by layer; NaN where
        a head does not change."""
        found = []
        for change in self.observed[name].changes:
            whole = self.tokens(change.whole)
            part = self.tokens(change.shares[CHANGES.index(term)])
            kept = torch.isfinite(whole)
            total = whole.where(kept, 0.0).sum(-1)
            above = part.where(kept, 0.0).sum(-1)
            found.append(torch.where(total > 0, above / total, torch.nan))
        return found


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Seen]:
    """Architecture -> every condition of this file, observed."""

    @functools.cache
    def look(architecture: str) -> Seen:
        folder = tmp_path_factory.mktemp(architecture)
        model = tiny_models.save_model(architecture, folder / "model")
        conditions: dict[str, Condition] = {
            "base": Base(),
            "prompt": PROMPT,
            "soft": SoftPrompt(tiny_models.save_soft_prompt(model, folder / "soft", 10)),
            "prefix": Prefix(tiny_models.save_prefix(model, folder / "prefix", 10)),
            "shifted": Shifted(by=PROMPT),
            "steered": Steering(
                tiny_models.save_steering(model, folder / "vector.safetensors"), STEERED
            ),
        }
        conditions |= {name: Lora(path) for name, path in adapters(architecture, model, folder)}
        subject = load(model, conditions, [TEXTS[1]], device="cpu")
        batch = Batch.of(encode(map(Query, TEXTS), subject.tokenizer))
        caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
        observed, _ = observe(subject, batch, caches, "base")
        return Seen(observed, batch.lengths, bool(subject.settings["base"].prefix))

    return look


def adapters(architecture: str, model: str, folder: Path) -> list[tuple[str, str]]:
    """LoRAs on one kind of module in every block; of a fused projection, on one part of it."""
    modules = tiny_models.MODULES[architecture]
    found = []
    for name in (*REWIRING, *READING):
        targets = (
            [FUSED[architecture]] if name in "qkv" and architecture in FUSED else modules[name]
        )
        path = tiny_models.save_adapter(model, folder / name, targets)
        if name in "qkv" and architecture in FUSED:
            keep_part(folder / name, architecture, name)
        found.append((name, path))
    return found


def keep_part(folder: Path, architecture: str, part: str) -> None:
    """Make an adapter on a fused projection change its queries, keys or values only."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor[~is_part(architecture, part, len(tensor))] = 0
    save_file(tensors, path)


def is_part(architecture: str, part: str, size: int) -> Tensor:
    """Which outputs of a fused projection are its part: one of three blocks of the heads, or in
    NeoX one of the three within every head."""
    heads, width = tiny_models.N_HEADS, tiny_models.D_HEAD
    if architecture == "neox":
        sizes = [width] * (3 * heads)
    else:
        grouped = (size // width - heads) // 2
        sizes = [heads * width, grouped * width, grouped * width]
    names = torch.tensor([i % 3 for i, n in enumerate(sizes) for _ in range(n)])
    assert len(names) == size
    return names == "qkv".index(part)


everywhere = pytest.mark.parametrize("architecture", ARCHITECTURES)


# Re-wiring --------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("name", PRECEDING)
def test_what_precedes_the_query_leaves_no_residual(
    seen: Callable[[str], Seen], architecture: str, name: str
) -> None:
    found = seen(architecture)
    assert len(found.residual(name)) == tiny_models.N_LAYERS
    assert all((layer <= 1e-6).all() for layer in found.residual(name))
    assert found.difference(name) <= 1e-6


@everywhere
@pytest.mark.parametrize("name", REWIRING)
def test_a_lora_on_queries_or_keys_is_seen_in_every_head(
    seen: Callable[[str], Seen], architecture: str, name: str
) -> None:
    for layer in seen(architecture).residual(name):
        assert (layer.max(-1).values > 1e-6).all()


@everywhere
@pytest.mark.parametrize("name", READING)
def test_a_lora_elsewhere_leaves_no_residual(
    seen: Callable[[str], Seen], architecture: str, name: str
) -> None:
    found = seen(architecture)
    assert all((layer <= 1e-12).all() for layer in found.residual(name))
    if not found.bos:  # nothing but the query is attended to: the same bits
        assert found.difference(name) == 0


@everywhere
def test_steering_leaves_the_pinned_run_as_it_is(
    seen: Callable[[str], Seen], architecture: str
) -> None:
    assert seen(architecture).difference("steered") == 0


@everywhere
@pytest.mark.parametrize("name", ["prompt", "soft", "prefix"])
def test_attention_itself_does_change(
    seen: Callable[[str], Seen], architecture: str, name: str
) -> None:
    """The residual is not 0 for want of a change: content patterns differ by what is read."""
    found = seen(architecture)
    runs = zip(found.observed[name].content, found.base.content, strict=True)
    js = [found.tokens(content_js(own, base)) for own, base in runs]
    assert all((layer.max(-1).values > 1e-6).all() for layer in js[1:])


# The terms of a head's change -------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("name", [*PRECEDING, *REWIRING, *READING])
def test_the_terms_add_up(seen: Callable[[str], Seen], architecture: str, name: str) -> None:
    found = seen(architecture)
    assert max(change.error for change in found.observed[name].changes) <= 1e-5
    for layer in range(tiny_models.N_LAYERS):
        total = sum(found.share(name, term)[layer] for term in CHANGES)
        assert isinstance(total, Tensor)
        known = total[~torch.isnan(total)]
        torch.testing.assert_close(known, torch.ones_like(known), rtol=0, atol=1e-4)
    unmoved = name == "shifted" and not found.bos and architecture != "gpt2"
    assert torch.isnan(total).all() == unmoved  # rotary scores know distances only


@everywhere
@pytest.mark.parametrize("name", PRECEDING)
def test_what_precedes_the_query_changes_neither_values_nor_pattern_itself(
    seen: Callable[[str], Seen], architecture: str, name: str
) -> None:
    found = seen(architecture)
    for term in (VALUE, PATTERN):
        for layer in found.share(name, term):
            assert (layer[~torch.isnan(layer)].abs() <= 1e-5).all()


@everywhere
@pytest.mark.parametrize("name", READING)
def test_a_lora_that_does_not_rewire_changes_no_pattern(
    seen: Callable[[str], Seen], architecture: str, name: str
) -> None:
    for layer in seen(architecture).share(name, PATTERN):
        assert (layer[~torch.isnan(layer)].abs() <= 1e-5).all()


@everywhere
@pytest.mark.parametrize(
    ("name", "cause"), [("q", PATTERN), ("k", PATTERN), ("v", VALUE), ("prefix", PREFIX)]
)
def test_the_first_block_changes_by_the_planted_cause(
    seen: Callable[[str], Seen], architecture: str, name: str, cause: str
) -> None:
    """Its inputs are base's: all is due to the weights, or to the prefix; a BOS is one too."""
    found = seen(architecture)
    planted = found.share(name, cause)[0]
    prefix = found.share(name, PREFIX)[0] if found.bos and cause != PREFIX else 0.0
    if architecture == "gpt2" and name == "prefix":  # learned positions are an input
        assert (planted > 0.01).all()
        return
    torch.testing.assert_close(planted + prefix, torch.ones_like(planted), rtol=0, atol=1e-4)
    assert (planted.abs() > 1e-3).all()


@everywhere
@pytest.mark.parametrize("name", ["o", "mlp", "steered"])
def test_what_comes_after_the_first_block_s_heads_changes_their_inputs_only_later(
    seen: Callable[[str], Seen], architecture: str, name: str
) -> None:
    found = seen(architecture)
    shares = found.share(name, INPUT)
    if found.bos and name != "steered":  # the BOS's own keys and values move as well
        shares = [a + b for a, b in zip(shares, found.share(name, PREFIX), strict=True)]
    before = STEERED + 1 if name == "steered" else 1
    assert all(torch.isnan(layer).all() for layer in shares[:before])
    for layer in shares[before:]:
        torch.testing.assert_close(layer, torch.ones_like(layer), rtol=0, atol=1e-4)
