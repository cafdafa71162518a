"""A text prompt that makes the model say what another condition says: greedy coordinate gradient.

    found = search_prompt(scorer, words, SearchBudget(tokens=4, steps=50))
    found.prompt                        # token ids; they survive decoding and encoding again

Zou et al. 2307.15043: at every position the gradient names the tokens that promise most, random
single changes among them are tried, the best one stays. `random_search` draws the same number of
changes blindly: what the gradient is worth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from interp.conditions.placing import TokenIds
from interp.errors import RunError
from interp.matching.prefixes import Scorer
from interp.statistics import generator_of


class SearchBudget(NamedTuple):
    """`tokens` of the prompt; `steps`, and single changes tried in each (`candidates`), drawn from
    the `top` most promising tokens at every position."""

    tokens: int
    steps: int = 40
    candidates: int = 64
    top: int = 32
    seed: int = 0


class SearchResult(NamedTuple):
    """The best prompt, its loss, and the best loss after every step."""

    prompt: TokenIds
    loss: float
    history: list[float]

    def packed(self) -> bytes:
        """As a file has it."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def parse(cls, content: bytes) -> SearchResult:
        """The inverse of `packed`."""
        kept = json.loads(content)
        return cls(tuple(kept["prompt"]), kept["loss"], kept["history"])


_Readable = Callable[[TokenIds], bool]
"""Whether token ids come back when their text is tokenised again."""

_DRAWS = 200
"""Tokens tried at every place of the text that a search starts from."""


def _always(_: TokenIds) -> bool:
    return True


_Draw = Callable[[TokenIds, np.random.Generator], list[TokenIds]]
_OnStep = Callable[[SearchResult], None]
"""Called after every step with the best so far."""


@dataclass(frozen=True)
class Words:
    """The tokens that a prompt may be made of, and which prompts are text. `apart`: a dearer
    condition, asked of the winners alone (that no query merges with them)."""

    ids: Sequence[int]
    readable: _Readable
    apart: _Readable = _always


def search_prompt(
    scorer: Scorer,
    words: Words,
    budget: SearchBudget,
    start: SearchResult | None = None,
    progress: _OnStep = lambda found: None,
) -> SearchResult:
    """Greedy coordinate gradient from random words, or from where an earlier search stopped."""

    @lru_cache(maxsize=1)  # a step that finds nothing better leaves the prompt as it was
    def promising(prompt: TokenIds) -> list[list[int]]:
        ids = torch.tensor(words.ids)
        slopes = scorer.slopes(prompt)[:, ids]
        return ids[slopes.topk(min(budget.top, len(ids)), largest=False).indices].tolist()

    def draw(prompt: TokenIds, generator: np.random.Generator) -> list[TokenIds]:
        return _changed(prompt, promising(prompt), words.readable, budget, generator)

    return _climb(scorer, words, budget, draw, start, progress)


def random_search(
    scorer: Scorer,
    words: Words,
    budget: SearchBudget,
    start: SearchResult | None = None,
    progress: _OnStep = lambda found: None,
) -> SearchResult:
    """The same with changes drawn from all words: as many forward passes, no gradient."""

    def draw(prompt: TokenIds, generator: np.random.Generator) -> list[TokenIds]:
        anything = [words.ids] * len(prompt)
        return _changed(prompt, anything, words.readable, budget, generator)

    return _climb(scorer, words, budget, draw, start, progress)


def _climb(
    scorer: Scorer,
    words: Words,
    budget: SearchBudget,
    draw: _Draw,
    start: SearchResult | None,
    progress: _OnStep,
) -> SearchResult:
    """Every step is seeded by its number, so that a search goes on as if never stopped."""
    found = start or _first(scorer, words, budget)
    prompt, loss, history = found
    for step in range(len(history), budget.steps):
        generator = generator_of(f"coordinate:{budget.seed}:{step}")
        tried = draw(prompt, generator)
        losses = scorer.losses(tried).tolist() if tried else []
        for better in sorted((i for i, x in enumerate(losses) if x < loss), key=losses.__getitem__):
            if words.apart(tried[better]):
                prompt, loss = tried[better], losses[better]
                break
        history = [*history, loss]
        progress(SearchResult(prompt, loss, history))
    return SearchResult(prompt, loss, history)


def _first(scorer: Scorer, words: Words, budget: SearchBudget) -> SearchResult:
    """Random words that are text, one after the other."""
    generator = generator_of(f"coordinate:{budget.seed}:start")
    prompt: TokenIds = ()
    for place in range(budget.tokens):
        drawn = generator.choice(words.ids, _DRAWS).tolist()
        longer = ((*prompt, token) for token in drawn)
        text = (new for new in longer if words.readable(new))
        if place == budget.tokens - 1:
            text = (new for new in text if words.apart(new))
        if (found := next(text, None)) is None:
            raise RunError(
                f"no text of {budget.tokens} tokens that comes back from the tokenizer and stays "
                "apart from the queries was found; choose another --separator or fewer --tokens"
            )
        prompt = found
    return SearchResult(prompt, float(scorer.losses([prompt])[0]), [])


def _changed(
    prompt: TokenIds,
    allowed: Sequence[Sequence[int]],
    readable: _Readable,
    budget: SearchBudget,
    generator: np.random.Generator,
) -> list[TokenIds]:
    """Different single changes of a prompt that are text, `candidates` of them if that many are
    found in four times as many draws."""
    made: dict[TokenIds, None] = {}
    for _ in range(4 * budget.candidates):
        if len(made) == budget.candidates:
            break
        place = int(generator.integers(len(prompt)))
        token = allowed[place][int(generator.integers(len(allowed[place])))]
        changed = (*prompt[:place], token, *prompt[place + 1 :])
        if changed != prompt and changed not in made and readable(changed):
            made[changed] = None
    return list(made)
