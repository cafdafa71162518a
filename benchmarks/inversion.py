"""Is the gradient worth its price, and how much faster is a candidate than a full sequence?

A text prompt is to make the bundled model say what a LoRA makes it say. Coordinate gradient and
random search start from the same text; random search gets as many more candidates a step as the
gradient costs, in time as measured here and never less than `GRADIENT` candidates (a forward and a
backward pass on one prompt). Then the same candidates are scored by prefix, cached and repeated
over the queries, and as plain full sequences; both must agree before a time counts.

    python benchmarks/inversion.py          # prints the ratios, writes benchmarks/inversion.json
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from interp.conditions.placing import TokenIds
from interp.design import BASE
from interp.matching.coordinate import (
    SearchBudget,
    SearchResult,
    Words,
    random_search,
    search_prompt,
)
from interp.matching.evaluation import Evaluation
from interp.matching.prefixes import Scorer
from interp.matching.readable import readable_words, scorer, slot_of
from interp.matching.settings import Emulation, bundled_emulation
from interp.measures.output import kl_divergence
from interp.statistics import generator_of

LENGTHS, SEEDS, STEPS, CANDIDATES, TOP, QUERIES = (1, 2, 4, 8), range(5), 12, 24, 16, 24
GRADIENT = 3
CROWD, LONG, ROUNDS = 64, 32, 3
"""Candidates that are timed, how many tokens each has, and how often."""


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and what came of it."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def drawn(allowed: Words, tokens: int, count: int) -> list[TokenIds]:
    """Random candidates."""
    ids = generator_of(f"benchmark:{tokens}").choice(allowed.ids, (count, tokens))
    return [tuple(row) for row in ids.tolist()]


def price(score: Scorer, allowed: Words, tokens: int) -> int:
    """How many candidates cost as much as one gradient, rounded up."""
    some = drawn(allowed, tokens, CANDIDATES)
    gradient = min(timed(lambda: score.slopes(some[0]))[0] for _ in range(5))
    forward = min(timed(lambda: score.losses(some))[0] for _ in range(5))
    return max(GRADIENT, math.ceil(CANDIDATES * gradient / forward))


def race(score: Scorer, allowed: Words) -> list[dict[str, Any]]:
    """Both searches by prompt length: final losses (nats) over seeds, at equal cost."""
    rows = []
    for tokens in LENGTHS:
        extra = price(score, allowed, tokens)
        guided: list[SearchResult] = []
        blind: list[SearchResult] = []
        for seed in SEEDS:
            budget = SearchBudget(tokens, STEPS, CANDIDATES, TOP, seed)
            guided.append(search_prompt(score, allowed, budget))
            fair = budget._replace(candidates=CANDIDATES + extra)
            blind.append(random_search(score, allowed, fair))
        gradient, random = ([one.loss for one in runs] for runs in (guided, blind))
        rows.append(
            {
                "tokens": tokens,
                "gradient_costs_candidates": extra,
                "coordinate_gradient_nats": [round(loss, 4) for loss in gradient],
                "random_search_nats": [round(loss, 4) for loss in random],
                "ratio": round(float(np.mean(random) / np.mean(gradient)), 1),
                "wins": sum(a < b for a, b in zip(gradient, random, strict=True)),
            }
        )
        print(json.dumps(rows[-1]))
    return rows


def plain(evaluation: Evaluation, prefixes: Sequence[TokenIds], tail: TokenIds) -> torch.Tensor:
    """The divergences from full sequences in Hugging Face, a candidate's queries at a time."""
    wanted, before = evaluation.targets["matched"], evaluation.subject.settings[BASE].prefix
    hf = AutoModelForCausalLM.from_pretrained(evaluation.settings.model).eval()
    found = []
    for prefix in prefixes:
        whole = torch.tensor([*before, *prefix, *tail]).expand(len(wanted), -1)
        with torch.no_grad():
            logits = hf(torch.cat([whole, wanted.batch.ids], 1), use_cache=False).logits
        rows = logits[wanted.rows, whole.shape[1] + wanted.columns]
        total = torch.zeros(len(wanted), dtype=torch.float64)
        found.append(
            total.index_add(0, wanted.rows, kl_divergence(wanted.logits, rows) * wanted.share)
        )
    return torch.stack(found)


def speed(evaluation: Evaluation, score: Scorer, allowed: Words) -> dict[str, Any]:
    """Seconds for the same candidates, by turns, the best of each."""
    some = drawn(allowed, LONG, CROWD)
    seconds: dict[str, list[float]] = {"interp": [], "transformers": []}
    for _ in range(ROUNDS):
        fast, got = timed(lambda: score.kl(some))
        slow, expected = timed(lambda: plain(evaluation, some, score.tail))
        seconds["interp"].append(fast)
        seconds["transformers"].append(slow)
    worst = float((got - expected).abs().max())
    if worst > 1e-4:
        raise SystemExit(f"the two ways disagree by {worst:.2g} nats: no time counts")
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "what": f"{CROWD} candidates of {LONG} tokens, {len(score.target)} queries",
        "seconds": {name: round(value, 3) for name, value in best.items()},
        "ratio": round(best["transformers"] / best["interp"], 1),
        "largest_difference_nats": worst,
    }


def main() -> None:
    """Race and time, keep both."""
    settings = Emulation(**bundled_emulation(Path("unused")) | {"limit": QUERIES, "floor": ()})
    evaluation = Evaluation.open(settings)
    slot = slot_of(evaluation, settings.separator)
    allowed = readable_words(evaluation, slot)
    score = scorer(evaluation, evaluation.targets["matched"], slot)
    rows = race(score, allowed)
    scoring = speed(evaluation, score, allowed)
    kept = {
        "what": f"{len(SEEDS)} seeds, {STEPS} steps of {CANDIDATES} candidates, {QUERIES} queries",
        "base_nats": round(float(evaluation.kl(BASE, "matched").mean()), 4),
        "by_length": rows,
        "scoring": scoring,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    ratios = [row["ratio"] for row in rows]
    wins, races = sum(row["wins"] for row in rows), len(rows) * len(SEEDS)
    print(
        f"random search is left with {min(ratios)} to {max(ratios)} times the divergence; ", end=""
    )
    print(f"coordinate gradient wins {wins} of {races}")
    print(f"a candidate is scored {scoring['ratio']} times as fast as by full sequences")


if __name__ == "__main__":
    main()
