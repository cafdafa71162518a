"""What changes a head's scores: the split written out over all orders, its laws, and whole runs
against plain Hugging Face + peft."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import Condition
from reference.attention import projected, rotated, to_all_heads
from reference.models import attention, blocks, head_layers, open_model
from reference.running import forward, run
from tiny_models import TEXT, preceding, save_adapter, separator_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import Experiment, Run, diverge, load_run, plots
from interp.capabilities import find
from interp.conditions import Base, Prompt
from interp.measures.scores import PLAYERS, SPLIT, coalitions, split_scores
from interp.queries import Query, encode
from interp.runs.view import NotMeasured
from interp.subject import load
from interp.validation import architectures

QUERY, KEY, WEIGHTS, INTERACTION = range(4)
PLAIN = ("query", "key")
TEXTS = ["hot is the", "big is the opposite of", "the river is wide and"]
PROMPT = "hot is the opposite of cold"


# The split ---------------------------------------------------------------------------------------


def games(players: tuple[str, ...]) -> st.SearchStrategy[dict[frozenset[str], torch.Tensor]]:
    """Scores of two heads on three tokens, for every coalition; later keys are masked."""
    sets = coalitions(players)
    floats = st.floats(-5, 5)
    arrays = hnp.arrays(np.float64, (len(sets), 1, 2, 3, 3), elements=floats)
    later = torch.ones(3, 3).triu(1) > 0

    def game(values: np.ndarray) -> dict[frozenset[str], torch.Tensor]:
        masked = torch.from_numpy(values).masked_fill(later, -torch.inf)
        return dict(zip(sets, masked, strict=True))

    return arrays.map(game)


def by_orders(game: Mapping[frozenset[str], torch.Tensor], players: tuple[str, ...]) -> np.ndarray:
    """Every player's change, averaged over the orders in which they come, and what none does
    alone: `[term, head, pos, key]`."""
    value = {s: np.nan_to_num(x[0].numpy(), neginf=0.0) for s, x in game.items()}
    terms = {name: 0 * value[frozenset()] for name in PLAYERS}
    orders = list(permutations(players))
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            terms[name] += (value[before | {name}] - value[before]) / len(orders)
    change = value[frozenset(players)] - value[frozenset()]
    alone = sum(value[frozenset({name})] - value[frozenset()] for name in players)
    return np.stack([*terms.values(), change - alone])


@pytest.mark.parametrize("players", [PLAIN, PLAYERS])
@given(data=st.data())
def test_shares_are_averages_over_all_orders(players: tuple[str, ...], data: Any) -> None:
    game = data.draw(games(players))
    split = split_scores(game, game[frozenset(players)], 0.0)
    terms = by_orders(game, players)
    change = terms[:3].sum(0)
    whole = (change * change).sum(-1)
    np.testing.assert_allclose(np.nan_to_num(split.whole[0].numpy()), whole, atol=1e-9)
    got = np.stack([share[0].numpy() for share in split.shares])
    np.testing.assert_allclose(got, (terms * change).sum(-1), atol=1e-8)
    assert split.error == 0


@given(games(PLAYERS))
def test_query_key_and_weights_are_the_whole_change(game: Any) -> None:
    split = split_scores(game, game[frozenset(PLAYERS)], 0.0)
    total = sum(split.shares[:3])
    known = ~split.whole.isnan()
    torch.testing.assert_close(total[known], split.whole[known], atol=1e-8, rtol=1e-8)


@given(games(PLAIN))
def test_a_member_that_does_nothing_has_no_share(game: Any) -> None:
    """Nor has one that is not there; the other one then does it all, alone."""
    for members in game:
        game[members] = game[members - {"key"}]
    split = split_scores(game, game[frozenset(PLAIN)], 0.0)
    torch.testing.assert_close(split.shares[KEY], torch.zeros_like(split.shares[KEY]))
    assert not split.shares[WEIGHTS].any()
    torch.testing.assert_close(
        split.shares[INTERACTION], torch.zeros_like(split.shares[INTERACTION])
    )
    known = ~split.whole.isnan()
    torch.testing.assert_close(split.shares[QUERY][known], split.whole[known])


def test_a_change_by_rounding_is_none() -> None:
    base = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    game = {s: base + (1e-9 if "query" in s else 0) for s in coalitions(PLAIN)}
    split = split_scores(game, game[frozenset(PLAIN)], 1e-5)
    assert split.whole.isnan().all()


@given(games(PLAIN), st.floats(-3, 3))
def test_a_number_for_every_row_is_no_error(game: Any, number: float) -> None:
    own = game[frozenset(PLAIN)]
    split = split_scores(game, own + number * torch.arange(3.0)[:, None], 0.0)
    assert split.error == pytest.approx(0, abs=1e-9)


def test_other_scores_are_an_error() -> None:
    torch.manual_seed(0)
    game = {s: torch.randn(1, 1, 3, 3, dtype=torch.float64) for s in coalitions(PLAIN)}
    own = game[frozenset(PLAIN)].clone()
    own[0, 0, 1, 0] += 0.5
    assert split_scores(game, own, 0.0).error > 0.05


# Whole runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A run, and its queries and conditions for the slow reference."""

    run: Run
    model: str
    conditions: dict[str, Condition]
    ids: list[list[int]]


