"""Geometry over queries: the shape of the cloud of their states at the last token.

Every function takes clouds `[query, d_model]` in float64, written out from the publications.
"""

from __future__ import annotations

import numpy as np

from .numbers import Array, norm


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
    shared = [len(a & b) / k for a, b in zip(neighbours(x, k), neighbours(y, k), strict=True)]
    return float(np.mean(shared))


def neighbours(x: Array, k: int) -> list[set[int]]:
    unit = x / norm(x)[:, None]
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        found.append(set(sorted(others, key=lambda j: -float(unit[i] @ unit[j]))[:k]))
    return found


def gride(x: Array, near: int, far: int) -> float:
    """Maximum likelihood of the dimension from the ratios of the distances to two neighbours
    (Denti et al. 2022, eq. 8); near = 1 and far = 2 is TwoNN, `N / sum ln(r2 / r1)`."""
    if far >= len(x):
        return float("nan")
    distances = np.array([sorted(norm(x - point))[1:] for point in x])  # [0]: the point itself
    logs = np.log(distances[:, far - 1] / distances[:, near - 1])

    def slope(d: float) -> float:
        weight = logs / -np.expm1(-d * logs)  # ln(mu) mu^d / (mu^d - 1)
        return len(x) / d + (far - near - 1) * weight.sum() - (far - 1) * logs.sum()

    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(low)
