"""Every control comes out as it must, on the bundled model: instruction against LoRA.

A control says nothing unless it is known to come out: neutral text and a random LoRA of the same
size leave the output, a logit bias leaves every state, positions and order alone do little.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from peft.tuners.lora import LoraLayer

from interp import logit_bias, organism, study
from interp.conditions import Prompt, Randomised, ShuffledLabels, resolve
from interp.config import Experiment, bundled, bundled_families
from interp.geometry import procrustes_distance
from interp.runs.view import Run, load_run
from interp.study import Prepared, run_study

PROMPT, LORA = "prompt", "lora"
HEADLINE = (PROMPT, LORA)
QUERIES, PERMUTATIONS = 24, 199


class Studied(NamedTuple):
    """The run, and the model that it was made with."""

    run: Run
    prepared: Prepared

    def rows(self, measure: str, a: str, b: str = "base", position: str = "last") -> pd.DataFrame:
        """The rows of a measure of a pair (or of one condition: `b` empty), in their order."""
        table = self.run.table
        kept = (table["measure"] == measure) & (table["condition"] == a)
        kept &= (table["reference"] == b) if b else table["reference"].isna()
        found = table[kept & (table["position"] == position)]
        assert len(found) > 0, (measure, a, b)
        return found

    def value(self, measure: str, a: str, b: str = "base", position: str = "last") -> float:
        """The one value of an output measure."""
        (value,) = self.rows(measure, a, b, position)["value"]
        return float(value)

    def by_layer(self, measure: str, a: str, b: str = "base", site: str = "resid_post") -> Any:
        """`[layer]` of the values at a site, over its heads."""
        found = self.rows(measure, a, b)
        found = found[found["site"] == site]
        assert len(found) > 0, (measure, a, b, site)
        return found.groupby("layer")["value"].mean().to_numpy()


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """One run with the default controls."""
    opened: list[Prepared] = []

    def prepare(*arguments: Any) -> Prepared:
        opened.append(keep(*arguments))
        return opened[0]

    keep = study.prepare
    fields = bundled(tmp_path_factory.mktemp("bundled") / "run")
    experiment = Experiment(
        **fields,
        limit=QUERIES,
        permutations=PERMUTATIONS,
        bootstrap=20,
        max_positions=0,
        device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "prepare", prepare)
        run = load_run(run_study(experiment))
    return Studied(run, opened[0])


# The pair itself: what the controls are held against ---------------------------------------------


def test_prompt_and_lora_say_the_same_and_base_does_not(studied: Studied) -> None:
    assert studied.value("js_divergence", *HEADLINE) < 0.01
    for name in HEADLINE:
        assert studied.value("js_divergence", name) > 0.3
        assert studied.value("accuracy", name, "") == 1


# Logit bias -------------------------------------------------------------------------------------


def test_a_logit_bias_moves_no_state_at_all(studied: Studied) -> None:
    for position in ("last", "mean"):
        for measure in ("relative_l2", "content_js", "petrov_residual"):
            found = studied.rows(measure, "logit_bias", position=position)
            assert (found["value"] == 0).all(), measure
    assert (studied.rows("lens_js", "logit_bias")["value"] == 0).all()
    for measure in ("change_pattern", "change_value", "change_prefix", "change_input"):
        assert studied.rows(measure, "logit_bias")["value"].isna().all()


def test_the_geometry_of_a_logit_bias_is_base_s(studied: Studied) -> None:
    states = studied.run.arrays["states_resid_post"]
    own, base = (states.sel(condition=name).values for name in ("logit_bias", "base"))
    np.testing.assert_array_equal(own, base)
    for x, y in zip(own, base, strict=True):
        assert procrustes_distance(x, y) == pytest.approx(0, abs=1e-6)
    for measure in ("procrustes_distance", "linear_cka", "mutual_knn"):
        of_bias = studied.rows(measure, "logit_bias", LORA)["value"].to_numpy()
        of_base = studied.rows(measure, LORA)["value"].to_numpy()
        np.testing.assert_allclose(of_bias, of_base, rtol=1e-6)


def test_a_logit_bias_moves_the_output_and_stays_as_far_from_the_lora_as_base(
    studied: Studied,
) -> None:
    assert studied.value("js_divergence", "logit_bias") > 1e-3
    assert studied.value("kl_divergence", "logit_bias") > 1e-3
    for site in ("resid_post", "attn_out", "mlp_out"):
        of_bias = studied.by_layer("relative_l2", "logit_bias", LORA, site)
        np.testing.assert_allclose(of_bias, studied.by_layer("relative_l2", LORA, site=site))


def fitted(studied: Studied, steps: int, queries: slice) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The LoRA's mean next-token distribution, base's under the bias fitted in `steps`, and the
    chosen tokens."""
    subject = studied.prepared.subject
    asked = studied.prepared.groups["matched"][queries]
    base, lora = subject.settings["base"], subject.settings[LORA]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logit_bias, "STEPS", steps)
        bias = logit_bias.fit_bias(subject, asked, base, lora, batch_size=32)
    settings = lora, replace(base, bias=bias)
    wanted, had = (
        logit_bias._last_logits(subject, setting, asked, 32).softmax(-1).mean(0)
        for setting in settings
    )
    return wanted, had, [token for token, _, _ in bias]