MODELS = (
    "gpt2", "neox", "llama", "qwen3", "gemma2", "phi3", "gpt_oss", "qwen3_5", "cohere2", "falcon",
    "bitnet",
)  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    model = architectures.save_architecture(request.param, folder / "model")
    layers = architectures.linear_layers(AutoModelForCausalLM.from_pretrained(model))
    lora = save_adapter(model, folder / "lora", layers)
    words = AutoTokenizer.from_pretrained(model)
    between = separator_of(words)
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    prompt = {"prompt": {"text": PROMPT, "separator": between}}
    experiment = Experiment(
        model=model,
        adapter=(lora,),
        conditions={"prompt": prompt, "both": [prompt, {"lora": {"adapter": lora}}]},
        queries=folder / "queries.jsonl",
        controls=(),
        score_split=True,
        out=folder / "run",
        bootstrap=0,
        permutations=0,
        sample=0,
        max_positions=2,
        device="cpu",
    )
    bos = tuple(words("")["input_ids"])
    [before] = {preceding(PROMPT + between, text, words) for text in TEXTS}
    conditions = {
        "base": Condition(bos),
        "prompt": Condition(bos + before),
        "lora": Condition(bos, adapter=lora),
        "both": Condition(bos + before, adapter=lora),
    }
    ids = [words(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    return Case(load_run(diverge(experiment)), model, conditions, ids)


def read(model: Any, seen: Any, layer: int, n_heads: int, n: int) -> tuple[np.ndarray, ...]:
    """A pass's queries and keys of the last n rows, `[head, pos, d_head]`."""
    if ("given", layer) in seen:  # behind the rotary embedding: all passes have the same positions
        q, k = (part.double().numpy() for part in seen["given", layer][:2])
    else:
        q, k, _ = projected(model, layer, seen, n_heads)
    return q[:, -n:], to_all_heads(k[:, -n:], n_heads)


def score(model: Any, seen: Any, layer: int, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Scores of queries and keys on the last rows of a pass, masked keys 0."""
    inside, n = attention(blocks(model)[layer]), q.shape[1]
    scale = getattr(inside, "scaling", q.shape[-1] ** -0.5)
    if ("given", layer) in seen:
        scale = seen["given", layer].scale
    elif (rotary := seen["rotary", layer]) is not None:
        cos, sin = (part[0, -n:].double().numpy() for part in rotary)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    scores = q @ k.swapaxes(-1, -2) * scale
    if cap := getattr(inside, "attn_logit_softcapping", None):
        scores = np.tanh(scores / cap) * cap
    return np.tril(scores)


def split_of(case: Case, name: str, ids: list[int]) -> dict[str, np.ndarray]:
    """Every term's projection on the change, and its square, `[layer, head, pos]`."""
    base, own = case.conditions["base"], case.conditions[name]
    models = {
        False: open_model(case.model, *base.weights),
        True: open_model(case.model, *own.weights),
    }
    inputs = {
        False: run(models[False], base, ids, case.model).resid_pre,
        True: run(models[True], own, ids, case.model).resid_pre,
    }
    passes = {
        (weights, changed): forward(models[weights], base, ids, inputs[changed], case.model).seen
        for weights in (False, True)
        for changed in (False, True)
    }
    players = PLAYERS if name != "prompt" else PLAIN
    config = models[False].config
    found: dict[str, list[np.ndarray]] = {}
    for layer in head_layers(models[False]):
        parts = {
            source: read(models[source[0]], seen, layer, config.num_attention_heads, len(ids))
            for source, seen in passes.items()
        }
        game = {}
        for members in coalitions(players):
            q = parts["weights" in members, "query" in members][0]
            k = parts["weights" in members, "key" in members][1]
            at_base = score(models[False], passes[False, False], layer, q, k)
            game[members] = torch.from_numpy(at_base)[None]
        terms = by_orders(game, players)
        change = terms[:3].sum(0)
        still = np.linalg.norm(change, axis=-1) <= 1e-5 * np.linalg.norm(
            game[frozenset()][0].numpy(), axis=-1
        )
        for term, values in zip(SPLIT, terms, strict=True):
            found.setdefault(term, []).append((values * change).sum(-1))
        whole = (change * change).sum(-1)
        found.setdefault("whole", []).append(np.where(still, np.nan, whole))
    return {term: np.stack(values) for term, values in found.items()}


@pytest.mark.parametrize("name", ["prompt", "lora", "both"])
def test_every_share_is_the_reference(case: Case, name: str) -> None:
    parts = [split_of(case, name, ids) for ids in case.ids]
    plain = open_model(case.model, *case.conditions["base"].weights)
    table = case.run.table[case.run.table["measure"].isin(SPLIT)]
    table = table[(table["condition"] == name) & (table["reference"] == "base")]
    assert {*table["measure"]} == {*SPLIT}
    compared = 0
    for _, row in table.iterrows():
        rows = {"last": slice(-1, None), "mean": slice(None)}.get(row["position"])
        at = slice(int(row["position"]), int(row["position"]) + 1) if rows is None else rows
        place = (head_layers(plain).index(row["layer"]), row["head"], at)
        wholes = [np.atleast_1d(part["whole"][place]) for part in parts]
        tops = [np.atleast_1d(part[row["measure"]][place]) for part in parts]
        known = [~np.isnan(whole) for whole in wholes]
        below = sum(w[k].sum() for w, k in zip(wholes, known, strict=True))
        above = sum(t[k].sum() for t, k in zip(tops, known, strict=True))
        if below == 0:
            assert np.isnan(row["value"])
        elif not np.isnan(row["value"]):
            assert row["value"] == pytest.approx(above / below, abs=1e-4), row.to_dict()
            compared += 1
    assert compared > 50


def test_a_prompts_change_is_all_inputs_and_a_loras_first_is_all_weights(case: Case) -> None:
    table = case.run.table[case.run.table["reference"].fillna("") == "base"]
    shares = table[(table["measure"] == "score_weights") & table["value"].notna()]
    assert (shares.loc[shares["condition"] == "prompt", "value"] == 0).all()
    first = shares.loc[(shares["condition"] == "lora") & (shares["layer"] == 0), "value"]
    assert first.tolist() == pytest.approx([1] * len(first))
    assert len(first) or "qwen3_5" in case.model  # whose first layer has no heads
    assert case.run.manifest["checks"]["score_split"] < 1e-5


def test_the_figure_has_a_row_for_every_side_and_a_column_for_every_term(case: Case) -> None:
    figure = plots.score_changes(case.run)
    titles = [a.text for a in figure.layout.annotations]
    for words in ("queries' inputs", "keys' inputs", "weights", "only together"):
        assert words in titles
    table = case.run.table[case.run.table["site"] != "attn_scores"]
    with pytest.raises(NotMeasured, match="score split"):
        plots.score_changes(Run(case.run.path, table, case.run.arrays, case.run.manifest))


# What cannot be split ----------------------------------------------------------------------------


@pytest.fixture
def reasons(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    def reasons(name: str) -> dict[str, str]:
        model = architectures.save_architecture(name, tmp_path / "model")
        conditions = {"base": Base(), "prompt": Prompt(text=TEXT)}
        subject = load(model, conditions, TEXTS[:1])
        return find(subject, encode([Query(t) for t in TEXTS[:2]], subject.tokenizer))

    return reasons


@pytest.mark.parametrize("name", ["hunyuan", "deepseek_v3"])
def test_queries_behind_the_rotary_embedding_are_not_put_beside_others(
    name: str, reasons: Callable[[str], dict[str, str]]
) -> None:
    """Where keys of a run with a prefix meet queries of one without, they stand elsewhere."""
    assert "behind the rotary embedding" in reasons(name)["score split"]


def test_without_scores_there_is_nothing_to_split(
    reasons: Callable[[str], dict[str, str]],
) -> None:
    assert reasons("opt")["score split"] == "scores are withheld"


def test_what_nobody_asked_for_is_neither_tried_nor_withheld(tmp_path: Path) -> None:
    model = architectures.save_architecture("hunyuan", tmp_path / "model")
    subject = load(model, {"base": Base(), "prompt": Prompt(text=TEXT)}, TEXTS[:1])
    queries = encode([Query(t) for t in TEXTS[:2]], subject.tokenizer)
    assert find(subject, queries, unasked=frozenset({"score split"})) == {}
