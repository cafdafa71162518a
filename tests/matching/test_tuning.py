"""Virtual tokens: what is tuned is what is saved, a search goes on as if never stopped, rounds
through the queries are what is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from plain_kl import Asked, Plain
from tiny_models import CONFIGS, MODULES, save_adapter, save_model
from transformers import AutoModelForCausalLM

from interp.conditions import Base, Lora, Prefix, SoftPrompt
from interp.errors import RunError
from interp.matching.examples import Examples, content, examples
from interp.matching.virtual import (
    Tuned,
    Tuning,
    VirtualKind,
    after_virtual,
    as_virtual,
    distance,
    initial,
    objective,
    save_virtual_tokens,
    tune,
)
from interp.names import Site
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load

ASKED = [
    ("hot is the opposite", "of cold."),
    ("a river", "is wide"),
    ("lily", None),
    ("up is", None),
]
KINDS: list[VirtualKind] = ["soft_prompt", "prefix"]


# Saved ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CONFIGS)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    model = save_model(request.param, tmp_path_factory.mktemp(request.param) / "model")
    return load(model, {"base": Base()}, ["a river"])


def test_what_is_saved_is_what_peft_loads(plain: Subject, tmp_path: Path) -> None:
    """`load` compares every condition with peft's own forward pass; here with the tuned values."""
    batch = Batch.of(encode([Query(text) for text, _ in ASKED], plain.tokenizer))
    made = {}
    plan: list[tuple[str, VirtualKind, int]] = [
        ("soft", "soft_prompt", 3),
        ("prefix", "prefix", 3),
        ("long", "prefix", 12),
    ]
    for name, kind, tokens in plan:
        start = initial(plain, plain.settings["base"], Tuning(kind, tokens))
        values = start + 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
        made[name] = Tuned(kind, values, 0.0, [])
        save_virtual_tokens(made[name], tmp_path / name, plain)
    conditions = {
        "base": Base(),
        "soft": SoftPrompt(str(tmp_path / "soft")),
        "prefix": Prefix(str(tmp_path / "prefix")),
        "long": Prefix(str(tmp_path / "long")),
    }
    subject = load(plain.name, conditions, ["a river"])
    for name, tuned in made.items():
        own = after_virtual(plain.settings["base"], tuned.kind, tuned.tokens)
        cache = plain.prefill(own, as_virtual(tuned.kind, tuned.values))
        expected = plain.run(own, batch, cache)
        setting = subject.settings[name]
        got = subject.run(setting, batch, subject.prefill(setting))
        for row, length in enumerate(batch.lengths):
            assert (got - expected)[row, :length].abs().max() < 1e-5


