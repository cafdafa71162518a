"""Does what was fitted to a few queries carry to others? Fits on draws of the queries, scored.

    groups = asked(settings, Path("reworded.jsonl"))    # matched, heldout, and one per wording
    bench = Bench.open(settings, asked=groups)
    scores = carried(bench, Plan("text", 2), count=4, draws=3)
    over_draws(scores["fitted"], 200, 0)                # and "heldout", and every wording

The same draws serve every kind, and those of fewer queries are part of those of more. A wording of
a query has the query's own key: both are resampled together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from interp.design import BASE
from interp.errors import ConfigError
from interp.matching.bench import Bench, read_emulation_groups
from interp.matching.fits import FitPlan, Fitted, fit_plan
from interp.matching.settings import Emulation
from interp.matching.strength import ScoredFit
from interp.queries import Query, read_queries
from interp.statistics import generator_of

FIT_GROUP, HELDOUT, REWORDED = "fitted", "heldout", "reworded"

Scores = dict[str, list[ScoredFit]]
"""Group of queries -> how every fit does on it; `reworded` is all wordings together."""


def asked(settings: Emulation, wordings: Path | None) -> dict[str, list[Query]]:
    """The groups of queries; a file of wordings has the held-out queries in their order, once or
    several times over, and every wording's name (or none) as `label`."""
    groups = read_emulation_groups(settings)
    if HELDOUT not in groups:
        raise ConfigError("unseen queries are asked for: give --heldout")
    if wordings is None:
        return groups
    whole, written = len(read_queries(str(settings.heldout))), read_queries(wordings)
    if len(written) % whole:
        raise ConfigError(
            f"{wordings} has {len(written)} queries and {settings.heldout} has {whole}: write the "
            "held-out queries in their order, all of them once for each wording"
        )
    for number, start in enumerate(range(0, len(written), whole), 1):
        name = written[start].label or f"wording {number}"
        groups[name] = written[start : start + len(groups[HELDOUT])]
    return groups


def carried(
    bench: Bench,
    plan: FitPlan,
    count: int,
    draws: int,
    done: Callable[[], None] = lambda: None,
) -> Scores:
    """Fit to `count` matched queries, `draws` times, each with its own queries and its own start;
    `done` is called after each."""
    fits, chosen = [], []
    for number in range(draws):
        some = drawn_queries(bench, count, number)
        one = plan._replace(seed=bench.settings.seed + number)
        fits.append(fit_plan(bench, bench.wanted["matched"].of(some), one))
        chosen.append(some)
        done()
    return scored(bench, fits, chosen)


def drawn_queries(bench: Bench, count: int, number: int) -> list[int]:
    """Numbers of some matched queries; a smaller draw is the beginning of a larger one."""
    generator = generator_of(f"queries:{bench.settings.seed}:{number}")
    return generator.permutation(len(bench.queries["matched"]))[:count].tolist()


def scored(bench: Bench, fits: Iterable[Fitted], chosen: Sequence[Sequence[int]]) -> Scores:
    """How fits do on the queries that each was fitted to, and on all other groups."""
    found: Scores = {}
    ceiling = {group: bench.kl(BASE, group) for group in bench.queries}
    for one, some in zip(fits, chosen, strict=True):
        for group, base in ceiling.items():
            kl = bench.kl(one.setting, group, one.cache)
            if group == "matched":
                keys = [bench.queries[group][i].key for i in some]
                found.setdefault(FIT_GROUP, []).append(ScoredFit(keys, kl[some], base[some]))
            else:
                found.setdefault(group, []).append(ScoredFit(_keys_of(bench, group), kl, base))
    if names := wordings(bench):
        together = zip(*(found[name] for name in names if name in found), strict=True)
        found[REWORDED] = [_together(draws) for draws in together]
    return found


def wordings(bench: Bench) -> list[str]:
    """The groups that are held-out queries in other words."""
    return [group for group in bench.queries if group not in ("matched", HELDOUT)]


def _together(draws: Sequence[ScoredFit]) -> ScoredFit:
    """One fit's scores on several groups as one."""
    keys = [key for draw in draws for key in draw.keys]
    kl, base = (np.concatenate(columns) for columns in zip(*(d[1:] for d in draws), strict=True))
    return ScoredFit(keys, kl, base)


def target_accuracy(bench: Bench, group: str) -> float:
    """Share of the queries whose answer the target puts first; NaN where none has an answer."""
    wanted, queries = bench.wanted[group], bench.queries[group]
    first = np.unique(wanted.rows.cpu().numpy(), return_index=True)[1]
    said = wanted.logits[first].argmax(-1).tolist()
    hits = [said[i] == query.answer_ids[0] for i, query in enumerate(queries) if query.answer_ids]
    return float(np.mean(hits)) if hits else float("nan")


def _keys_of(bench: Bench, group: str) -> list[str]:
    """The keys of the queries; those of a wording are the held-out queries'."""
    return [f"{HELDOUT}:{i}" for i in range(len(bench.queries[group]))]


def everything(bench: Bench) -> list[int]:
    """Every matched query."""
    return list(range(len(bench.queries["matched"])))
