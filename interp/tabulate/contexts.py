"""How far the keys and values of what precedes the query are apart in two conditions.

    context_rows(caches, layers=(0, 1, 2), pairs=[("prefix_0", "prefix_1")])

They are those of the cache (keys behind the rotary embedding), compared where both have as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interp.measures.state import cosine, gram, relative_l2
from interp.registry import MEASURES

DISTANCES = {"relative_l2": relative_l2, "cosine": cosine}
_PARTS = {"k": "keys", "v": "values"}


def context_rows(
    caches: Mapping[str, Any], layers: Sequence[int], pairs: Sequence[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """Rows at position `context`, by layer (a number of `layers`) and key/value head: means over
    its tokens. They are of no queries, so `n`, `queries` and the interval are null."""
    for a, b in pairs:
        if caches[a] is None or caches[b] is None:
            continue
        for site, part in _PARTS.items():
            for number, layer in enumerate(layers):
                x, y = (getattr(caches[name].layers[layer], part) for name in (a, b))
                if x.shape != y.shape:
                    continue
                g = gram([x, y])
                for measure, distance in DISTANCES.items():
                    for head, value in enumerate(distance(g, 0, 1)[0].mean(-1).tolist()):
                        yield {
                            "measure": measure,
                            "condition": a,
                            "reference": b,
                            "site": site,
                            "layer": number,
                            "head": head,
                            "position": "context",
                            "value": value,
                            "units": MEASURES[measure].units,
                        }