def test_a_prefix_starts_as_keys_and_values_of_words(plain: Subject) -> None:
    """As many as asked for, also where the model's own cache would drop what leaves its window."""
    kv = plain.bridge.original_model.config
    start = initial(plain, plain.settings["base"], Tuning("prefix", 12))
    heads = getattr(kv, "num_key_value_heads", None) or kv.num_attention_heads
    assert start.shape == (plain.n_layers, 2, heads, 12, plain.d_model // plain.n_heads)
    first = initial(plain, plain.settings["base"], Tuning("prefix", 4))
    words = torch.arange(plain.n_words)[:, None]
    hf = AutoModelForCausalLM.from_pretrained(plain.name).eval()
    with torch.no_grad():
        layer = hf(words, use_cache=True).past_key_values.layers[0]
    alone = torch.stack([layer.keys, layer.values], 1)[:, :, :, 0].flatten(1)
    assert (first[0, :, :, 0].flatten() - alone).abs().amax(1).min() < 1e-5  # the first token's


# Tuned ------------------------------------------------------------------------------------------


class Case(NamedTuple):
    subject: Subject
    lora: str
    wanted: Examples


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("llama")
    model = save_model("llama", root / "model")
    lora = save_adapter(model, root / "lora", MODULES["llama"]["q"])
    subject = load(model, {"base": Base(), "lora": Lora(lora)}, ["a river"])
    queries = encode([Query(*asked) for asked in ASKED], subject.tokenizer)
    sites = [Site("resid_post", 1), Site("pattern", 2)]
    wanted = examples(subject, subject.settings["lora"], queries, 64, sites)
    return Case(subject, lora, wanted)


def tuned(case: Case, kind: VirtualKind = "soft_prompt", **fields: object) -> Tuned:
    settings = Tuning(kind, 2, steps=20)._replace(**fields)  # type: ignore[arg-type]
    return tune(case.subject, case.subject.settings["base"], case.wanted, settings)


def loss(case: Case, found: Tuned, inside: float = 0.0) -> float:
    own = after_virtual(case.subject.settings["base"], found.kind, found.tokens)
    virtual = as_virtual(found.kind, found.values)
    return float(objective(case.subject, own, case.wanted, virtual, inside))


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_lowers_the_loss_that_it_reports(case: Case, kind: VirtualKind) -> None:
    found = tuned(case, kind)
    assert len(found.history) == 20
    assert found.loss == min(found.history) < 0.6 * found.history[0]
    assert loss(case, found) == pytest.approx(found.loss, rel=1e-5)
    again = tuned(case, kind)
    assert torch.equal(again.values, found.values)
    assert again.history == found.history
    assert not torch.equal(tuned(case, kind, seed=1).values, found.values)


def test_the_reported_loss_is_that_of_whole_sequences(case: Case) -> None:
    found, target = tuned(case), Plain.of(case.subject.name, case.lora)
    said, bos = Plain.of(case.subject.name), case.subject.settings["base"].prefix
    asked = [Asked.of(case.subject.name, *one) for one in ASKED]
    each = [said.kl(target.logits(a, bos), a, bos, embeddings=found.values) for a in asked]
    assert float(torch.stack(each).mean()) == pytest.approx(found.loss, rel=1e-4)


def test_batches_are_compared_by_rounds_through_all_queries(case: Case) -> None:
    """One query a step: four are a round, and the values kept are the best round's, so that no
    easy query passes for a good step."""
    found = tuned(case, batch_size=1, steps=32)
    rounds = torch.tensor(found.history, dtype=torch.float64).reshape(8, 4).mean(1)
    assert found.loss == pytest.approx(float(rounds.min()))
    assert min(found.history) < 0.7 * found.loss
    assert loss(case, found) == pytest.approx(found.loss, rel=0.3)
    assert loss(case, found) < 0.8 * found.history[0]


def test_it_stops_when_nothing_is_gained(case: Case) -> None:
    assert len(tuned(case, rate=0.0, patience=5).history) == 6
    assert len(tuned(case, rate=0.0, patience=5, batch_size=1).history) == 9  # a round and 5 steps


def test_a_loss_that_is_no_number_is_one_line(case: Case) -> None:
    nowhere = replace(case.wanted, logits=case.wanted.logits * torch.nan)
    with pytest.raises(RunError, match="diverged at step 1: lower --rate"):
        tuned(case._replace(wanted=nowhere))


class Kept:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def load(self) -> bytes | None:
        return self.content

    def keep(self, content: bytes) -> None:
        self.content = content


@pytest.mark.parametrize(("kind", "stop"), [("soft_prompt", 22), ("prefix", 20)])
def test_a_search_goes_on_as_if_never_stopped(case: Case, kind: VirtualKind, stop: int) -> None:
    kept, settings = Kept(), Tuning(kind, 2, steps=24, batch_size=3)

    def interrupted(step: int, _loss: float, _best: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    base = case.subject.settings["base"]
    with pytest.raises(KeyboardInterrupt):
        tune(case.subject, base, case.wanted, settings, interrupted, kept)
    assert (kept.content is None) == (stop == 20)
    steps: list[int] = []
    on = tune(case.subject, base, case.wanted, settings, lambda s, *_: steps.append(s), kept)
    assert steps[0] == {20: 1, 22: 21}[stop]
    whole = tune(case.subject, base, case.wanted, settings)
    assert torch.equal(on.values, whole.values)
    assert on.history == whole.history
    assert on.loss == whole.loss


# Inside -----------------------------------------------------------------------------------------


def test_a_distance_is_a_share_of_the_wanted_or_a_divergence_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 2])
    own, wanted = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    stream = distance(Site("resid_post", 0), own, wanted, lengths)
    a, b = (torch.cat([x[0], x[1, :2]]) for x in (own, wanted))
    assert float(stream) == pytest.approx(float((a - b).norm() ** 2 / b.norm() ** 2), rel=1e-5)
    assert float(distance(Site("resid_post", 0), wanted, wanted, lengths)) == 0
    p, q = (torch.rand(2, 4, 3, 3, generator=generator).tril() for _ in range(2))
    p, q = (x / x.sum(-1, keepdim=True) for x in (p, q))
    rows = [
        float((p[n, h, i, : i + 1] * (p[n, h, i, : i + 1] / q[n, h, i, : i + 1]).log()).sum())
        for n, length in enumerate(lengths)
        for h in range(4)
        for i in range(length)
    ]
    pattern = distance(Site("pattern", 0), q, p, lengths)
    assert float(pattern) == pytest.approx(sum(rows) / len(rows), rel=1e-4)
    assert float(distance(Site("pattern", 0), p, p, lengths)) == pytest.approx(0, abs=1e-6)


def inside(case: Case, found: Tuned) -> float:
    """The mean distance of the states, from a run of its own."""
    own = after_virtual(case.subject.settings["base"], found.kind, found.tokens)
    cache = case.subject.prefill(own, as_virtual(found.kind, found.values))
    seen: dict[Site, torch.Tensor] = {}
    hooks = {site: (lambda v, site=site: seen.update({site: v})) for site in case.wanted.inside}
    case.subject.run(own, case.wanted.batch, cache, hooks)
    each = []
    for site, value in case.wanted.inside.items():
        said = content(seen[site]) if site.name == "pattern" else seen[site]
        each.append(float(distance(site, said, value, case.wanted.batch.lengths)))
    return sum(each) / len(each)


def test_states_come_nearer_where_they_are_matched(case: Case) -> None:
    outputs, both = tuned(case), tuned(case, inside=2.0)
    assert inside(case, both) < 0.95 * inside(case, outputs)
    assert both.loss == pytest.approx(loss(case, both) + 2.0 * inside(case, both), rel=1e-4)
    assert loss(case, both, 2.0) == pytest.approx(both.loss, rel=1e-4)


def test_a_head_that_left_the_query_has_no_content_and_a_finite_gradient() -> None:
    """A float32 row whose mass lies outside the query, or underflows, cannot be divided."""
    scores = torch.zeros(1, 1, 3, 5)
    scores[..., :2] = torch.tensor([200.0, 95.0, 1.0])[:, None]  # of the keys before the query
    scores.requires_grad_()
    pattern = scores.softmax(-1)
    rows = content(pattern)
    assert rows[0, 0, 0].sum() == 0
    torch.testing.assert_close(rows[0, 0, 2], torch.full((3,), 1 / 3, dtype=torch.float64))
    lengths, wanted = torch.tensor([3]), torch.full((1, 1, 3, 3), 1 / 3, dtype=torch.float64)
    loss = distance(Site("pattern", 0), rows, wanted, lengths)
    (gradient,) = torch.autograd.grad(loss, [scores])
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
