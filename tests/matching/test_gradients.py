"""Gradients through bridge, key/value cache and peft: by the whole sequence in plain Hugging Face,
and by finite differences, on every architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from plain_kl import Asked, Plain
from tiny_models import CONFIGS, all_targets, save_adapter, save_model
from torch import Tensor

from interp.conditions import Base, FineTuned, Lora, Prompt
from interp.matching.examples import Examples, examples
from interp.matching.prefixes import Scorer
from interp.matching.virtual import (
    Tuning,
    VirtualKind,
    after_virtual,
    as_virtual,
    initial,
    objective,
)
from interp.queries import Query, encode
from interp.subject import Subject, load

ASKED = [
    ("hot is the opposite", "of cold."),
    ("a river", "is wide"),
    ("up", "down"),
    ("lily", None),
]
TOKENS, LONG = 3, 12
"""`LONG`: beyond the sliding windows (8) of the tiny Mistral and Gemmas."""
Where = tuple[str, VirtualKind, int]
WHERE: list[Where] = [
    ("base", "soft_prompt", TOKENS),
    ("base", "prefix", LONG),
    ("other", "soft_prompt", LONG),
    ("other", "prefix", TOKENS),
    ("prompt", "prefix", TOKENS),
]


class Case(NamedTuple):
    """A model whose LoRA is to be emulated, under base, under another LoRA, after a prompt."""

    model: str
    loras: dict[str, str]
    subject: Subject
    wanted: Examples

    def loss(self, name: str, kind: VirtualKind) -> Callable[[Tensor], Tensor]:
        def loss(values: Tensor) -> Tensor:
            own = after_virtual(self.subject.settings[name], kind, values.shape[-2])
            return objective(self.subject, own, self.wanted, as_virtual(kind, values))

        return loss

    def plain(
        self, name: str, kind: VirtualKind, before: tuple[int, ...]
    ) -> Callable[[Tensor], Tensor]:
        said, target = (Plain.of(self.model, self.loras.get(who)) for who in (name, "lora"))
        return plainly(said, target, self.subject, before, kind)

    def start(self, name: str, kind: VirtualKind, tokens: int) -> Tensor:
        setting = self.subject.settings[name]
        return initial(self.subject, setting, Tuning(kind, tokens, seed=4))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root, name = tmp_path_factory.mktemp(request.param), request.param
    model, targets = save_model(name, root / "model"), all_targets(name)
    loras = {
        "lora": save_adapter(model, root / "lora", targets, seed=1),
        "other": save_adapter(model, root / "other", targets, seed=2),
    }
    conditions = {
        "base": Base(),
        "prompt": Prompt(text="up is the opposite of down"),
        **{name: Lora(folder) for name, folder in loras.items()},
    }
    subject = load(model, conditions, ["a river"])
    queries = encode([Query(text, answer) for text, answer in ASKED], subject.tokenizer)
    wanted = examples(subject, subject.settings["lora"], queries, batch_size=3)
    return Case(model, loras, subject, wanted)


def plainly(
    said: Plain, target: Plain, subject: Subject, before: tuple[int, ...], kind: VirtualKind
) -> Callable[[Tensor], Tensor]:
    """The same loss from whole sequences; `before`: ids between virtual tokens and query."""
    field = {"soft_prompt": "embeddings", "prefix": "prefix"}[kind]
    asked = [Asked.of(subject.name, text, answer) for text, answer in ASKED]
    wanted = [target.logits(one, subject.settings["base"].prefix) for one in asked]

    def loss(values: Tensor) -> Tensor:
        each = zip(wanted, asked, strict=True)
        rows = [said.kl(p, one, before, **{field: values}) for p, one in each]
        return torch.stack(rows).mean()

    return loss


def slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor]:
    values = at.clone().requires_grad_()
    result = loss(values)
    (gradient,) = torch.autograd.grad(result, [values])
    return float(result.detach()), gradient


def along(loss: Callable[[Tensor], Tensor], at: Tensor, way: Tensor) -> float:
    """The derivative along a direction: central differences extrapolated to step 0 (Richardson)."""

    def central(step: float) -> float:
        ahead, behind = (float(loss(at + s * step * way).detach()) for s in (1, -1))
        return (ahead - behind) / (2 * step)

    return (4 * central(0.002) - central(0.004)) / 3


def directions(gradient: Tensor) -> list[Tensor]:
    """Downhill and a random one, of root mean square 1."""
    generator = torch.Generator().manual_seed(0)
    ways = [gradient, torch.randn(gradient.shape, generator=generator)]
    return [way / way.square().mean().sqrt() for way in ways]


@pytest.mark.parametrize("where", WHERE, ids=lambda w: "-".join(map(str, w)))
def test_gradients_are_those_of_whole_sequences(case: Case, where: Where) -> None:
    name, kind, tokens = where
    at = case.start(name, kind, tokens)
    value, gradient = slope(case.loss(name, kind), at)
    plain = case.plain(name, kind, case.subject.settings[name].prefix)
    expected_value, expected = slope(plain, at)
    assert value == pytest.approx(expected_value, rel=1e-4, abs=1e-6)
    size = float(expected.abs().max())
    assert size > 1e-4
    assert (gradient - expected).abs().max() < 1e-3 * size


@pytest.mark.parametrize(
    "where", [("base", "soft_prompt", TOKENS), ("other", "prefix", TOKENS)], ids=["base", "lora"]
)
def test_gradients_are_finite_differences(case: Case, where: Where) -> None:
    name, kind, tokens = where
    loss, at = case.loss(name, kind), case.start(name, kind, tokens)
    _, gradient = slope(loss, at)
    for way in directions(gradient):
        way = way * at.square().mean().sqrt()
        expected = along(loss, at, way)
        assert float((gradient * way).sum()) == pytest.approx(expected, rel=0.01, abs=0.003)


def check_slopes(scorer: Scorer, plain: Callable[[Tensor], Tensor], embed: Any) -> None:
    """One-hot slopes: what the loss of whole sequences does as a token is blended in."""
    prefix, start = (7, 30, 12), len(scorer.setting.prefix)
    slopes = scorer.slopes(prefix)
    assert slopes.shape == (3, scorer.subject.n_words)
    whole = embed(torch.tensor([*scorer.setting.prefix, *prefix, *scorer.tail])).detach()
    for place, token in ((0, int(slopes[0].argmin())), (2, int(slopes[2].argmax()))):
        way = torch.zeros_like(whole)
        way[start + place] = embed(torch.tensor(token)).detach()
        expected = along(plain, whole, way)
        assert abs(expected) > 0.01
        assert float(slopes[place, token]) == pytest.approx(expected, rel=0.01, abs=0.003)


@pytest.mark.parametrize("name", ["base", "other"])
def test_one_hot_slopes_are_finite_differences(case: Case, name: str) -> None:
    scorer = Scorer(case.subject, case.subject.settings[name], case.wanted, 64, tail=(9,))
    embed = Plain.of(case.model, case.loras.get(name)).embed
    check_slopes(scorer, case.plain(name, "soft_prompt", ()), embed)


# Weights that are swapped, states that are matched ----------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A fine-tune is the target, a LoRA on the embedding too is another condition."""
    root, name = tmp_path_factory.mktemp(request.param), request.param
    model, other = save_model(name, root / "base"), save_model(name, root / "tuned", seed=7)
    embedding = {"gpt2": "wte", "llama": "embed_tokens"}[name]
    lora = save_adapter(model, root / "lora", [embedding])
    conditions = {"base": Base(), "tuned": FineTuned(other), "lora": Lora(lora)}
    subject = load(model, conditions, ["a river"])
    queries = encode([Query(text, answer) for text, answer in ASKED], subject.tokenizer)
    wanted = examples(subject, subject.settings["lora"], queries, batch_size=64)
    return Case(model, {"lora": lora, "tuned": other}, subject, wanted)


