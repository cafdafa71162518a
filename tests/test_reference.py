"""The slow reference is right by its own identities, before it judges the library.

Every condition of every kind on six architectures; what must sum, sums, and what must vanish,
vanishes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from reference import Condition, Study, geometry, measures, observe, readout, rows
from reference import families as families_room
from reference.numbers import norm
from reference.running import States
from safetensors.torch import load_file

ARCHITECTURES = ("gpt2", "neox", "llama", "qwen3", "gemma2", "gemma3", "phi3")
QUERIES = [[20, 21, 22], [23], [24, 25, 26, 27, 28, 29, 30, 31, 32, 33]]
PROMPT = (40, 41, 42, 43, 44, 45)
WITHOUT_BOS = ("gpt2", "neox", "qwen3", "phi3")

Observed = dict[str, list[States]]


def conditions(architecture: str, model: str, folder: Path) -> dict[str, Condition]:
    bos = () if architecture in WITHOUT_BOS else (1,)
    every = tiny_models.all_targets(architecture)
    modules = tiny_models.MODULES[architecture]
    lora = tiny_models.save_adapter(model, folder / "lora", every)
    writing = [*modules["o"], *modules["mlp"]]
    vector = load_file(tiny_models.save_steering(model, folder / "v.safetensors"))["vector"]
    return {
        "base": Condition(bos),
        "prompt": Condition(bos + PROMPT),
        "lora": Condition(bos, adapter=lora),
        "both": Condition(bos + PROMPT[:3], adapter=lora, scale=0.5),
        "writing": Condition(
            bos, adapter=tiny_models.save_adapter(model, folder / "writing", writing)
        ),
        "soft": Condition(bos, soft=tiny_models.save_soft_prompt(model, folder / "soft")),
        "keys": Condition(bos, keys=tiny_models.save_prefix(model, folder / "keys")),
        "long": Condition(bos, keys=tiny_models.save_prefix(model, folder / "long", tokens=9)),
        "shifted": Condition(bos, shift=len(PROMPT)),
        "steered": Condition(bos, steering=(tuple(vector.tolist()), 1)),
        "bias": Condition(bos, bias=((7, 2.0, (-1,)),)),
    }


@pytest.fixture(scope="module", params=ARCHITECTURES)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_models.save_model(request.param, folder / "model")
    settings = conditions(request.param, model, folder)
    observed = observe(model, settings, QUERIES)
    pairs = [("prompt", "lora"), *((name, "base") for name in settings if name != "base")]
    return Study(settings, observed, pairs, [7, None, 9], 4, ("prompt", "lora"), {})


def test_change_terms_sum_to_the_change(study: Study) -> None:
    """`run` has already checked pattern @ values against z, heads against attn_out, the lens and
    the terms against the logits."""
    for name in study.observed:
        for a, base in study.together(name, "base"):
            total = sum(measures.change_terms(a, base).values())
            np.testing.assert_allclose(total, a.z - base.z, atol=1e-5 * np.abs(base.z).max())
            parts, whole = measures.change_shares(a, base)
            share = sum(parts.values()) / whole
            np.testing.assert_allclose(share[~np.isnan(share)], 1, atol=1e-3)


def test_a_prefix_rewires_nothing(study: Study) -> None:
    for name in ("prompt", "soft", "keys", "long", "shifted", "steered", "bias", "writing"):
        for a, base in study.together(name, "base"):
            assert np.abs(measures.petrov_residual(a, base)).max() < 1e-7, name
    assert (
        max(measures.petrov_residual(a, b).max() for a, b in study.together("lora", "base")) > 0.01
    )


def test_a_bias_moves_no_state_and_every_other_condition_moves_some(study: Study) -> None:
    for name in study.observed:
        moves = max(norm(a.z - b.z).max() for a, b in study.together(name, "base"))
        if name in ("base", "bias"):
            assert moves == 0
        elif name != "shifted":
            assert moves > 0.01, name


def test_virtual_tokens_take_mass(study: Study) -> None:
    for name, n in (("soft", 3), ("keys", 3), ("long", 9)):
        for a, base in study.together(name, "base"):
            assert a.pattern.shape[-1] == base.pattern.shape[-1] + n
            np.testing.assert_allclose(a.pattern.sum(-1), 1, atol=1e-5)
        assert study.observed[name][0].pattern[..., :n].max() > 0.01


def test_the_lens_ends_at_the_output(study: Study) -> None:
    for states in study.observed.values():
        for s in states:
            assert readout.lens_kl(s)[-1] < 1e-6
            assert 0 <= readout.decision_depth(s) < len(s.said)


def test_influence_sums_to_the_change_of_the_output(study: Study) -> None:
    table = rows(study)
    for a, b in study.pairs:
        terms = {key: value for key, value in table.items() if key[:3] == ("influence", a, b)}
        output = next(value.value for key, value in terms.items() if key[3] == "output")
        total = sum(value.value for key, value in terms.items() if key[3] != "output")
        scale = next(iter(terms.values())).scale
        assert total == pytest.approx(output, abs=1e-4 * scale), (a, b)


def test_without_the_sink_numbers_stay_in_their_ranges(study: Study) -> None:
    for states in study.observed.values():
        for s in states:
            mass = measures.prefix_mass_no_sink(s)
            known = ~np.isnan(mass)
            assert (mass[known] >= 0).all()
            assert (mass[known] <= 1 + 1e-12).all()
    base = study.observed["base"][0]
    known = ~np.isnan(measures.prefix_mass_no_sink(base))
    assert known[..., 1:].all()
    assert known[..., 0].any() == study.has_bos
    assert (measures.prefix_mass_no_sink(base)[known] == 0).all()


# --- geometry and families -----------------------------------------------------------------------


def cloud(seed: int, n: int = 24, d: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_a_cloud_is_like_itself_turned_and_scaled() -> None:
    x = cloud(0)
    turn = np.linalg.qr(cloud(1, 5))[0]
    for y in (x, 3 * x @ turn):
        assert geometry.linear_cka(x, y) == pytest.approx(1, abs=1e-12)
        assert geometry.procrustes_distance(x, y) == pytest.approx(0, abs=1e-6)
        assert geometry.mutual_knn(x, y, 5) == 1


def test_unrelated_clouds_are_at_chance() -> None:
    pairs = [(cloud(2 * i), cloud(2 * i + 1)) for i in range(40)]
    assert abs(np.mean([geometry.linear_cka(x, y) for x, y in pairs])) < 0.05
    assert np.mean([geometry.mutual_knn(x, y, 5) for x, y in pairs]) == pytest.approx(
        5 / 23, abs=0.03
    )


def test_dimension_of_a_flat_cloud() -> None:
    flat = cloud(3, 600, 2) @ cloud(4, 2, 9)
    logs = []
    for i, point in enumerate(flat):
        near, far = np.sort(norm(np.delete(flat, i, 0) - point))[:2]
        logs.append(np.log(far / near))
    assert geometry.gride(flat, 1, 2) == pytest.approx(len(flat) / np.sum(logs), rel=1e-9)
    for near in (1, 2, 4, 8):
        assert geometry.gride(flat, near, 2 * near) == pytest.approx(2, abs=0.3)


def test_families_apart_and_families_of_one_kind() -> None:
    def squared(points: np.ndarray) -> np.ndarray:
        return ((points[:, None] - points[None]) ** 2).sum(-1)

    groups = [[0, 1, 2], [3, 4, 5]]
    square = squared(np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]))
    assert families_room.divergence_index(square, groups) == pytest.approx(10 / (4 / 3))
    assert families_room.permanova_f(square, groups) == pytest.approx(150 / 1)
    assert families_room.regroupings((3, 3))[0] == groups
    assert len(families_room.regroupings((3, 3))) == 10
    assert len(families_room.regroupings((3, 2))) == 10