@pytest.mark.parametrize("queries", [slice(None), slice(0, None, 2)], ids=["both ways", "one way"])
def test_the_fitted_bias_gives_base_the_lora_s_mean_distribution(
    studied: Studied, queries: slice
) -> None:
    wanted, had, tokens = fitted(studied, logit_bias.STEPS, queries)
    _, before, _ = fitted(studied, 0, queries)
    assert len(tokens) == logit_bias.TOKENS
    assert float(wanted[tokens].sum()) > 0.99
    assert float((wanted - before)[tokens].abs().max()) > 5e-3
    assert float((wanted - had)[tokens].abs().max()) <= 1e-3
    assert float(had.sum()) == pytest.approx(1)


def test_every_step_of_the_fit_comes_closer(studied: Studied) -> None:
    divergences = []
    for steps in (0, 1, 2, 4, 16, 64):
        wanted, had, _ = fitted(studied, steps, slice(None))
        divergences.append(float((wanted * (wanted / had).log()).sum()))
    assert all(later < earlier for earlier, later in pairwise(divergences))
    assert divergences[-1] < 0.1 * divergences[0]


# Neutral text -----------------------------------------------------------------------------------


def test_neutral_text_has_the_prompt_s_length(studied: Studied) -> None:
    settings = studied.prepared.subject.settings
    prompt, neutral = settings[PROMPT].prefix, settings["neutral"].prefix
    assert len(neutral) == len(prompt) > len(settings["base"].prefix)
    assert set(neutral[1:]).isdisjoint(prompt[1:])
    described = studied.run.manifest["conditions"]
    assert described["neutral"]["n_prefix"] == described[PROMPT]["n_prefix"]


@pytest.mark.parametrize("position", ["last", "mean"])
def test_neutral_text_leaves_the_output_near_base_s(studied: Studied, position: str) -> None:
    neutral, prompt = (
        studied.value("js_divergence", name, position=position) for name in ("neutral", PROMPT)
    )
    assert 0 < neutral < prompt / 10


def test_neutral_text_is_farther_from_the_lora_than_the_prompt_in_every_layer(
    studied: Studied,
) -> None:
    near = studied.by_layer("relative_l2", *HEADLINE)
    far = studied.by_layer("relative_l2", "neutral", LORA)
    assert (far > near).all()
    found = studied.rows("relative_l2", *HEADLINE)
    tested = found[found["site"] == "resid_post"]["p_adjusted"]
    assert len(tested) == len(near)
    assert ((tested <= 0.05) & (tested >= 1 / (1 + PERMUTATIONS))).all()
    aligned = studied.by_layer("delta_alignment", "neutral", LORA)
    assert (aligned < studied.by_layer("delta_alignment", *HEADLINE)).all()


@pytest.mark.parametrize("name", [PROMPT, "neutral", "shuffled_tokens", "shifted"])
@pytest.mark.parametrize("position", ["last", "mean"])
def test_what_leaves_the_weights_alone_does_not_rewire(
    studied: Studied, name: str, position: str
) -> None:
    residual = studied.rows("petrov_residual", name, position=position)["value"]
    assert (residual <= 1e-6).all()
    shares = studied.rows("rewiring_share", name, position=position)["value"].dropna()
    assert (shares == 0).all()


# A random LoRA ----------------------------------------------------------------------------------


