"""Geometry over queries: the shape of the cloud of their states, at the last token before the
answer or the mean of a segment.

Every function takes clouds `[query, d_model]` in float64, written out from the publications.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.linear_model import RidgeClassifier

from .numbers import STILL, Array, norm
from .study import Study, Table, Value

PAIRED = ("linear_cka", "procrustes_distance", "mutual_knn", "probe_transfer")
NEIGHBOURS = 10
TIE = 1e-12
"""Cosines nearer to each other than this are equal."""
FEWEST = 10
"""Points below which a dimension is not estimated."""


def rows(study: Study) -> Table:
    """Similarity of the pairs that the study names, dimension of every condition in them."""
    table: Table = {}
    for label in ("last", *study.segments) if study.geometry else ():
        table |= rows_at(study, label)
    return table


def rows_at(study: Study, label: str) -> Table:
    table: Table = {}
    clouds = {
        name: np.stack([*map(settled, np.stack(means(study, name, label), axis=1))])
        for name in dict.fromkeys(name for pair in study.geometry for name in pair)
    }
    n = len(study.answers)
    for a, b in study.geometry:
        for layer, (x, y) in enumerate(zip(clouds[a], clouds[b], strict=True)):
            found = (
                {}
                if one_point(x) or one_point(y)
                else dict(paired(x, y, study.folds, study.labels))
            )
            for name in PAIRED:
                value = Value(found.get(name, float("nan")), n)
                table[name, a, b, "resid_post", layer, None, label] = value
    for name, cloud in clouds.items():
        for layer, x in enumerate(cloud):
            for near in (1, 2, 4, 8):
                measure = "intrinsic_dimension" if near == 1 else f"gride_{near}"
                value = float("nan") if one_point(x) else gride(x, near, 2 * near)
                table[measure, name, None, "resid_post", layer, None, label] = Value(value, n)
    return table


def one_point(x: Array) -> bool:
    """Whether rounding alone tells the states of a cloud apart: such a cloud has no shape."""
    return float(np.linalg.norm(x - x.mean(0))) <= 2 * STILL * float(np.linalg.norm(x))


def settled(x: Array) -> Array:
    """A cloud with a point in the place of those that rounding alone tells from it."""
    size = float(np.sqrt((norm(x) ** 2).mean()))
    found = x.copy()
    for i in range(len(x)):
        twins = [j for j in range(i) if norm(x[i] - x[j]) <= 2 * STILL * size]
        found[i] = x[twins[0]] if twins else x[i]
    return found


def means(study: Study, name: str, label: str) -> list[Array]:
    """The mean state of every query's rows `[layer, d_model]`."""
    queries = zip(study.observed[name], study.rows, strict=True)
    return [states.resid_post[:, rows.of(label)].mean(1) for states, rows in queries]


def paired(
    x: Array, y: Array, folds: Sequence[int], labels: Sequence[str]
) -> Iterator[tuple[str, float]]:
    yield "linear_cka", linear_cka(x, y)
    yield "procrustes_distance", procrustes_distance(x, y)
    yield "mutual_knn", mutual_knn(x, y, min(NEIGHBOURS, (len(x) - 1) // 4))
    yield "probe_transfer", probe_transfer(x, y, folds, labels)


def linear_cka(x: Array, y: Array) -> float:
    """Debiased (Murphy et al. 2405.01012): 1 for identical clouds, about 0 for unrelated ones."""
    kk, kl, ll = hsic(x, x), hsic(x, y), hsic(y, y)
    return kl / np.sqrt(kk * ll) if kk > 0 and ll > 0 else float("nan")


def hsic(x: Array, y: Array) -> float:
    """Unbiased (Song et al. 2012), with linear kernels; entry by entry."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(l, 0.0)
    trace = sum(k[i, j] * l[j, i] for i in range(n) for j in range(n))
    cross = sum(k[i].sum() * l[i].sum() for i in range(n))
    total = trace + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)
    return float(total / (n * (n - 3)))


def procrustes_distance(x: Array, y: Array) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    nuclear = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return float(np.sqrt(max(0.0, 2 - 2 * nuclear)))


def mutual_knn(x: Array, y: Array, k: int) -> float:
    """Mean share of the k nearest neighbours (by cosine) that a query has in both clouds."""
    both = zip(neighbours(x, k), neighbours(y, k), strict=True)
    return float(np.mean([np.minimum(a, b).sum() / k for a, b in both]))


def neighbours(x: Array, k: int) -> Array:
    """By how much `[query, other]` is a neighbour: those that are as near as the last share its
    place."""
    unit = x / norm(x)[:, None]
    found = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        near = {j: float(unit[i] @ unit[j]) for j in range(len(x)) if j != i}
        last = sorted(near.values())[-k]
        closer = [j for j, each in near.items() if each > last + TIE]
        tied = [j for j, each in near.items() if abs(each - last) <= TIE]
        found[i, closer] = 1
        found[i, tied] = (k - len(closer)) / len(tied)
    return found


def gride(x: Array, near: int, far: int) -> float:
    """Maximum likelihood of the dimension from the ratios of the distances to two neighbours
    (Denti et al. 2022); near = 1 and far = 2 is TwoNN, `N / sum ln(r2 / r1)`. Points with a
    duplicate are left out; NaN with few points, or where more than half of all are neighbours."""
    distances = np.array([sorted(norm(x - point))[1:] for point in x])  # [0]: the point itself
    if 2 * far > len(x) - 1 and near > 1:
        return float("nan")
    distances = distances[distances[:, near - 1] > 0]
    if len(distances) < FEWEST:
        return float("nan")
    logs = np.log(distances[:, far - 1] / distances[:, near - 1])

    def slope(d: float) -> float:
        weight = logs / -np.expm1(-d * logs)  # ln(mu) mu^d / (mu^d - 1)
        return len(logs) / d + (far - near - 1) * weight.sum() - (far - 1) * logs.sum()

    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(low)


def probe_transfer(x: Array, y: Array, folds: Sequence[int], labels: Sequence[str]) -> float:
    """Accuracy on y over accuracy on x of ridge classifiers that read the label off x, each tested
    on the fold that it was not trained on; NaN where they read nothing off x."""
    fold, label = np.array(folds), np.array(labels)
    spread = x.std(0)
    right = np.zeros(2)
    for held in np.unique(fold):
        probe = RidgeClassifier(alpha=x.shape[1])
        train, test = fold != held, fold == held
        probe.fit((x[train] - x.mean(0)) / spread, label[train])
        for i, cloud in enumerate((x, y)):
            said = probe.predict((cloud[test] - x.mean(0)) / spread)
            right[i] += (said == label[test]).sum()
    most = max(np.sum(label == each) for each in np.unique(label))
    return float(right[1] / right[0]) if right[0] > most else float("nan")
