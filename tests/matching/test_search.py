"""Search for text and demonstrations: what may come out, and that it is the best of those tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_adapter, save_model, tokenizer

from interp.conditions import RAW, Base, Lora, Prompt, resolve
from interp.conditions.placing import TokenIds
from interp.errors import RunError
from interp.matching.coordinate import (
    SearchBudget,
    SearchResult,
    Words,
    random_search,
    search_prompt,
)
from interp.matching.examples import examples
from interp.matching.few_shot import select
from interp.matching.prefixes import Scorer
from interp.matching.readable import readable_words, slot_of
from interp.queries import Query, check_alignment, encode
from interp.subject import load

CONVENTIONS = ["gpt2", "llama"]
SEPARATORS = [("gpt2", "\n"), ("gpt2", ""), ("llama", " "), ("llama", ""), ("llama", " : ")]


class Puzzle:
    """Stands in for a `Scorer`: the loss is how many tokens differ from a hidden prompt."""

    def __init__(
        self, hidden: TokenIds, vocabulary: int, fit: Callable[[TokenIds], float] | None = None
    ):
        self.hidden, self.vocabulary, self.fit = hidden, vocabulary, fit
        self.scored: list[TokenIds] = []
        self.slopes_asked = 0

    def losses(self, prefixes: Sequence[TokenIds]) -> torch.Tensor:
        self.scored += prefixes
        wrong = self.fit or (
            lambda p: float(sum(a != b for a, b in zip(p, self.hidden, strict=True)))
        )
        return torch.tensor([wrong(prefix) for prefix in prefixes], dtype=torch.float64)

    def slopes(self, prefix: TokenIds) -> torch.Tensor:
        self.slopes_asked += 1
        slopes = torch.rand(
            len(prefix), self.vocabulary, generator=torch.Generator().manual_seed(0)
        )
        for place, token in enumerate(self.hidden):
            slopes[place, token] = -1
        return slopes


def solved(method: Any, puzzle: Puzzle, budget: SearchBudget, **more: Any) -> SearchResult:
    return method(puzzle, Words(range(puzzle.vocabulary), lambda _: True), budget, **more)


# The search -------------------------------------------------------------------------------------


def test_the_gradient_s_tokens_are_tried() -> None:
    budget = SearchBudget(tokens=5, steps=12, candidates=40, top=2)
    hidden = (3, 141, 59, 26, 535)
    assert solved(search_prompt, Puzzle(hidden, 600), budget).prompt == hidden
    blind = solved(random_search, Puzzle(hidden, 600), budget)
    assert blind.loss > 2


@pytest.mark.parametrize("method", [search_prompt, random_search])
def test_the_loss_never_rises_and_is_that_of_the_best_that_was_tried(method: Any) -> None:
    puzzle = Puzzle((1, 2, 3, 4), 50)
    seen: list[SearchResult] = []
    found = solved(method, puzzle, SearchBudget(4, 15, 6, 3), progress=seen.append)
    assert len(found.history) == len(seen) == 15
    assert found.history == sorted(found.history, reverse=True)
    assert found == seen[-1]
    assert found.loss == found.history[-1] == float(puzzle.losses([found.prompt])[0])
    assert found.loss == min(puzzle.losses(puzzle.scored).tolist())
    assert [one.loss for one in seen] == found.history


@pytest.mark.parametrize("method", [search_prompt, random_search])
def test_a_step_tries_so_many_different_single_changes(method: Any) -> None:
    puzzle = Puzzle((1, 2, 3), 50)
    solved(method, puzzle, SearchBudget(3, 1, 20, 30))
    first, *tried = puzzle.scored
    assert len(tried) == len(set(tried)) == 20
    assert all(sum(a != b for a, b in zip(first, one, strict=True)) == 1 for one in tried)


def test_both_begin_with_the_same_text_and_seeds_differ() -> None:
    def first(method: Any, seed: int) -> TokenIds:
        puzzle = Puzzle((1, 2, 3), 50)
        solved(method, puzzle, SearchBudget(3, 0, seed=seed))
        return puzzle.scored[0]

    assert first(search_prompt, 0) == first(random_search, 0) != first(search_prompt, 1)


def test_no_gradient_is_computed_twice() -> None:
    puzzle = Puzzle((1, 2, 3), 50, fit=lambda _: 1.0)  # nothing is better than the start
    solved(search_prompt, puzzle, SearchBudget(3, 10, 5))
    assert puzzle.slopes_asked == 1


def test_a_winner_that_merges_with_a_query_is_passed_over() -> None:
    puzzle = Puzzle((5, 6), 20)
    allowed = Words(range(20), lambda _: True, apart=lambda prompt: prompt[-1] != 6)
    found = search_prompt(puzzle, allowed, SearchBudget(2, 20, 40, 20))  # type: ignore[arg-type]
    assert found.prompt[0] == 5
    assert found.prompt[1] != 6
    assert found.loss == 1


@pytest.mark.parametrize("part", [0, 1])
def test_where_no_text_is_left_the_error_is_one_line(part: int) -> None:
    never: list[Any] = [lambda _: True, lambda _: True]
    never[part] = lambda prompt: len(prompt) < 2
    with pytest.raises(RunError, match="choose another --separator") as caught:
        search_prompt(Puzzle((1, 2), 9), Words(range(9), *never), SearchBudget(2))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# On a model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CONVENTIONS)
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Scorer, Words]:
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    lora = save_adapter(
        model, root / "lora", {"gpt2": ["attn.c_attn"]}.get(request.param, ["q_proj"])
    )
    subject = load(model, {"base": Base(), "lora": Lora(lora)}, ["a river"])
    queries = encode([Query("a river", "is wide"), Query("hot is")], subject.tokenizer)
    wanted = examples(subject, subject.settings["lora"], queries, 64)
    evaluation: Any = SimpleNamespace(subject=subject, queries={"matched": queries})
    separator = "\n" if request.param == "gpt2" else " "
    slot = slot_of(evaluation, separator)
    assert slot.before == subject.settings["base"].prefix
    own = subject.settings["base"]
    return Scorer(subject, own, wanted, 64, slot.after), readable_words(evaluation, slot)


def test_a_search_goes_on_as_if_never_stopped_to_the_bit(real: tuple[Scorer, Words]) -> None:
    budget = SearchBudget(tokens=3, steps=5, candidates=12, top=20)
    states: list[SearchResult] = []
    whole = search_prompt(*real, budget, progress=states.append)
    assert whole.history[-1] < whole.history[0]
    for state in states:
        assert search_prompt(*real, budget, start=SearchResult.parse(state.packed())) == whole
    assert search_prompt(*real, budget) == whole


def test_the_tokens_that_a_step_draws_are_those_of_the_steepest_slopes(
    real: tuple[Scorer, Words],
) -> None:
    """One place: the winner of a step is the best of the tokens with the lowest slopes."""
    scorer, allowed = real
    budget = SearchBudget(tokens=1, steps=1, candidates=400, top=15)
    first = search_prompt(scorer, allowed, budget._replace(steps=0))
    ids = np.array(allowed.ids)
    steep = ids[np.argsort(scorer.slopes(first.prompt)[0, ids].numpy())[:15]]
    text = [(int(i),) for i in steep if allowed.readable((int(i),))]
    losses = {prompt: float(scorer.losses([prompt])[0]) for prompt in [*text, first.prompt]}
    assert search_prompt(scorer, allowed, budget).prompt == min(losses, key=losses.__getitem__)


# What is text -----------------------------------------------------------------------------------

TOKENIZERS = {convention: tokenizer(convention) for convention in CONVENTIONS}
QUERIES = [Query("hot is"), Query("a river"), Query(" people walked"), Query("?! no")]


def bench_of(convention: str, asked: list[Query] = QUERIES) -> Any:
    core = TOKENIZERS[convention]
    settings = {"base": resolve(Base(), core)}
    subject = SimpleNamespace(tokenizer=core, n_words=len(core), frame=RAW, settings=settings)
    return SimpleNamespace(subject=subject, queries={"all": encode(asked, core)})


@pytest.mark.parametrize(("convention", "separator"), SEPARATORS)
@settings(max_examples=6)
@given(seed=st.integers(0, 10**6), tokens=st.sampled_from([1, 2, 3, 24]))
def test_what_is_found_is_read_back_as_it_was_scored(
    convention: str, separator: str, seed: int, tokens: int
) -> None:
    """Decoded and written as a prompt it has exactly the ids that were scored, no special tokens,
    and every query stays apart from it."""
    core, asked = TOKENIZERS[convention], QUERIES
    if convention == "llama":  # its space before a query is the query's own or the separator's
        asked = [q for q in QUERIES if q.text.startswith(" ") != separator.endswith(" ")]
    evaluation = bench_of(convention, asked)
    slot = slot_of(evaluation, separator)
    allowed, tail = readable_words(evaluation, slot), slot.after
    puzzle = Puzzle((), len(core), fit=lambda p: float(np.cos(np.dot(p, np.arange(1, len(p) + 1)))))
    for prompt in _tried(puzzle, allowed, SearchBudget(tokens, 3, 8, 50, seed)):
        text = Prompt(text=core.decode(list(prompt)), separator=separator)
        assert resolve(text, core).prefix == (*resolve(Base(), core).prefix, *prompt, *tail)
        assert not set(prompt) & set(core.all_special_ids)
        prefix = resolve(text, core).prefix
        check_alignment(evaluation.queries["all"], text, core, "found", prefix=prefix)
        for query in evaluation.queries["all"]:
            joint = core(f"{text.as_text()}{query.text}")["input_ids"]
            assert joint == [*prefix, *query.ids]


def _tried(puzzle: Puzzle, allowed: Words, budget: SearchBudget) -> Iterator[TokenIds]:
    states: list[SearchResult] = []
    search_prompt(puzzle, allowed, budget, progress=states.append)  # type: ignore[arg-type]
    return iter({state.prompt for state in states})


@pytest.mark.parametrize(("convention", "separator"), [("gpt2", " "), ("llama", "\n")])
def test_a_separator_that_every_query_merges_with_leaves_no_text(
    convention: str, separator: str
) -> None:
    """A word takes the space before it; or it has none, which every text begins with."""
    evaluation = bench_of(convention)
    allowed = readable_words(evaluation, slot_of(evaluation, separator))
    puzzle: Any = Puzzle((), len(TOKENIZERS[convention]), fit=lambda _: 0.0)
    with pytest.raises(RunError, match="apart from the queries"):
        search_prompt(puzzle, allowed, SearchBudget(1))


def test_a_separator_is_written_as_after_a_word() -> None:
    """Alone it would begin with a space sign of its own where every text does."""
    core = TOKENIZERS["llama"]
    alone = tuple(core("\n", add_special_tokens=False)["input_ids"])
    tail = slot_of(bench_of("llama"), "\n").after
    assert tail != alone
    assert resolve(Prompt(text="up"), core).prefix == (
        *resolve(Prompt(text="up", separator=""), core).prefix,
        *tail,
    )


# Demonstrations ---------------------------------------------------------------------------------


def written(shots: list[int]) -> TokenIds:
    return tuple(shots)


def fit(seed: int) -> Callable[[TokenIds], float]:
    """A loss that depends on which demonstrations there are and on their order."""

    def loss(shots: TokenIds) -> float:
        key = [seed, *(shot + 1 for shot in shots)]
        return float(np.random.default_rng(key).uniform()) - 0.2 * len(shots)

    return loss


@pytest.mark.parametrize("seed", range(5))
def test_one_demonstration_is_the_best_there_is(seed: int) -> None:
    chosen = select(Puzzle((), 0, fit(seed)), written, among=7, most=1)  # type: ignore[arg-type]
    assert chosen.shots == [min(range(7), key=lambda i: fit(seed)((i,)))]
    assert chosen.loss == chosen.history[-1] == fit(seed)(tuple(chosen.shots))


@pytest.mark.parametrize("seed", range(8))
def test_each_further_one_is_the_best_addition_until_none_helps(seed: int) -> None:
    loss = fit(seed)
    expected: list[int] = []
    while len(expected) < 4:
        ways = {(i, *expected): loss((i, *expected)) for i in range(6) if i not in expected}
        best = min(ways, key=ways.__getitem__)
        if expected and ways[best] >= loss(tuple(expected)):
            break
        expected = list(best)
    seen: list[tuple[int, float]] = []
    puzzle: Any = Puzzle((), 0, loss)
    chosen = select(puzzle, written, 6, 4, lambda step, value, best: seen.append((step, value)))
    assert chosen.shots == expected
    assert chosen.history == [loss(tuple(expected[-n:])) for n in range(1, len(expected) + 1)]
    assert seen == list(enumerate(chosen.history, 1))
    assert all(b < a for a, b in zip(chosen.history, chosen.history[1:], strict=False))


def test_it_stops_where_one_more_does_not_help() -> None:
    lengths: Any = Puzzle((), 0, lambda shots: abs(len(shots) - 2) + 0.01 * sum(shots))
    assert select(lengths, written, 6, 5).shots == [1, 0]
    everything: Any = Puzzle((), 0, lambda shots: -float(len(shots)))
    assert sorted(select(everything, written, 3, 9).shots) == [0, 1, 2]
