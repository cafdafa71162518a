"""How far inside is a condition from the target, query by query and layer by layer?

target = inside(evaluation, "heldout")               # the target's own states and patterns
found = internal_distance(evaluation.subject, setting, target, size=64)
evaluation.mean("heldout", found.relative_l2)        # the mean by layer, with its interval
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.batch import Batch
from interp.capture import Reader, capture, chunks, keep
from interp.conditions import Setting
from interp.design import BASE
from interp.experiments.trial import estimate_row
from interp.matching.evaluation import TARGET, Evaluation
from interp.matching.examples import Examples, content, examples
from interp.measures.attention import content_js
from interp.measures.certificate import Tolerance, answer_outputs, certificate
from interp.measures.state import gram, relative_l2
from interp.names import Site
from interp.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

OTHER_SEEDS = "other seeds"


class InternalDistance(NamedTuple):
    """How far a condition is from the target on every query.

    `kl` of the outputs, nats. At the query's last token: `outputs`, the JS
    (nats), whether both say the same, and the KL (nats); by layer, `relative_l2` of the residual
    streams, `[0, 2]`, and `content_js` of the patterns, the mean over heads, nats.
    """

    kl: Float[ndarray, " query"]
    outputs: Float[ndarray, "query 3"]
    relative_l2: Float[ndarray, "query layer"]
    content_js: Float[ndarray, "query layer"]


def inside(evaluation: Evaluation, group: str, condition: str = TARGET) -> Examples:
    """What the target (or another condition) says on a group of queries, with its states and
    content patterns at every layer."""
    subject, size = evaluation.subject, evaluation.settings.batch_size
    sites = [Site(n, layer) for n in ("resid_post", "pattern") for layer in range(subject.n_layers)]
    return examples(subject, subject.settings[condition], evaluation.queries[group], size, sites)


def internal_distance(
    subject: Subject, setting: Setting, target: Examples, size: int, cache: Any = None
) -> InternalDistance:
    """How far a setting is from a target that was read `inside`, `size` queries at a time."""
    cache = subject.prefill(setting) if cache is None else cache
    parts = [
        _internal_distance(subject, setting, target.of(some), cache)
        for some in chunks(range(len(target)), size)
    ]
    return InternalDistance(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _internal_distance(
    subject: Subject, setting: Setting, target: Examples, cache: Any
) -> InternalDistance:
    read: dict[Site, Reader] = {s: content if s.name == "pattern" else keep for s in target.inside}
    got = capture(subject, setting, target.batch, cache, read)
    query = torch.arange(len(target), device=subject.device)
    first = torch.searchsorted(target.rows, query)  # matched token: the query's last
    last = target.columns[first]
    streams, patterns = [], []
    for site, wanted in target.inside.items():
        own = got.values[site]
        if site.name == "pattern":
            patterns.append(content_js(_known(own), _known(wanted))[query, :, last].mean(-1))
        else:
            both = [own[query, last], wanted[query, last]]
            streams.append(relative_l2(gram(both), 0, 1))
    one = Batch(last[:, None], torch.ones_like(last), torch.ones_like(last))
    pair = got.logits[query, last][:, None], target.logits[first][:, None]
    said = answer_outputs(*pair, one.last)
    inner = (torch.stack(values, -1).cpu().numpy() for values in (streams, patterns))
    return InternalDistance(target.kl(got.logits).cpu().numpy(), said, *inner)


def _known(content: Tensor) -> Tensor:
    """Content rows, NaN where nothing of a row falls on the query."""
    return content.where(content.sum(-1, keepdim=True) > 0, torch.nan)


def internal_distances(
    evaluation: Evaluation, names: Sequence[str], targets: Mapping[str, Examples]
) -> dict[str, dict[str, InternalDistance]]:
    """How far each of some conditions is from the target, by group; last, under `OTHER_SEEDS`, how
    far its equals are, the mean over them, where there are any."""
    settings, size = evaluation.subject.settings, evaluation.settings.batch_size

    def groups(name: str) -> dict[str, InternalDistance]:
        return {
            g: internal_distance(evaluation.subject, settings[name], t, size)
            for g, t in targets.items()
        }

    found = {name: groups(name) for name in names}
    equals = [groups(name) for name in evaluation.equal_names]
    if equals:
        found[OTHER_SEEDS] = {
            group: InternalDistance(
                *(np.mean(c, axis=0) for c in zip(*(e[group] for e in equals), strict=True))
            )
            for group in targets
        }
    return found


# --- in numbers ----------------------------------------------------------------------------------


def internal_summary(evaluation: Evaluation, group: str, one: InternalDistance) -> dict[str, Any]:
    """A row of a table: strength, match certificate, and the means over layers of what is apart
    inside, that of the residual stream with its interval."""
    texts, settings = [query.text for query in evaluation.queries[group]], evaluation.settings
    tolerance = Tolerance(settings.tolerance_js, settings.tolerance_top1)
    signed = certificate(one.outputs, texts, tolerance)
    said, stream = (
        evaluation.strength(one.kl, group),
        evaluation.mean(group, one.relative_l2.mean(1)),
    )
    return {
        "queries": group,
        "kl": said.kl,
        "strength": said.strength,
        **{name: signed[name] for name in ("mean_js", "p95_js", "top1_agreement", "passed")},
        "relative_l2": stream.value.item(),
        "ci_low": stream.ci_low.item(),
        "ci_high": stream.ci_high.item(),
        "content_js": one.content_js.mean(),
        "n": len(one.kl),
    }


def internal_distance_rows(
    evaluation: Evaluation, found: Mapping[str, Mapping[str, InternalDistance]], measure: str
) -> list[dict[str, Any]]:
    """Rows of `relative_l2` or `content_js`: a panel per group, a series per condition, x the
    layer; `found` has the condition first."""
    return [
        estimate_row(
            f"{group} queries", name, layer, evaluation.mean(group, getattr(one, measure)[:, layer])
        )
        for name, groups in found.items()
        for group, one in groups.items()
        for layer in range(one.relative_l2.shape[1])
    ]


def rewired(table: pd.DataFrame, condition: str) -> float:
    """The largest `petrov_residual` of a head in a run's table, nats: what no prefix can do."""
    rows = table[(table["measure"] == "petrov_residual") & (table["condition"] == condition)]
    return float(rows[(rows["position"] == "last") & (rows["reference"] == BASE)]["value"].max())