@pytest.mark.parametrize("kind", ["soft_prompt", "prefix"])
def test_gradients_under_other_weights(tuned: Case, kind: VirtualKind) -> None:
    own = tuned.subject.settings["tuned"]
    at = tuned.start("tuned", kind, TOKENS)

    def loss(values: Tensor) -> Tensor:
        virtual = as_virtual(kind, values)
        return objective(tuned.subject, after_virtual(own, kind, TOKENS), tuned.wanted, virtual)

    values = at.clone().requires_grad_()
    result = loss(values)
    with tuned.subject.weights.values_of(own):
        (gradient,) = torch.autograd.grad(result, [values])
    said, target = Plain.of(tuned.loras["tuned"]), Plain.of(tuned.model, tuned.loras["lora"])
    _, expected = slope(plainly(said, target, tuned.subject, own.prefix, kind), at)
    assert (gradient - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_fine_tune_as_the_target(tuned: Case) -> None:
    queries = encode([Query(text, answer) for text, answer in ASKED], tuned.subject.tokenizer)
    wanted = examples(tuned.subject, tuned.subject.settings["tuned"], queries, batch_size=64)
    case = tuned._replace(wanted=wanted)
    at, bos = case.start("base", "soft_prompt", TOKENS), case.subject.settings["base"].prefix
    said, target = Plain.of(case.model), Plain.of(case.loras["tuned"])
    plain = plainly(said, target, case.subject, bos, "soft_prompt")
    value, gradient = slope(case.loss("base", "soft_prompt"), at)
    expected_value, expected = slope(plain, at)
    assert value == pytest.approx(expected_value, rel=1e-4)
    assert (gradient - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["base", "lora", "tuned"])
def test_slopes_do_not_depend_on_who_spoke_last(tuned: Case, name: str) -> None:
    """A LoRA on the embedding that acted before must not be in base's slopes, nor base in its."""
    subject = tuned.subject
    folder = tuned.loras["tuned"] if name == "tuned" else tuned.model
    said = Plain.of(folder, tuned.loras["lora"] if name == "lora" else None)
    target = Plain.of(tuned.model, tuned.loras["lora"])
    queries = encode([Query(text, answer) for text, answer in ASKED], subject.tokenizer)
    wanted = examples(subject, subject.settings["lora"], queries, batch_size=64)
    plain = plainly(said, target, subject, (), "soft_prompt")
    for last in ("lora", "base"):
        examples(subject, subject.settings[last], queries, batch_size=64)
        with subject.weights.of(subject.settings[last]):
            pass
        scorer = Scorer(subject, subject.settings[name], wanted, 64)
        check_slopes(scorer, plain, said.embed)


def test_a_start_is_made_of_the_setting_s_own_words(tuned: Case) -> None:
    embeds = {
        "base": Plain.of(tuned.model).embed,
        "lora": Plain.of(tuned.model, tuned.loras["lora"]).embed,
        "tuned": Plain.of(tuned.loras["tuned"]).embed,
    }
    every = torch.arange(tuned.subject.n_words)
    for name in ("lora", "base", "tuned", "lora"):
        start = tuned.start(name, "soft_prompt", 5)
        near = torch.cdist(start, embeds[name](every)).min(1).values
        assert near.max() < 1e-3