def test_the_random_lora_s_updates_are_as_large_and_elsewhere(studied: Studied) -> None:
    weights = studied.prepared.subject.weights
    real = weights.adapters[str(organism.ADAPTERS / "lora_0")]
    (random,) = (name for key, name in weights.adapters.items() if isinstance(key, Randomised))
    layers = [module for module in weights.peft.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 7 * studied.prepared.subject.n_layers
    for layer in layers:
        wanted, found = (
            layer.scaling[name]
            * layer.lora_B[name].weight.double()
            @ layer.lora_A[name].weight.double()
            for name in (real, random)
        )
        assert float(found.norm()) == pytest.approx(float(wanted.norm()), rel=1e-5)
        cosine = float((found * wanted).sum() / found.norm() / wanted.norm())
        assert abs(cosine) < 0.2


def test_a_random_lora_leaves_the_output_near_base_s(studied: Studied) -> None:
    random, real = (studied.value("js_divergence", name) for name in ("random_lora", LORA))
    assert 0 < random < real / 10
    assert studied.value("accuracy", "random_lora", "") == studied.value("accuracy", "base", "")


def test_a_random_lora_moves_states_less_and_in_no_common_direction(studied: Studied) -> None:
    for site in ("resid_post", "attn_out", "mlp_out"):
        random, real = (
            studied.by_layer("relative_l2", n, site=site) for n in ("random_lora", LORA)
        )
        assert (random < real / 2).all(), site
    pushed = studied.by_layer("delta_alignment", PROMPT, "random_lora")
    together = studied.by_layer("delta_alignment", *HEADLINE)
    assert (np.abs(pushed) < together / 3).all()


def test_a_random_lora_rewires_too(studied: Studied) -> None:
    """It sits on queries and keys: a residual alone is no sign of a mechanism."""
    residual = studied.by_layer("petrov_residual", "random_lora", site="pattern")
    assert (residual > 1e-5).all()
    assert (residual < studied.by_layer("petrov_residual", LORA, site="pattern")).all()


# Position, order, labels, training --------------------------------------------------------------


def test_shifted_positions_are_those_of_the_prompt_without_it(studied: Studied) -> None:
    settings = studied.prepared.subject.settings
    shifted, base = settings["shifted"], settings["base"]
    assert shifted.prefix == base.prefix
    assert len(shifted.prefix) + shifted.shift == len(settings[PROMPT].prefix)
    assert studied.value("js_divergence", "shifted") < studied.value("js_divergence", PROMPT) / 10
    assert (studied.by_layer("content_js", "shifted", site="pattern")[:1] <= 1e-6).all()


def test_shuffled_tokens_are_the_prompt_s_in_another_order(studied: Studied) -> None:
    settings = studied.prepared.subject.settings
    shuffled, prompt = settings["shuffled_tokens"].prefix, settings[PROMPT].prefix
    assert shuffled != prompt
    assert shuffled[0] == prompt[0] == settings["base"].prefix[0]  # BOS stays where it is
    assert Counter(shuffled) == Counter(prompt)


def test_an_untrained_copy_knows_nothing(studied: Studied) -> None:
    assert (studied.rows("answer_information", "untrained", "")["value"].abs() < 0.1).all()
    known = studied.rows("answer_information", LORA, "")["value"]
    assert float(known.iloc[-1]) > 7  # nearly ln d_vocab
    assert studied.value("accuracy", "untrained", "") <= 1 / QUERIES
    assert studied.value("js_divergence", "untrained") > 0.6


def test_shuffled_labels_come_with_a_few_shot_prompt_only(studied: Studied, tmp_path: Path) -> None:
    assert "shuffled_labels" not in studied.run.manifest["conditions"]
    fields = bundled_families(tmp_path)
    few = {"few_shot_0": fields["conditions"]["few_shot_0"]}
    built = Experiment(**{**fields, "conditions": few}).build()
    control, prompt = built["shuffled_labels"], built["few_shot_0"]
    assert isinstance(control, ShuffledLabels)
    assert isinstance(prompt, Prompt)
    tokenizer = studied.prepared.subject.tokenizer
    own, other = resolve(prompt, tokenizer).prefix, resolve(control, tokenizer).prefix
    assert own != other
    assert Counter(own) == Counter(other)
    before, after = dict(prompt.pairs), dict(control.prompt.pairs)
    assert before.keys() == after.keys()
    assert all(after[query] != answer for query, answer in before.items())
