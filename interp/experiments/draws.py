"""Does what was fitted to a few queries carry to others? Fits on draws of the queries, scored.

    groups = asked(settings, Path("reworded.jsonl"))    # matched, heldout, and one per wording
    evaluation = Evaluation.open(settings, asked=groups)
    scores = carried(evaluation, FitPlan("text", 2), count=4, draws=3)
    strength_of(scores, "fitted", evaluation)                # and "heldout", and every wording

The same draws serve every kind, and those of fewer queries are part of those of more. A wording of
a query has the query's own key: both are resampled together. What a fit is compared with is scored
alike: the target's equals, ordinary text, random words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp.conditions import Neutral, Prompt, prefix_body
from interp.design import BASE
from interp.errors import ConfigError
from interp.experiments.fits import FitPlan, Fitted, fit_plan, spelled
from interp.matching.evaluation import Evaluation, read_emulation_groups
from interp.matching.readable import slot_of
from interp.matching.settings import Emulation
from interp.matching.strength import Strength
from interp.organism.language import NEUTRAL_PASSAGE
from interp.queries import Query, read_queries
from interp.statistics import generator_of, percentile_interval, poisson_weights

FIT_GROUP, HELDOUT, REWORDED = "fitted", "heldout", "reworded"
OTHER_LORA_SEEDS = "other LoRA seeds"
"""The series of the target's equals in tables and figures."""


class ScoredFit(NamedTuple):
    """One fit of several, scored: `keys` name the queries, `kl` and `base` are their divergences
    from the target under the emulation and under base, nats."""

    keys: Sequence[str]
    kl: Float[ndarray, " query"]
    base: Float[ndarray, " query"]


Scores = dict[str, list[ScoredFit]]
"""Group of queries -> how every fit does on it; `reworded` is all wordings together."""


def asked(settings: Emulation, wordings: Path | None = None) -> dict[str, list[Query]]:
    """The groups of queries, held-out ones too; a file of wordings has these in their order, once
    or several times over, and every wording's name (or none) as `label`."""
    heldout, groups = settings.unseen, read_emulation_groups(settings)
    if wordings is None:
        return groups
    whole, written = len(read_queries(heldout)), read_queries(wordings)
    if len(written) % whole:
        raise ConfigError(
            f"{wordings} has {len(written)} queries and {heldout} has {whole}: write the "
            "held-out queries in their order, all of them once for each wording"
        )
    for number, start in enumerate(range(0, len(written), whole), 1):
        name = written[start].label or f"wording {number}"
        groups[name] = written[start : start + len(groups[HELDOUT])]
    return groups


def carried(
    evaluation: Evaluation,
    plan: FitPlan,
    count: int,
    draws: int,
    done: Callable[[], None] = lambda: None,
) -> Scores:
    """Fit to `count` matched queries, `draws` times, each with its own queries and its own start;
    `done` is called after each."""
    fits, chosen = [], []
    for number in range(draws):
        some = drawn_queries(evaluation, count, number)
        one = plan._replace(seed=evaluation.settings.seed + number)
        fits.append(fit_plan(evaluation, evaluation.targets["matched"].of(some), one))
        chosen.append(some)
        done()
    return scored(evaluation, fits, chosen)


def drawn_queries(evaluation: Evaluation, count: int, number: int) -> list[int]:
    """Numbers of some matched queries; a smaller draw is the beginning of a larger one."""
    generator = generator_of(f"queries:{evaluation.settings.seed}:{number}")
    return generator.permutation(len(evaluation.queries["matched"]))[:count].tolist()


def scored(
    evaluation: Evaluation, fits: Iterable[Fitted], chosen: Sequence[Sequence[int]]
) -> Scores:
    """How fits do on the queries that each was fitted to, and on all other groups."""
    found: Scores = {}
    ceiling = {group: evaluation.kl(BASE, group) for group in evaluation.queries}
    for one, some in zip(fits, chosen, strict=True):
        for group, base in ceiling.items():
            kl = one.kl(group)
            if group == "matched":
                keys = [evaluation.queries[group][i].key for i in some]
                found.setdefault(FIT_GROUP, []).append(ScoredFit(keys, kl[some], base[some]))
            else:
                found.setdefault(group, []).append(ScoredFit(_keys_of(evaluation, group), kl, base))
    if names := wordings(evaluation):
        together = zip(*(found[name] for name in names if name in found), strict=True)
        found[REWORDED] = [_together(draws) for draws in together]
    return found


def wordings(evaluation: Evaluation) -> list[str]:
    """The groups that are held-out queries in other words."""
    return [group for group in evaluation.queries if group not in ("matched", HELDOUT)]


