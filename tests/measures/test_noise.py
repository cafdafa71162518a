"""The noise floor holds what rounding really does: the same thing computed in another way, and in
another number format, differs by less; what differs by less is never called a difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.conditions import Base, Lora, Prompt
from interp.measures import DTYPE_NOISE, measuring, noise, tally
from interp.measures.output import between
from interp.measures.plan import Plan
from interp.measures.tally import Key
from interp.noise import floor, settled, zero
from interp.observe import observe
from interp.queries import Encoded, Query, encode
from interp.registry import MEASURES
from interp.significance import DifferencesByQuery, sign_vectors
from interp.statistics import SumsByQuery
from interp.subject import Batch, Subject, load
from interp.sweep import Readouts, _influences, _lenses, measure_chunk, scale_of
from tests.tiny_models import all_targets, save_adapter, save_model

OPENING = "hot is the opposite of cold. "
TEXTS = (
    "hot is the opposite of cold, up is", "up is the opposite of", "a river is wide; a hill is",
    "lily said: yes! tom said: no?", "people walked along the road", "big is small.",
)  # fmt: skip
ARCHITECTURES = ("gpt2", "llama", "qwen3", "gemma2")
Values = dict[Key, np.ndarray]


def rounded(folder: str) -> str:
    """The same folder with weights that bfloat16 holds exactly."""
    for file in Path(folder).glob("*.safetensors"):
        tensors = {name: t.bfloat16().float() for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp(request.param)
    model = rounded(save_model(request.param, folder / "model"))
    return [model, rounded(save_adapter(model, folder / "lora", all_targets(request.param)))]


def opened(paths: Sequence[str], dtype: str) -> tuple[Subject, list[Encoded]]:
    model, adapter = paths
    conditions = {
        "base": Base(),
        "prompt": Prompt(OPENING),
        "neutral": Prompt("the weather was mild. "),
        "lora": Lora(adapter),
    }
    subject = load(model, conditions, TEXTS[:1], dtype=dtype, device="cpu")
    return subject, encode([Query(text, answer=" cold") for text in TEXTS], subject.tokenizer)


def planned(subject: Subject, **fields: object) -> Plan:
    pairs = [("prompt", "lora"), ("neutral", "lora"), ("prompt", "base"), ("lora", "base")]
    return Plan(**{
        "base": "base", "pairs": tuple(pairs), "certified": (), "controls": {}, "members": (),
        "kept": (), "sample": frozenset(), "speaker": "base", "against": None,
        "bos": bool(subject.settings["base"].n_prefix), "labels": ("last", "mean"),
        "longest_answer": 1, "replicates": 0, "permutations": 0, "seed": 0,
        "batch_size": len(TEXTS),
        "noise": DTYPE_NOISE[subject.dtype],
    } | fields)  # fmt: skip


def measured(subject: Subject, queries: Sequence[Encoded], size: int) -> Values:
    """Every measure, `[query, *cell, query_pos]`, of `size` queries at a time; ratios of sums are
    divided once, over all tokens."""
    plan, longest = planned(subject), max(len(query.forced) for query in queries)
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    found: dict[Key, list[list[np.ndarray]]] = {}
    for start in range(0, len(queries), size):
        batch = Batch.forced(queries[start : start + size])
        for key, *parts in _values(subject, plan, queries[start : start + size], batch, caches):
            arrays = [_padded(part, batch, longest) for part in parts]
            found.setdefault(key, []).append(arrays)
    return {key: _divided(parts) for key, parts in found.items()}


def _values(
    subject: Subject, plan: Plan, chunk: Sequence[Encoded], batch: Batch, caches: dict[str, object]
) -> Iterator[measuring.Values]:
    scale = scale_of(plan, chunk, batch)
    observed, last = observe(subject, batch, caches, "base")
    read = Readouts(subject, plan, scale.answers, last, scale.targets)
    apart = between({name: seen.logits for name, seen in observed.items()}, plan.pairs)
    grams = dict(measuring.site_grams(observed))
    values = measuring.values(observed, apart, grams, plan)
    return chain(values, _lenses(read, {}), _influences(read, {}))


def _padded(values: torch.Tensor | float, batch: Batch, longest: int) -> np.ndarray | float:
    if isinstance(values, float):
        return values
    array, width = values.double().numpy(), batch.ids.shape[1]
    if array.shape[-1] == width:
        real = torch.arange(width) < batch.lengths[:, None]
        array = np.where(real.reshape(-1, *[1] * (array.ndim - 2), width), array, np.nan)
    room = [(0, 0)] * (array.ndim - 1) + [(0, longest - array.shape[-1])]
    return np.pad(array, room, constant_values=np.nan)


def _divided(parts: list[list[np.ndarray]]) -> np.ndarray:
    above = np.concatenate([part[0] for part in parts])
    if isinstance(parts[0][1], float):
        return above
    below = np.concatenate([part[1] for part in parts])
    known = np.isfinite(above) & np.isfinite(below)
    sums = [np.where(known, x, 0).sum((0, -1)) for x in (above, below)]
    return np.where(sums[1] == 0, np.nan, sums[0] / np.where(sums[1] == 0, 1, sums[1]))


def beyond(x: Values, y: Values, size: float) -> dict[str, np.ndarray]:
    """By measure: the differences of two computations, as multiples of their floors."""
    assert x.keys() == y.keys()
    found: dict[str, list[np.ndarray]] = {}
    for key, a in x.items():
        b = y[key]
        known = np.isfinite(a) & np.isfinite(b)
        if MEASURES[key.measure].rounding != "count" and known.any():
            a, b = a[known], b[known]
            room = np.maximum(floor(key.measure, size, a, b), 1e-300)
            found.setdefault(key.measure, []).append(np.abs(a - b) / room)
    return {measure: np.concatenate(parts) for measure, parts in found.items()}


def test_float32_differs_by_less_than_the_floor_in_another_batch(paths: list[str]) -> None:
    """A quarter of it leaves room for deeper models; scores, which cancel, have all of it."""
    subject, queries = opened(paths, "float32")
    together, alone = (measured(subject, queries, size) for size in (len(queries), 1))
    found = beyond(together, alone, noise.NOISE["float32"])
    assert {"relative_l2", "content_js", "influence", "lens_kl", "petrov_residual"} <= found.keys()
    for measure, parts in found.items():
        ratio = measure.startswith(("sim_am", "change", "rewiring"))
        assert parts.max() <= (1 if ratio else 0.25), measure
    assert max(parts.max() for parts in found.values()) > 0  # or nothing was computed anew


def test_bfloat16_stays_within_its_floor_of_float32(paths: list[str]) -> None:
    """The same weights, in 99 of 100 values."""
    half, full = (measured(*opened(paths, dtype), len(TEXTS)) for dtype in ("bfloat16", "float32"))
    for measure, parts in beyond(half, full, noise.NOISE["bfloat16"]).items():
        assert (parts <= 1).mean() >= 0.99, measure
    fine = beyond(half, full, noise.NOISE["float32"])
    assert np.median(fine["relative_l2"]) > 10  # float32's floor would not do


def test_what_a_prompt_cannot_do_is_no_finding(paths: list[str]) -> None:
    """At the first layer of a rotary model all prompts leave content patterns as they are, and at
    base's inputs no prompt re-wires a head: differences of rounding alone have p = 1."""
    subject, queries = opened(paths, "float32")
    controls = {("prompt", "lora"): ("neutral", "lora"), ("prompt", "base"): ("neutral", "base")}
    pairs = (*planned(subject).pairs, ("neutral", "base"))
    plan = planned(subject, controls=controls, permutations=99, pairs=pairs)
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}

    found = measure_chunk(subject, plan, queries, 0, caches)

    def apart(measure: str, a: str, b: str) -> np.ndarray:
        kept = found[tally.test_of(Key(measure, a, b, "pattern"))]
        assert isinstance(kept, DifferencesByQuery)
        test = kept.flipped(sign_vectors([q.key for q in queries], plan.permutations, plan.seed))
        assert (test.compute().p[test.squares == 0] == 1).all()
        return test.squares

    assert (apart("petrov_residual", "prompt", "base") == 0).all()
    first, *later = apart("content_js", "prompt", "lora")
    rotary = subject.bridge.cfg.positional_embedding_type == "rotary"
    assert (first == 0).all() == rotary
    assert all((layer > 0).all() for layer in later)
    values = [found[Key("content_js", name, "lora", "pattern")] for name in ("prompt", "neutral")]
    one, other = (v.compute() for v in values if isinstance(v, SumsByQuery))
    assert (one[:, 0] != other[:, 0]).any()  # rounding did make a difference


