"""Claims on the bundled model: scripts, their measures restated, the table, and resuming."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from interp.errors import ConfigError, RunError
from interp.experiments import Claims, claims
from interp.experiments.claim_models import CLAIM_MODELS, ClaimModel
from interp.experiments.claims import (
    ClaimOutcome,
    PaperClaim,
    claim_model,
    measure_claims,
    overall_verdict,
    read_outcome,
    read_scripts,
)

SCRIPTS = Path(__file__).resolve().parents[2] / "analyses" / "claims"
N = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Claims:
    out = tmp_path_factory.mktemp("claims")
    return Claims(
        only=(3, 5, 6), models=("organism",), scripts=SCRIPTS, out=out, docs=out / "claims.md",
        limit=N, resume=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(config: Claims) -> ClaimModel:
    return claim_model(config, "organism")


@pytest.fixture(scope="module", autouse=True)
def opened_once(model: ClaimModel) -> Iterator[None]:
    """The model of all tests that measure on the organism is one."""

    def known(config: Claims, name: str) -> ClaimModel:
        return model if name == "organism" else claim_model(config, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "claim_model", known)
        yield


@pytest.fixture(scope="module")
def page(config: Claims) -> str:
    return measure_claims(config).read_text(encoding="utf-8")


def test_every_script_has_its_claim_and_is_short() -> None:
    scripts = read_scripts(SCRIPTS)
    assert list(scripts) == [1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14]
    for number, script in scripts.items():
        assert (SCRIPTS / f"claim_{number:02}.py").read_text().count("\n") <= 120
        assert (script.measure is None) == bool(script.claim.missing)
        assert script.measure is None or math.isfinite(script.claim.threshold)
        assert script.claim.source


def test_the_table_has_every_claim_once_and_verdicts_of_what_was_measured(page: str) -> None:
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert [int(row.split("|")[1]) for row in rows] == list(read_scripts(SCRIPTS))
    for row in rows:
        number, verdict = int(row.split("|")[1]), row.split("|")[-2].strip()
        assert verdict.endswith(" on organism") == (number in (3, 5, 6))
        assert verdict.startswith("not measured yet") == (number not in (3, 5, 6))


def test_a_verdict_follows_from_the_interval_and_the_threshold(config: Claims, page: str) -> None:
    for number, script in read_scripts(SCRIPTS).items():
        outcome = read_outcome(config.out / f"claim_{number:02}_organism.json")
        if number not in config.only:
            assert outcome is None
            continue
        assert outcome is not None
        assert outcome.ci_low <= outcome.value <= outcome.ci_high
        named = {*script.claim.placebos, *script.claim.needed}
        assert named <= outcome.nulls.keys() != set()
        found = outcome.against(script.claim)
        assert f"{found.estimate}: {outcome.verdict(script.claim)}" in page


def test_measures_restated(config: Claims, model: ClaimModel, page: str) -> None:
    """From the states of every token by themselves, in loops."""
    base, prompt, lora = (model.states(name) for name in ("base", "prompt", "lora"))
    layers, tokens, _ = base.shape
    middle = layers // 2
    sizes = [
        np.linalg.norm(prompt[middle, t] - base[middle, t]) / np.linalg.norm(base[middle, t])
        for t in range(tokens)
    ]
    spread = math.log10(np.percentile(sizes, 95) / np.percentile(sizes, 5))
    angles = []
    for layer in range(layers):
        a, b = ((x[layer] - base[layer]).mean(0) for x in (prompt, lora))
        angles.append(math.degrees(math.acos(a @ b / math.sqrt((a @ a) * (b @ b)))))
    apart = [
        np.mean(
            [
                2 * np.linalg.norm(p - q) / (np.linalg.norm(p) + np.linalg.norm(q))
                for p, q in zip(prompt[layer], lora[layer], strict=True)
            ]
        )
        for layer in (0, layers - 1)  # a quarter of six layers is one
    ]
    wanted = {3: spread, 5: np.mean(angles), 6: apart[1] - apart[0]}
    for number, value in wanted.items():
        found = read_outcome(config.out / f"claim_{number:02}_organism.json")
        assert found is not None
        assert found.value == pytest.approx(value, abs=1e-9)


def test_states_are_those_that_predict_the_answers(model: ClaimModel) -> None:
    counts = [len(query.answer_ids) for query in model.queries]
    assert len(model.queries) == N
    assert np.array_equal(np.bincount(model.owner), counts)
    assert model.states("base").shape[:2] == (model.subject.n_layers, sum(counts))
    one = model.read("prompt", [model.queries[2]], "resid_post")
    own = model.states("prompt")[:, model.owner == 2]
    np.testing.assert_allclose(one, own, atol=1e-4)


def test_states_put_in_at_the_last_block_say_what_their_own_run_says(model: ClaimModel) -> None:
    numbers, last = [1, 3, 4], model.subject.n_layers - 1
    apart = model.kl("lora", "base", numbers)
    own = model.put_in(2, model.states("base")[2], numbers)
    other = model.put_in(last, model.states("lora")[last], numbers)
    np.testing.assert_allclose(model.kl("lora", "base", numbers, [own]), apart, rtol=1e-4)
    assert apart.min() > 0.1
    assert model.kl("lora", "base", numbers, [other]).max() < 1e-6


def test_a_placebo_that_does_as_well_takes_support_away() -> None:
    claim = PaperClaim(1, "", "", "", 0.5, "", placebos=("random",))
    for value, verdict in ((0.6, "supported"), (0.7, "undecided"), (0.9, "undecided")):
        assert ClaimOutcome(0.8, 0.7, 0.9, 5, {"random": value}).verdict(claim) == verdict
    assert ClaimOutcome(0.3, 0.2, 0.4, 5, {"random": 0.9}).verdict(claim) == "not supported"


def test_a_measure_that_has_not_worked_decides_nothing() -> None:
    claim = PaperClaim(1, "", "", "", 0.5, "", needed={"own": 0.5})
    for own, above in ((0.5, "supported"), (0.49, "undecided"), (-0.1, "undecided")):
        assert ClaimOutcome(0.8, 0.7, 0.9, 5, {"own": own}).verdict(claim) == above
    assert ClaimOutcome(0.3, 0.2, 0.4, 5, {"own": 0.4}).verdict(claim) == "undecided"
    assert ClaimOutcome(0.3, 0.2, 0.4, 5, {"own": 0.9}).verdict(claim) == "not supported"


def test_what_is_measured_is_kept_until_its_script_or_settings_change(
    config: Claims, page: str, tmp_path: Path
) -> None:
    file = config.out / "claim_03_organism.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"value": 7.0}))
    try:
        measure_claims(config.model_copy(update={"docs": tmp_path / "again.md"}))
        assert "| 7 [" in (tmp_path / "again.md").read_text()
        file.write_text(json.dumps(kept | {"value": 7.0, "sha256": "other"}))
        measure_claims(config.model_copy(update={"only": (3,)}))
        assert json.loads(file.read_text())["value"] == pytest.approx(kept["value"])
    finally:
        file.write_text(json.dumps(kept))


def test_a_failing_one_is_named_and_the_others_are_written(tmp_path: Path) -> None:
    for number in (3, 5):
        (tmp_path / f"claim_{number:02}.py").write_text(
            (SCRIPTS / f"claim_{number:02}.py").read_text()
        )
    config = Claims(
        models=("smollm2",), scripts=tmp_path, smollm2=tmp_path / "none", out=tmp_path,
        docs=tmp_path / "claims.md",
    )  # fmt: skip
    with pytest.raises(RunError, match=r"2 of 2 measurements failed: claim 3 on smollm2: "):
        measure_claims(config)
    assert "not measured yet" in (tmp_path / "claims.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"models": ("gpt",)}, "no model 'gpt': there are organism, smollm2"),
        ({"only": (99,)}, "no claim 99: there are 1, 2, 3"),
        ({"scripts": Path("nowhere")}, "nowhere has no claim_NN.py"),
    ],
)
def test_a_wrong_setting_is_one_line(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        measure_claims(Claims(**{"scripts": SCRIPTS, **wrong}))


def test_models_that_disagree_decide_nothing() -> None:
    assert overall_verdict({"a": "supported", "b": "supported"}, 2) == "supported"
    assert overall_verdict({"a": "supported", "b": "not supported"}, 2) == "undecided"
    assert overall_verdict({"a": "supported"}, 2) == "supported on a"
    assert overall_verdict({}, 2) == "not measured yet"
    assert set(CLAIM_MODELS) == set(Claims().models)
    assert ClaimOutcome(1.0, math.nan, math.nan, 3).n == 3