def _together(draws: Sequence[ScoredFit]) -> ScoredFit:
    """One fit's scores on several groups as one."""
    keys = [key for draw in draws for key in draw.keys]
    kl, base = (np.concatenate(columns) for columns in zip(*(d[1:] for d in draws), strict=True))
    return ScoredFit(keys, kl, base)


def target_accuracy(evaluation: Evaluation, group: str) -> float:
    """Share of the queries whose answer the target puts first; NaN where none has an answer."""
    wanted, queries = evaluation.targets[group], evaluation.queries[group]
    first = np.unique(wanted.rows.cpu().numpy(), return_index=True)[1]
    said = wanted.logits[first].argmax(-1).tolist()
    hits = [said[i] == query.answer_ids[0] for i, query in enumerate(queries) if query.answer_ids]
    return float(np.mean(hits)) if hits else float("nan")


def _keys_of(evaluation: Evaluation, group: str) -> list[str]:
    """The keys of the queries; those of a wording are the held-out queries'."""
    return [f"{HELDOUT}:{i}" for i in range(len(evaluation.queries[group]))]


# --- what a fit is compared with ------------------------------------------------------------------


def equal_scores(evaluation: Evaluation) -> Scores:
    """The target's equals (other seeds): how far the target itself is a matter of chance."""
    fits = [
        Fitted.of(evaluation, evaluation.subject.settings[name]) for name in evaluation.equal_names
    ]
    return scored(evaluation, fits, [_everything(evaluation)] * len(fits))


def neutral_scores(evaluation: Evaluation, tokens: int, draws: int) -> Scores:
    """Windows of ordinary text that asks for nothing, so many tokens long."""
    like = Prompt(text=NEUTRAL_PASSAGE)
    passage = prefix_body(Neutral(like), evaluation.subject.tokenizer)
    tail = slot_of(evaluation, evaluation.settings.separator).after
    starts = generator_of(f"neutral:{evaluation.settings.seed}").integers(0, len(passage), draws)
    windows = [(passage[start:] + passage)[:tokens] for start in starts.tolist()]
    fits = [spelled(evaluation, (*window, *tail)) for window in windows]
    return scored(evaluation, fits, [_everything(evaluation)] * draws)


def random_scores(evaluation: Evaluation, tokens: int, draws: int) -> Scores:
    """Random words: the texts that the search starts from."""
    plan = FitPlan("text", tokens, steps=0)
    return carried(evaluation, plan, len(evaluation.queries["matched"]), draws)


def _everything(evaluation: Evaluation) -> list[int]:
    """Every matched query."""
    return list(range(len(evaluation.queries["matched"])))


# --- strength over several fits -------------------------------------------------------------------


def strength_of(scores: Scores, group: str, evaluation: Evaluation) -> Strength:
    """Over draws and queries."""
    return over_draws(scores[group], evaluation.settings.bootstrap, evaluation.settings.seed)


def over_draws(draws: Sequence[ScoredFit], replicates: int, seed: int) -> Strength:
    """The strength over several fits; its interval resamples fits and queries both."""
    values = by_replicate(draws, replicates, seed)
    low, high = map(float, percentile_interval(values[1:]))
    kl, base = (np.concatenate([draw[i] for draw in draws]).mean() for i in (1, 2))
    n = len({key for draw in draws for key in draw.keys})
    return Strength(float(kl), float(values[0]), low, high, float(base), n)


def by_replicate(
    draws: Sequence[ScoredFit], replicates: int, seed: int
) -> Float[ndarray, " replicate"]:
    """Strength under every replicate; the first is the data itself. A query counts as often as its
    fit times as often as itself (Owen & Eckles 2012, bootstrap of crossed factors), and as the
    weights depend on keys alone, replicates of different scores may be subtracted."""
    fits = np.ones((len(draws), replicates + 1))
    if len(draws) > 1:
        fits = poisson_weights([f"draw:{i}" for i in range(len(draws))], replicates, seed)
    parts = [
        fit * (poisson_weights(draw.keys, replicates, seed).T @ np.stack([draw.kl, draw.base]).T).T
        for fit, draw in zip(fits, draws, strict=True)
    ]
    kl, base = np.sum(parts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(base > 0, 1 - kl / base, np.nan)


def strength_lost(
    seen: Sequence[ScoredFit], unseen: Sequence[ScoredFit], replicates: int, seed: int
) -> tuple[float, float, float]:
    """Strength lost from some queries to others, with its interval."""
    fall = by_replicate(seen, replicates, seed) - by_replicate(unseen, replicates, seed)
    low, high = percentile_interval(fall[1:])
    return float(fall[0]), float(low), float(high)
