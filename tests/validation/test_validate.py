"""`interp validate` passes on a sound subject and fails on one that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from rich.console import Console
from torch import Tensor

import interp.influence
import interp.patching.interchange
import interp.subject.opening
from interp import cli, edits
from interp.geometry import linear_cka
from interp.names import Site
from interp.subject import adapters, parity
from interp.subject.fused import mend
from interp.validation import identities, published, running
from interp.validation.outcome import Outcome, Reading, largest_or_nan, outcome_table, worst
from interp.validation.planted import Difference, first_difference, is_located, places_of
from interp.validation.specimen import Specimen, open_specimen

FUSED = ("gpt2", "neox", "phi3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("models")

    def saved(architecture: str) -> str:
        if not (folder / architecture).exists():
            tiny_models.save_model(architecture, folder / architecture)
        return str(folder / architecture)

    return saved


@pytest.fixture(scope="module")
def specimen(model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    """A sound one, with grouped queries and a square output projection."""
    return open_specimen(model("llama"), tmp_path_factory.mktemp("planted"), device="cpu")


@pytest.fixture(scope="module")
def fused(model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return open_specimen(model("gpt2"), tmp_path_factory.mktemp("planted"), device="cpu")


def outcome(check: str, value: float, limit: float, on: str = "m") -> Outcome:
    return Outcome(check, on, Reading(value, limit), 0.5)


# --- sound subjects ------------------------------------------------------------------------------


@pytest.mark.parametrize("check", identities.IDENTITY_CHECKS)
@pytest.mark.parametrize("name", ["specimen", "fused"])
def test_every_identity_holds(check: str, name: str, request: pytest.FixtureRequest) -> None:
    reading = identities.IDENTITY_CHECKS[check](request.getfixturevalue(name))
    assert reading.passed, reading


@pytest.mark.parametrize("check", published.PUBLISHED_CHECKS)
def test_measures_are_their_definitions(check: str) -> None:
    assert published.PUBLISHED_CHECKS[check]().passed


# --- broken on purpose ---------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FUSED)
def test_stale_fused_projections_fail_parity(
    architecture: str, model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interp.subject.opening, "mend", lambda bridge: None)
    (only,) = running.of_model(model(architecture), architecture, ())
    assert only.check == "parity"
    assert not only.passed
    assert "differs from plain Hugging Face" in only.reading.note


@pytest.mark.parametrize("architecture", FUSED)
def test_stale_fused_projections_hide_what_is_planted(
    architecture: str, model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second line of defence: with parity blinded, adapters on fused parts are not found."""
    monkeypatch.setattr(interp.subject.opening, "mend", lambda bridge: None)
    monkeypatch.setattr(parity, "verify", lambda *_: 0.0)
    (only,) = running.of_model(model(architecture), architecture, ("planted",))
    assert not only.passed
    assert only.reading.value == 6 + (architecture == "phi3")  # its gate and up are fused too
    assert "L1.q at no site" in only.reading.note


def transposed(bridge: Any) -> None:
    """Every square output projection the wrong way round in the hooked model."""
    mend(bridge)
    for block in bridge.blocks:
        inside = block.attn.o.original_component
        weight = getattr(inside, "base_layer", inside).weight
        weight.data = weight.data.T.contiguous()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_output_projection_of_the_wrong_orientation_fails_parity(
    architecture: str, model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interp.subject.opening, "mend", transposed)
    (only,) = running.of_model(model(architecture), architecture, ())
    assert (only.check, only.passed) == ("parity", False)


