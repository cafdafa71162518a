"""One head, closely, under every condition.

    view = head_view(subject, Head(3, 2), pairs, queries, batch_size=32)

Reads the pattern of that one layer only; blocks above it do not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.capture import capture, chunks
from interp.conditions import Setting
from interp.errors import SubjectError
from interp.measures import wide
from interp.measures.attention import content_js, read_rows
from interp.names import Head, Site
from interp.queries import Encoded
from interp.runs.heads import HeadView
from interp.subject import Batch, Subject

_Masses = dict[tuple[str, int], float]
"""Attention by key: (`prefix` or `query`, place counted from the start of that part)."""

_EXAMPLES, _MOST_ATTENDED = 4, 10
_VARIOUS = "(the query's own)"
"""Stands for a key whose token differs from query to query."""


class _Seen(NamedTuple):
    """One condition's head on one chunk: the prefix mass and content rows, and the mass that each
    query's last token puts on every key (prefix keys, then the query's own)."""

    prefix_mass: Tensor
    content: Tensor
    last_prefix: Tensor
    last_own: Tensor


def head_view(
    subject: Subject,
    head: Head,
    pairs: Sequence[tuple[str, str]],
    queries: Sequence[Encoded],
    batch_size: int,
) -> HeadView:
    """Patterns of a few example queries, content JS of all, and what is attended most."""
    layers = subject.anatomy.layers("pattern")
    if not (head.layer in layers and head.head < subject.n_heads):
        where = ", ".join(map(str, layers)) or "none that is hooked"
        raise SubjectError(
            f"no head {head}: {subject.name} has heads 0 to {subject.n_heads - 1} in layers {where}"
        )
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    js: list[np.ndarray] = []
    masses: dict[str, _Masses] = {n: {} for n in subject.settings}
    examples: dict[str, list[np.ndarray]] = {n: [] for n in subject.settings}
    for chunk in chunks(queries, batch_size):
        batch = Batch.of(chunk, subject.device)
        seen = {name: _look(subject, name, head, batch, caches[name]) for name in subject.settings}
        rows = torch.arange(len(chunk), device=subject.device)
        last = [content_js(seen[a].content, seen[b].content)[rows, 0, batch.lengths - 1]
                for a, b in pairs]  # fmt: skip
        js.append(torch.stack(last).cpu().numpy())
        for name, one in seen.items():
            n_prefix = subject.settings[name].n_prefix
            _add_masses(masses[name], one, n_prefix, batch.lengths.tolist())
            space = max(0, _EXAMPLES - len(examples[name]))
            examples[name] += _examples(one, batch)[:space]
    return HeadView(
        head=head,
        conditions=list(subject.settings),
        pairs=list(pairs),
        tokens=[token_texts(subject, query.ids) for query in queries[:_EXAMPLES]],
        patterns=_padded([examples[name] for name in subject.settings]),
        content_js=np.concatenate(js, axis=1),
        attended=[r for name, mass in masses.items() for r in _most(subject, name, mass, queries)],
        texts=tuple(query.text for query in queries[:_EXAMPLES]),
    )


def _look(subject: Subject, name: str, head: Head, batch: Batch, cache: Any) -> _Seen:
    site = Site("pattern", head.layer)
    rows = torch.arange(len(batch.ids), device=batch.ids.device)

    def read(pattern: Tensor) -> _Seen:
        own = pattern[:, head.head : head.head + 1]
        attention = read_rows(own)
        last = wide(own[rows, 0, batch.lengths - 1])
        length = own.shape[-2]
        return _Seen(attention.prefix_mass, attention.content, last[:, :-length], last[:, -length:])

    setting, above = subject.settings[name], head.layer + 1
    return capture(subject, setting, batch, cache, {site: read}, end=above, last=True).values[site]


def _examples(one: _Seen, batch: Batch) -> list[np.ndarray]:
    """`[query_pos, 1 + query_pos]` per query: prefix mass, then the query's own keys."""
    mass = one.prefix_mass[:, 0, :, None]
    full = torch.cat([mass, one.content[:, 0] * (1 - mass)], dim=-1).cpu().numpy()
    return [full[i, :n, : n + 1] for i, n in enumerate(batch.lengths.tolist())]


def _padded(patterns: list[list[np.ndarray]]) -> np.ndarray:
    longest = max(len(pattern) for group in patterns for pattern in group)
    filled = np.full((len(patterns), len(patterns[0]), longest, longest + 1), np.nan, np.float32)
    for condition, group in enumerate(patterns):
        for query, pattern in enumerate(group):
            filled[condition, query, : pattern.shape[0], : pattern.shape[1]] = pattern
    return filled


def _add_masses(masses: _Masses, one: _Seen, n_prefix: int, lengths: Sequence[int]) -> None:
    """Add up what the chunk's last tokens give to every key, by its place."""
    prefix = one.last_prefix.sum(0).tolist()
    offset = n_prefix - len(prefix)  # a sliding window may not reach the prefix's first tokens
    for position, mass in enumerate(prefix, offset):
        masses["prefix", position] = masses.get(("prefix", position), 0.0) + mass
    for length, own in zip(lengths, one.last_own.tolist(), strict=True):
        for position in range(length):
            masses["query", position] = masses.get(("query", position), 0.0) + own[position]


def _most(
    subject: Subject, name: str, masses: _Masses, queries: Sequence[Encoded]
) -> list[dict[str, Any]]:
    """The most attended keys of a condition; what differs between queries is named by place."""
    prefix = context_tokens(subject, subject.settings[name])
    rows = []
    for (where, place), mass in sorted(masses.items(), key=lambda item: -item[1])[:_MOST_ATTENDED]:
        if where == "prefix":
            token = prefix[place]
        else:
            ids = {query.ids[place] for query in queries if place < len(query.ids)}
            token = token_texts(subject, list(ids))[0] if len(ids) == 1 else _VARIOUS
        share = mass / len(queries)
        rows.append(
            {"condition": name, "token": token, "where": where, "position": place, "mass": share}
        )
    return rows


def context_tokens(subject: Subject, setting: Setting) -> list[str]:
    """What stands before the query; virtual tokens, which have no text, by their number."""
    virtual = [f"<virtual {i}>" for i in range(setting.n_prefix - len(setting.prefix))]
    return virtual + token_texts(subject, setting.prefix)


def token_texts(subject: Subject, ids: Sequence[int]) -> list[str]:
    """Tokens as text, each decoded by itself."""
    return [str(subject.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]