# The rule itself --------------------------------------------------------------------------------


def test_every_measure_has_the_rule_of_its_kind() -> None:
    """What is in nats is a divergence or has no bound, but for controls, which are not ranked."""
    for name, measure in MEASURES.items():
        if measure.units == "nats" and not name.endswith(("random_direction", "random_difference")):
            assert measure.rounding in ("divergence", "unbounded"), name
        if measure.units == "cosine" and not name.startswith("implicit"):
            assert measure.rounding == "cosine", name


@pytest.mark.parametrize("size", [1e-3, 1e-2])
def test_divergences_of_perturbed_rows_are_quadratic_and_within_the_floor(size: float) -> None:
    """JS of p and p(1 + e) is E[e²] / 8, KL E[e²] / 2, to leading order; and far from zero, where
    they move in proportion to e, both stay within the floor."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(5), 2)
        rows = [_moved(row, size, rng) for row in (p, q)]
        e = rows[0] / p - 1
        assert _js(p, rows[0]) == pytest.approx((p * e**2).sum() / 8, rel=3 * size)
        assert _kl(p, rows[0]) == pytest.approx((p * e**2).sum() / 2, rel=3 * size)
        for measure, divergence in (("content_js", _js), ("kl_divergence", _kl)):
            before, after = divergence(p, q), divergence(*rows)
            assert abs(before - after) <= floor(measure, size, before, after)
            assert zero(measure, size, divergence(p, rows[0]))
            assert not zero(measure, size, before)


def _moved(p: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    moved = p * (1 + rng.uniform(-size, size, len(p)))
    return np.asarray(moved / moved.sum())


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def _js(p: np.ndarray, q: np.ndarray) -> float:
    return (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.3, 1.5, 3.0])
def test_cosines_are_equal_where_their_angles_are(angle: float) -> None:
    size = 1e-4
    for step, equal in ((1.9 * size, True), (2.1 * size, False)):
        a, b = np.cos(angle), np.cos(angle + step)
        assert (abs(a - b) <= floor("cosine", size, a, b)) == equal


def test_states_moved_by_rounding_move_their_distance_within_the_floor() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        x, y = rng.normal(size=(2, 16))
        a, b = (v + 1e-3 * np.linalg.norm(v) * _unit(rng, 16) for v in (x, y))
        before, after = (
            2 * np.linalg.norm(u - v) / (np.linalg.norm(u) + np.linalg.norm(v))
            for u, v in ((x, y), (a, b))
        )
        assert abs(before - after) <= 1.5 * floor("relative_l2", 1e-3)


def _unit(rng: np.random.Generator, width: int) -> np.ndarray:
    v = rng.normal(size=width)
    return np.asarray(v / np.linalg.norm(v))


def test_values_that_only_rounding_tells_apart_rank_equal() -> None:
    values = np.array([0.3, 1e-11, 0.3 + 1e-6, np.nan, 0.1, 0.0, 0.3 - 1e-6])
    got = settled("damage", 1e-5, values)
    np.testing.assert_array_equal(got, [0.3 - 1e-6, 0, 0.3 - 1e-6, np.nan, 0.1, 0, 0.3 - 1e-6])
    np.testing.assert_array_equal(settled("damage", 0.0, values), values)
    assert settled("damage", 1e-5, np.array([0.5 - 1e-6]), anchor=0.5) == 0.5