def test_reading_heads_with_the_wrong_orientation_leaves_a_sum_open(
    specimen: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(block: Any, z: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        inside = block.attn.o.original_component
        weight = getattr(inside, "base_layer", inside).weight.detach().double()
        back = (pulled @ weight.T).unflatten(-1, z.shape[1:])
        return (back * z).sum(-1), torch.zeros(len(z), dtype=torch.float64)

    monkeypatch.setattr(interp.influence, "_attention", wrong)
    assert identities.influence_sum(specimen).value > 0.01


def staying(layer: Any, names: list[str]) -> None:
    """Switches adapters on and never off."""
    if names:
        layer.enable_adapters(True)
        layer.set_adapter(names, inference_mode=True)


def test_an_adapter_that_stays_active_fails_parity(
    model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_switch", staying)
    (only,) = running.of_model(model("qwen2"), "qwen2", ())
    assert (only.check, only.passed) == ("parity", False)


def test_an_adapter_that_stays_active_later_is_seen_in_base(
    specimen: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    with specimen.subject.weights.of(specimen.subject.settings["base"]):
        pass
    specimen.caches  # noqa: B018
    monkeypatch.setattr(adapters, "_switch", staying)
    reading = identities.leak(specimen)
    assert not reading.passed
    assert "after q" in reading.note


def test_a_patch_that_does_something_by_itself_is_seen(
    specimen: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = edits.replace
    monkeypatch.setattr(edits, "replace", lambda value: exact(value + 1e-3))
    assert not identities.no_op_patch(specimen).passed
    assert not identities.last_state(specimen).passed


def test_re_wiring_is_no_prompt(specimen: Specimen) -> None:
    taken_for = specimen.observed | {"prompt": specimen.observed["q"]}
    mistaken: Any = SimpleNamespace(observed=taken_for, subject=specimen.subject)
    assert not identities.petrov(mistaken).passed


def test_nothing_planted_is_re_wired_by_a_prompt(specimen: Specimen) -> None:
    place = specimen.planted["q"]
    mistaken: Any = SimpleNamespace(
        subject=specimen.subject, observed=specimen.observed, planted={"prompt": place}
    )
    assert not identities.rewiring(mistaken).passed


def test_a_biased_similarity_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(0), y - y.mean(0)
        sizes = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        return float(np.linalg.norm(x.T @ y) ** 2 / sizes)

    assert published.PUBLISHED_CHECKS["CKA"]().passed
    monkeypatch.setattr(published, "linear_cka", biased)
    assert not published.PUBLISHED_CHECKS["CKA"]().passed
    monkeypatch.setattr(published, "linear_cka", lambda x, y: float("nan"))
    assert not published.PUBLISHED_CHECKS["CKA"]().passed
    assert linear_cka is not published.linear_cka


# --- what is planted and where -------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny_models.CONFIGS)
def test_every_part_and_head_can_be_planted(architecture: str, model: Callable[[str], str]) -> None:
    places = places_of(model(architecture))
    grouped = architecture not in ("gpt2", "neox")
    kv = tiny_models.N_KV_HEADS if grouped else tiny_models.N_HEADS
    for layer in range(tiny_models.N_LAYERS):
        for part, heads in {
            "q": tiny_models.N_HEADS,
            "k": kv,
            "v": kv,
            "o": tiny_models.N_HEADS,
        }.items():
            own = [p.head for p in places if (p.layer, p.part) == (layer, part)]
            assert own == [None, *range(heads)]
        assert {p.head for p in places if (p.layer, p.part) == (layer, "mlp")} == {None}


def test_only_the_very_site_and_head_count(model: Callable[[str], str]) -> None:
    places = {str(p): p for p in places_of(model("llama"))}
    q, whole, o = places["L1.q.2"], places["L1.q"], places["L1.o.0"]
    assert is_located(Difference(Site("q", 1), (2,)), [q])
    assert not is_located(Difference(Site("q", 1), (2, 3)), [q])
    assert not is_located(Difference(Site("q", 1), (3,)), [q])
    assert not is_located(Difference(Site("q", 2), (2,)), [q])
    assert not is_located(Difference(Site("k", 1), (2,)), [q])
    assert not is_located(Difference(None), [q])
    assert is_located(Difference(Site("q", 1), (0, 1, 2, 3)), [whole])
    assert is_located(Difference(Site("attn_out", 1)), [o])
    assert is_located(Difference(Site("q", 1), (2,)), [o, q])


def test_a_single_bit_is_a_difference() -> None:
    a = {Site("resid_pre", 0): torch.ones(2, 3, 4), Site("q", 0): torch.ones(2, 4, 3, 8)}
    b = {site: value.clone() for site, value in a.items()}
    assert first_difference(a, b) == Difference(None)
    b[Site("q", 0)][1, 3, 2, 5] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert first_difference(a, b) == Difference(Site("q", 0), (3,))


# --- records and the command ---------------------------------------------------------------------


def test_nothing_undefined_passes() -> None:
    nan = float("nan")
    assert not Reading(nan, 1.0).passed
    assert not Reading(nan, 1.0, at_least=True).passed
    assert np.isnan(largest_or_nan([1.0, nan, 2.0]))
    assert Reading(1.0, 1.0).passed
    assert not Reading(0.9, 1.0, at_least=True).passed


def test_the_worst_of_many_is_a_failure() -> None:
    many = [outcome("a", 0.5, 1.0, "x"), outcome("a", 2.0, 1.0, "y"), outcome("b", 0.1, 1.0, "x")]
    a, b = worst(many, "two")
    assert (a.passed, a.on, a.measured, a.seconds) == (False, "two: y", "2", 1.0)
    assert (b.passed, b.on) == (True, "two")
    (undefined,) = worst([outcome("a", 9.0, 1.0), outcome("a", float("nan"), 1.0)], "two")
    assert undefined.measured == "nan"


def test_the_table_fits_80_columns() -> None:
    screen = Console(width=80)
    failed = Outcome("parity", "m", Reading(float("nan"), 0.0, note="what " * 40), 1.0)
    with screen.capture() as captured:
        screen.print(outcome_table([outcome("a check", 0.5, 1.0), failed]))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("pass" in line for line in lines) == 1
    assert sum("FAIL" in line for line in lines) == 1


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    def answer(value: float) -> None:
        found = [outcome("some check", value, 1.0)]
        monkeypatch.setattr(running, "validate", lambda settings, progress: found)

    return answer  # type: ignore[return-value]


def test_the_command_exits_1_if_a_check_fails(
    answering: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answering(0.5)
    assert cli.main(["validate"]) == 0
    assert "all checks passed" in capsys.readouterr().out
    answering(1.5)
    with pytest.raises(SystemExit) as left:
        cli.main(["validate"])
    assert left.value.code == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "1 of 1 checks FAILED" in out


def test_a_broken_subject_exits_1(
    model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(interp.subject.opening, "mend", lambda bridge: None)
    with pytest.raises(SystemExit) as left:
        cli.main(["validate", "--model", model("gpt2"), "--device", "cpu"])
    assert left.value.code == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapter", "a"], "--model"),
        (["--only", "no-such-check"], "no check is called"),
        (["--model", "/no/such/model"], "no such folder"),
    ],
)
def test_a_bad_input_exits_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_user_s_own_model_and_adapter(
    model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tiny_models.save_adapter(model("qwen3"), tmp_path / "own", ["q_proj", "down_proj"])
    words = ["--model", model("qwen3"), "--adapter", own, "--device", "cpu"]
    assert cli.main(["validate", *words]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("parity", "no-op", "influence", "planted"))
