"""The logit lens and the equation of influence, against plain Hugging Face with merged weights.

Nine architectures and every kind of condition. The reference runs one query at a time, masks one
head after another in front of the output projection, and dots what is written with an unembedding
row that is scaled by hand, in numpy and float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.capture import capture, keep
from interp.conditions import (
    Base,
    Condition,
    FineTuned,
    LogitBias,
    Lora,
    Prefix,
    Prompt,
    Setting,
    SoftPrompt,
    Steering,
)
from interp.influence import Frozen, Influence, closing_error, influence
from interp.measures.output import Distribution
from interp.measures.readout import answer_information, decision_depth, lens_kl
from interp.queries import Query, encode
from interp.readout import LastStates, lens, lens_error, sites
from interp.subject import Batch, Subject, load

ARCHITECTURES = tuple(tiny_models.CONFIGS)
TEXTS = ("the", "up is the opposite of", "lily said: yes", "a river is wide; a hill is high")
PROMPT = Prompt(text="hot is the opposite of cold.")
CLOSES = 1e-5
"""Bound of the closing error in float32. Single logits stay below 5e-7; a lead has smaller terms
than the two logits whose rounding it carries."""
STEERED = 1
"""The layer that is steered."""


# --- materials -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture -> a folder with a model, other weights, and an adapter of every kind."""

    @functools.cache
    def save(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        model = tiny_models.save_model(architecture, folder / "model")
        tiny_models.save_model(architecture, folder / "tuned", seed=5)
        tiny_models.save_adapter(model, folder / "lora", tiny_models.all_targets(architecture))
        tiny_models.save_soft_prompt(model, folder / "soft")
        tiny_models.save_prefix(model, folder / "prefix")
        tiny_models.save_steering(model, folder / "vector.safetensors")
        return folder

    return save


def conditions_of(folder: Path) -> dict[str, Condition]:
    lora, tuned = str(folder / "lora"), FineTuned(str(folder / "tuned"))
    steering = Steering(str(folder / "vector.safetensors"), STEERED, scale=1.5)
    bias = LogitBias({"h": 3.0, "t": -2.0}, positions=(-1,))
    return {
        "base": Base(),
        "prompt": PROMPT,
        "lora": Lora(lora),
        "tuned": tuned,
        "both": PROMPT + Lora(lora, scale=0.5),
        "bias": bias,
        "steered": steering,
        "soft": SoftPrompt(str(folder / "soft")),
        "prefix": Prefix(str(folder / "prefix")),
        "all": PROMPT + tuned + Lora(lora, scale=0.5) + bias + steering,
    }


CONDITIONS = tuple(conditions_of(Path()))


@pytest.fixture(scope="module")
def opened(saved: Callable[[str], Path]) -> Callable[[str], Subject]:
    @functools.cache
    def open_subject(architecture: str) -> Subject:
        folder = saved(architecture)
        return load(str(folder / "model"), conditions_of(folder), [TEXTS[1]], device="cpu")

    return open_subject


def batch_of(subject: Subject) -> Batch:
    return Batch.of(encode(map(Query, TEXTS), subject.tokenizer))


SEEN: dict[Any, LastStates] = {}


def last_states(subject: Subject, condition: str) -> LastStates:
    """Run once; a condition is told apart by model folder, dtype and name."""
    key = (subject.name, subject.dtype, condition)
    if key not in SEEN:
        SEEN[key] = run(subject, condition)
    return SEEN[key]


def run(subject: Subject, condition: str) -> LastStates:
    setting, batch = subject.settings[condition], batch_of(subject)
    read = dict.fromkeys(sites(subject), keep)
    got = capture(subject, setting, batch, subject.prefill(setting), read)
    return LastStates.of(got.values, got.logits, batch.last)


def tokens(last: LastStates) -> tuple[Tensor, Tensor]:
    """The first and the second choice."""
    best = last.logits.topk(2).indices
    return best[:, 0], best[:, 1]


def equation(
    subject: Subject, condition: str, target: Tensor, against: Tensor | None = None
) -> Influence:
    setting, last = subject.settings[condition], last_states(subject, condition)
    return influence(subject, setting, batch_of(subject).last, last, target, against)


# --- the equation closes -------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_terms_sum_to_the_models_own_logit(
    opened: Callable[[str], Subject], architecture: str, condition: str
) -> None:
    subject = opened(architecture)
    last = last_states(subject, condition)
    target, against = tokens(last)
    for other in (None, against):
        terms = equation(subject, condition, target, other)
        own = last.logits.double()
        expected = own.gather(1, target[:, None])[:, 0]
        if other is not None:
            expected = expected - own.gather(1, other[:, None])[:, 0]
        assert torch.equal(terms.total, expected)
        assert closing_error(terms) <= CLOSES
        assert terms.z.shape == (len(TEXTS), subject.n_layers, subject.n_heads)
        assert (terms.z != 0).all()
        assert (terms.softcap != 0).all() == (architecture == "gemma2")
        assert (terms.steering != 0).all() == (condition in ("steered", "all"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_change_between_conditions_closes_too(
    opened: Callable[[str], Subject], architecture: str
) -> None:
    subject = opened(architecture)
    target, against = tokens(last_states(subject, "base"))
    base = equation(subject, "base", target, against)
    for condition in CONDITIONS:
        own = equation(subject, condition, target, against)
        change = own - base
        assert closing_error(change) <= 10 * CLOSES or condition == "base"
        assert torch.equal(change.total, own.total - base.total)
        if condition in ("base", "bias"):  # no state moves
            moved = [name for name, term in change.terms().items() if term.any()]
            assert set(moved) <= {"logit_bias", "softcap"}


def test_a_lead_is_the_difference_of_two_logits(opened: Callable[[str], Subject]) -> None:
    for architecture in ARCHITECTURES:
        subject = opened(architecture)
        target, against = tokens(last_states(subject, "all"))
        lead = equation(subject, "all", target, against)
        two = equation(subject, "all", target) - equation(subject, "all", against)
        for name, term in lead.terms().items():
            torch.testing.assert_close(term, two.terms()[name], rtol=1e-6, atol=1e-6)
        none = equation(subject, "all", target, target)
        assert not any(term.any() for term in none.terms().values())


def test_the_closing_error_sees_a_wrong_or_undefined_term(
    opened: Callable[[str], Subject],
) -> None:
    subject = opened("llama")
    target, _ = tokens(last_states(subject, "lora"))
    terms = equation(subject, "lora", target)
    wrong = terms.mlp_out.clone()
    wrong[2, 1] += 0.01 * max(t.abs().max() for t in terms.terms().values() if t.numel())
    assert closing_error(replace(terms, mlp_out=wrong)) > 1e-3
    assert math.isnan(closing_error(replace(terms, embed=terms.embed * math.nan)))


def test_a_query_without_a_target_is_refused(opened: Callable[[str], Subject]) -> None:
    subject = opened("llama")
    target, _ = tokens(last_states(subject, "base"))
    for missing in (None, target):
        pair = (target - target - 1, None) if missing is None else (target, -target - 1)
        with pytest.raises(ValueError, match="every query needs a target"):
            equation(subject, "base", *pair)


# --- every term, from plain Hugging Face ---------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """A plain model with its adapters merged, in float64, and the names of its parts."""

    model: Any

    @classmethod
    def of(cls, folder: Path, setting: Setting) -> Plain:
        source = setting.model or str(folder / "model")
        model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
        for adapter, scale in setting.adapters:
            config = PeftConfig.from_pretrained(adapter)
            config.lora_alpha *= scale
            model = PeftModel.from_pretrained(model, adapter, config=config).merge_and_unload()
        return cls(model.double().eval())

    @property
    def blocks(self) -> list[Any]:
        return list(_part(self.model.base_model, "h", "layers"))

    @property
    def final(self) -> Any:
        return _part(self.model.base_model, "ln_f", "final_layer_norm", "norm")

    @property
    def head(self) -> Any:
        return self.model.get_output_embeddings()

    @property
    def cap(self) -> float | None:
        return getattr(self.model.config, "final_logit_softcapping", None)

    def projection(self, layer: int) -> Any:
        attention = _part(self.blocks[layer], "self_attn", "attn", "attention")
        return _part(attention, "o_proj", "c_proj", "dense")

    def post(self, layer: int, name: str) -> Any:
        """Gemma's norm of what is written; None elsewhere."""
        block = self.blocks[layer]
        known = hasattr(block, "post_feedforward_layernorm")
        return getattr(block, name) if known else None

    @contextmanager
    def watched(self, added: dict[int, Tensor], length: int) -> Iterator[dict[Any, Tensor]]:
        """What the last token's row is: in front of every output projection (`z`), after every
        MLP, before and after every block. `added` goes to the last `length` rows of its layer."""
        seen: dict[Any, Tensor] = {}

        def steer(layer: int) -> Callable[..., Any]:
            def hook(module: Any, args: Any, output: Any) -> Any:
                value = output[0] if isinstance(output, tuple) else output
                if layer in added:
                    value[:, -length:] += added[layer]
                seen["post", layer] = value[0, -1].clone()

            return hook

        def reads(*key: Any) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Any = None) -> None:
                seen[key] = (args[0] if output is None else output)[0, -1].clone()

            return hook

        handles = []
        for layer, block in enumerate(self.blocks):
            mlp = self.post(layer, "post_feedforward_layernorm") or block.mlp
            handles += [
                self.projection(layer).register_forward_pre_hook(reads("z", layer)),
                mlp.register_forward_hook(reads("mlp", layer)),
                block.register_forward_hook(steer(layer)),
            ]
        handles.append(
            self.blocks[0].register_forward_pre_hook(
                lambda _, args, kwargs: reads("embed")(_, args or (kwargs["hidden_states"],)),
                with_kwargs=True,
            )
        )
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def run(self, setting: Setting, query: list[int], added: dict[int, Tensor]) -> dict[Any, Any]:
        with torch.no_grad(), self.watched(added, len(query)) as seen:
            ids = torch.tensor([[*setting.prefix, *query]])
            seen["hidden"] = self.model(ids, output_hidden_states=True, use_cache=False)
        return seen


@pytest.fixture(scope="module")
def plain_of(
    opened: Callable[[str], Subject], saved: Callable[[str], Path]
) -> Callable[[str, str], Plain]:
    """Architecture and condition -> the plain model."""

    @functools.cache
    def open_plain(architecture: str, condition: str) -> Plain:
        setting = opened(architecture).settings[condition]
        return Plain.of(saved(architecture), setting)

    return open_plain


def steering_of(folder: Path, setting: Setting) -> dict[int, Tensor]:
    """Layer -> what is added there."""
    if not setting.steering:
        return {}
    return {STEERED: 1.5 * load_file(folder / "vector.safetensors")["vector"].double()}


def _part(module: Any, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def norm_of(norm: Any, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and the bias of a norm whose scale is that of `state`, from its definition."""
    d_model = len(state)
    gain, centre, bias = array(norm.weight), np.eye(d_model), np.zeros(d_model)
    if isinstance(norm, torch.nn.LayerNorm):
        centre -= 1 / d_model
        bias = array(norm.bias)
    if "Gemma" in type(norm).__name__:
        gain = 1 + gain
    epsilon = next(getattr(norm, n) for n in ("variance_epsilon", "eps") if hasattr(norm, n))
    scale = 1 / np.sqrt(np.square(centre @ state).mean() + epsilon)
    return scale * gain[:, None] * centre, bias


def expected_terms(
    plain: Plain, setting: Setting, query: list[int], target: int, added: dict[int, Tensor]
) -> dict[str, Any]:
    seen = plain.run(setting, query, added)
    n_layers, d_head = len(plain.blocks), tiny_models.D_HEAD
    matrix, bias = norm_of(plain.final, array(seen["post", n_layers - 1]))
    row = array(plain.head.weight[target])
    unembedding = row @ matrix
    z = np.zeros((n_layers, tiny_models.N_HEADS))
    attn_bias = np.zeros(n_layers)
    for layer in range(n_layers):
        project = plain.projection(layer)
        nothing = array(project(torch.zeros_like(seen["z", layer])))
        post, constant = np.eye(tiny_models.D_MODEL), 0.0
        if norm := plain.post(layer, "post_attention_layernorm"):
            post, constant = norm_of(norm, array(project(seen["z", layer])))
        attn_bias[layer] = unembedding @ (post @ nothing + constant)
        for head in range(tiny_models.N_HEADS):
            masked = torch.zeros_like(seen["z", layer])
            own = slice(head * d_head, (head + 1) * d_head)
            masked[own] = seen["z", layer][own]
            z[layer, head] = unembedding @ post @ (array(project(masked)) - nothing)
    linear = float(row @ (matrix @ array(seen["post", n_layers - 1]) + bias))
    capped = plain.cap * math.tanh(linear / plain.cap) if plain.cap else linear
    return {
        "z": z,
        "attn_bias": attn_bias,
        "mlp_out": np.array([unembedding @ array(seen["mlp", i]) for i in range(n_layers)]),
        "embed": unembedding @ array(seen["embed",]),
        "norm": row @ bias,
        "logit_bias": sum(value for token, value, _ in setting.bias if token == target),
        "softcap": capped - linear,
        "steering": sum(unembedding @ array(vector) for vector in added.values()),
    }


@pytest.mark.parametrize("condition", ["base", "lora", "both", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_term_is_that_of_plain_hugging_face(
    opened: Callable[[str], Subject],
    plain_of: Callable[[str, str], Plain],
    saved: Callable[[str], Path],
    architecture: str,
    condition: str,
) -> None:
    subject, plain = opened(architecture), plain_of(architecture, condition)
    setting = subject.settings[condition]
    added = steering_of(saved(architecture), setting)
    bias_token = subject.settings["bias"].bias[0][0]
    target = last_states(subject, condition).logits.argmax(-1)
    target[0] = bias_token
    measured = equation(subject, condition, target).terms()
    for row, query in enumerate(encode(map(Query, TEXTS), subject.tokenizer)):
        expected = expected_terms(plain, setting, list(query.ids), int(target[row]), added)
        parts = {name for name, term in measured.items() if term.numel()}  # no block has the others
        assert expected.keys() == parts
        scale = max(np.abs(term).max() for term in expected.values())
        for name, term in expected.items():
            np.testing.assert_allclose(
                measured[name][row].numpy() / scale, term / scale, atol=5e-6, err_msg=name
            )


# --- parts that only some conditions or models have ----------------------------------------------


@pytest.mark.parametrize("positions", [None, (-1,), (0,), (-1, 0), (-2, 1), (2, -1, -1)])
def test_a_logit_bias_is_what_the_model_adds_at_the_last_token(
    opened: Callable[[str], Subject], positions: tuple[int, ...] | None
) -> None:
    subject, batch = opened("gpt2"), batch_of(opened("gpt2"))
    setting = Setting(bias=((5, 3.0, positions), (7, -1.25, positions)))
    last = last_states(subject, "base")
    added = batch.biased(torch.zeros(*batch.ids.shape, last.logits.shape[-1]), setting)
    added = added[torch.arange(len(TEXTS)), batch.lengths - 1]
    state = last.resid_post[:, -1]
    difference = lens(subject, setting, state, batch.last) - lens(subject, setting, state)
    torch.testing.assert_close(difference, added, atol=1e-5, rtol=0)
    for target, against in ((5, 7), (7, 5), (6, 7)):
        pair = (torch.full((len(TEXTS),), token) for token in (target, against))
        term = influence(subject, setting, batch.last, last, *pair).logit_bias
        assert torch.equal(term, (added[:, target] - added[:, against]).double())


def test_a_lora_on_the_unembedding(
    saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = saved("llama")
    adapter = tmp_path_factory.mktemp("head") / "lora"
    tiny_models.save_adapter(str(folder / "model"), adapter, ["lm_head", "o_proj"])
    written = load_file(adapter / "adapter_model.safetensors")  # peft adds the base's unembedding
    own = {name: value for name, value in written.items() if "base_layer" not in name}
    save_file(own, adapter / "adapter_model.safetensors")
    conditions = {"base": Base(), "head": Lora(str(adapter))}
    subject = load(str(folder / "model"), conditions, [TEXTS[1]], device="cpu")
    target, against = tokens(last_states(subject, "head"))
    terms = equation(subject, "head", target, against)
    assert closing_error(terms) <= CLOSES
    base = equation(subject, "base", target, against)
    assert ((terms.embed - base.embed).abs() > 1e-3).any()
    setting, last = subject.settings["head"], last_states(subject, "head")
    assert lens_error(last.logits, lens(subject, setting, last.resid_post[:, -1])) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 3e-2), ("float16", 4e-3)])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_half_precision_closes_to_its_own_rounding(
    saved: Callable[[str], Path],
    opened: Callable[[str], Subject],
    architecture: str,
    dtype: str,
    bound: float,
) -> None:
    folder = saved(architecture)
    conditions = {name: conditions_of(folder)[name] for name in ("base", "all")}
    model = str(folder / "model")
    subject = load(model, conditions, [TEXTS[1]], device="cpu", dtype=dtype)
    target, _ = tokens(last_states(subject, "all"))
    for condition in conditions:
        terms = equation(subject, condition, target)
        assert terms.z.dtype == torch.float64
        assert 1e-6 < closing_error(terms) <= bound
        exact = equation(opened(architecture), condition, target)
        scale = exact.z.abs().max()
        assert ((terms.z - exact.z).abs().max() / scale) <= 5 * bound
        last = last_states(subject, condition)
        at = batch_of(subject).last
        own = lens(subject, subject.settings[condition], last.resid_post[:, -1], at)
        assert lens_error(last.logits, own) <= bound


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_left_behind(opened: Callable[[str], Subject], architecture: str) -> None:
    subject = opened(architecture)
    before = {name: value.clone() for name, value in subject.bridge.state_dict().items()}
    logits = run(subject, "base").logits
    target, _ = tokens(last_states(subject, "all"))
    terms = equation(subject, "all", target)
    assert not any(term.requires_grad for term in terms.terms().values())
    assert all(parameter.grad is None for parameter in subject.bridge.parameters())
    assert all(torch.equal(before[n], v) for n, v in subject.bridge.state_dict().items())
    assert torch.equal(run(subject, "base").logits, logits)


class Wrapped:
    """As a bridge holds a live module."""

    def __init__(self, module: Any) -> None:
        self.original_component = module


@pytest.mark.parametrize("kind", ["layer", "rms", "gemma"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_frozen_norm_is_the_norm_at_its_state(kind: str, size: float) -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    norms = {"layer": torch.nn.LayerNorm, "rms": LlamaRMSNorm, "gemma": Gemma2RMSNorm}
    norm = norms[kind](24)
    for parameter in norm.parameters():
        parameter.data.normal_()
    states, directions = size * torch.randn(5, 24) + size, torch.randn(5, 24).double()
    frozen = Frozen.at(Wrapped(norm), states)
    for row in range(5):
        matrix, bias = norm_of(norm, array(states[row]))
        np.testing.assert_allclose(frozen.bias, bias, atol=1e-6)
        pulled = (array(directions[row]) @ matrix) * size
        np.testing.assert_allclose(frozen.pull(directions)[row] * size, pulled, atol=1e-5)
    assert frozen.centred == (kind == "layer")


def test_a_norm_of_nothing_lets_nothing_through() -> None:
    frozen = Frozen.at(Wrapped(torch.nn.LayerNorm(8)), torch.zeros(2, 8))
    assert torch.equal(frozen.pull(torch.ones(2, 8).double()), torch.zeros(2, 8).double())


# --- the logit lens ------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layers_lens_is_the_output(
    opened: Callable[[str], Subject], architecture: str, condition: str
) -> None:
    subject = opened(architecture)
    setting, last = subject.settings[condition], last_states(subject, condition)
    at = batch_of(subject).last
    own = lens(subject, setting, last.resid_post[:, -1], at)
    torch.testing.assert_close(own, last.logits, rtol=1e-5, atol=1e-5)
    assert lens_error(last.logits, own) <= 1e-5
    assert (lens_kl(*map(Distribution.of, (last.logits, own))) <= 1e-10).all()
    earlier = lens(subject, setting, last.resid_post[:, 0], at)
    assert lens_error(last.logits, earlier) > 1e-2
    layers = lens(subject, setting, last.resid_post, at)
    assert layers.shape == (len(TEXTS), subject.n_layers, last.logits.shape[-1])
    torch.testing.assert_close(layers[:, -1], own)
    torch.testing.assert_close(layers[:, 0], earlier)


@pytest.mark.parametrize("condition", ["base", "both", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_earlier_lens_is_that_of_plain_hugging_face(
    opened: Callable[[str], Subject],
    plain_of: Callable[[str, str], Plain],
    saved: Callable[[str], Path],
    architecture: str,
    condition: str,
) -> None:
    subject, plain = opened(architecture), plain_of(architecture, condition)
    setting, last = subject.settings[condition], last_states(subject, condition)
    added = steering_of(saved(architecture), setting)
    read = lens(subject, setting, last.resid_post, batch_of(subject).last)
    for row, query in enumerate(encode(map(Query, TEXTS), subject.tokenizer)):
        hidden = plain.run(setting, list(query.ids), added)["hidden"].hidden_states
        for layer in range(subject.n_layers - 1):
            with torch.no_grad():
                expected = plain.head(plain.final(hidden[layer + 1][0, -1].double()).double())
            if plain.cap:
                expected = plain.cap * torch.tanh(expected / plain.cap)
            for token, value, _ in setting.bias:
                expected[token] += value
            torch.testing.assert_close(read[row, layer].double(), expected, rtol=1e-5, atol=2e-5)


def test_without_its_tokens_the_lens_says_what_the_state_says(
    opened: Callable[[str], Subject],
) -> None:
    subject = opened("gemma2")
    base, bias = (last_states(subject, name) for name in ("base", "bias"))
    for layer in range(subject.n_layers):
        said = [
            lens(subject, subject.settings[name], last.resid_post[:, layer])
            for name, last in (("base", base), ("bias", bias))
        ]
        assert torch.equal(*said)


# --- measures of the lens ------------------------------------------------------------------------

logits = st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4)


@given(logits, logits)
def test_lens_kl_is_kl_of_the_output_from_the_lens(final: list[float], read: list[float]) -> None:
    p, q = (np.exp(x - np.logaddexp.reduce(x)) for x in (np.array(final), np.array(read)))
    output, lens_of = (Distribution.of(torch.tensor([x])) for x in (final, read))
    measured = float(lens_kl(output, lens_of))
    assert measured == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-9)
    assert measured >= 0
    assert float(lens_kl(output, output)) == 0


@given(logits, st.integers(0, 3), st.floats(-5, 5))
def test_answer_information(read: list[float], target: int, shift: float) -> None:
    p = np.exp(np.array(read) - np.logaddexp.reduce(np.array(read)))
    token, said = torch.tensor([target]), torch.tensor([read], dtype=torch.float64)
    measured = float(answer_information(Distribution.of(said), token))
    assert measured == pytest.approx(math.log(4 * p[target]), abs=1e-9)
    assert measured <= math.log(4) + 1e-12
    moved = Distribution.of(said + shift)
    assert float(answer_information(moved, token)) == pytest.approx(measured, abs=1e-9)


def test_answer_information_of_the_uniform_and_of_no_target() -> None:
    flat = torch.full((6, 10), 1.7)
    target = torch.tensor([0, 9, -1, 3, -1, 2])
    found = answer_information(Distribution.of(flat), target)
    assert torch.equal(found.isnan(), target < 0)
    assert found[target >= 0].abs().max() < 1e-12


choices = st.integers(1, 6).flatmap(
    lambda n: st.tuples(st.lists(st.integers(0, 2), min_size=n, max_size=n), st.integers(0, 2))
)


def depth(layers: list[int], final: int) -> int:
    return int(decision_depth(torch.tensor([layers]), torch.tensor([final])))


@given(choices)
def test_decision_depth_is_the_first_layer_that_never_changes_again(
    case: tuple[list[int], int],
) -> None:
    read, final = case
    layers = [*read[:-1], final]  # the last layer's lens is the output
    found = depth(layers, final)
    settled = [set(layers[start:]) == {final} for start in range(len(layers))]
    assert found == settled.index(True)
    assert found == depth(read, final)
    assert 0 <= found < len(layers)


@given(choices, st.data())
def test_what_comes_before_the_last_change_does_not_matter(
    case: tuple[list[int], int], data: st.DataObject
) -> None:
    layers, final = case
    found = depth(layers, final)
    free = max(0, found - 1)
    other = data.draw(st.lists(st.integers(0, 2), min_size=free, max_size=free))
    assert depth([*other, *layers[free:]], final) == found
    renamed = [(token + 1) % 3 for token in layers]
    assert depth(renamed, (final + 1) % 3) == found
    assert depth([*layers, final], final) == (found if layers[-1] == final else len(layers))


def test_decision_depth_takes_queries_apart() -> None:
    layers = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
    assert decision_depth(layers, torch.tensor([1, 1, 1, 1])).tolist() == [0, 1, 2, 2]
