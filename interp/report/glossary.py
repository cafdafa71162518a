"""Words of the page that need a definition: where they stand, and in a list at its end.

    defined("Content JS of prompt vs lora")     # the words linked to their definition
    glossary({"content_js", "relative_l2"})     # rows of the list

Definitions of measures are those of the registry (`interp.registry`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from markupsafe import Markup, escape

from interp.registry import MEASURES

_MEASURES = {
    "relative L2": "relative_l2",
    "delta alignment": "delta_alignment",
    "delta norm ratio": "delta_norm_ratio",
    "JS divergence": "js_divergence",
    "KL divergence": "kl_divergence",
    "top-1 agreement": "top1_agreement",
    "Rec2FTP": "rec2ftp",
    "content JS": "content_js",
    "prefix mass": "prefix_mass",
    "re-wiring share": "rewiring_share",
    "re-wiring no prefix can do": "petrov_residual",
    "score-change similarity": "sim_am_delta",
    "content entropy": "content_entropy",
    "router JS": "router_js",
    "information on the answer": "answer_information",
    "decision depth": "decision_depth",
    "linear CKA": "linear_cka",
    "Procrustes distance": "procrustes_distance",
    "mutual kNN": "mutual_knn",
    "probe transfer": "probe_transfer",
    "TwoNN": "intrinsic_dimension",
    "Gride": "gride_2",
    "divergence index": "divergence_index",
    "pseudo-F": "permanova_f",
    "relative damage": "relative_damage",
    "damage": "damage",
    "recovery": "recovery",
    "attribution": "attribution",
    "effect kept": "ablation_kept",
    "internal change": "ablation_change",
    "relative norm": "relative_norm",
    "stable rank": "stable_rank",
    "intruder dimensions": "intruder_dimensions",
    "effective rank": "implicit_rank",
    "state-equivalence depth": "state_equivalence_depth",
}
"""What is written on the page -> the measure that it is."""

_WORDS = {
    "match certificate": "whether the next-token distributions of two conditions agree within a "
    "tolerance set before the run: mean JS divergence and top-1 agreement",
    "headline": "the pair of conditions that the study is about",
    "null control": "a condition that changes something that should not matter, or takes away what "
    "should; its pair says how far apart states lie without the effect",
    "within family": "a pair of two conditions of one kind: how far apart two of a kind are",
    "residual stream": "the vector that a token carries from block to block (resid_post: after a "
    "block)",
    "held-out": "queries that nothing was fitted on",
    "sign flips": "a permutation test: the difference of a query has its sign flipped at random",
    "max-T": "a correction over a map: p is the chance that any cell would be as large",
    "Shapley": "the mean effect of a cause over all orders in which causes can be added",
    "sink": "the first key, to which heads give what they need nowhere else",
    "interchange": "one condition's value is put into the other's run, which goes on from there",
}  # fmt: skip
"""Words that are not measures."""


class Entry(NamedTuple):
    """A word, the name of its place on the page, and what it means."""

    word: str
    slug: str
    meaning: str


def _meaning(measure: str) -> str:
    record = MEASURES[measure]
    low, high = record.range
    ends = f"; {low:.3g} to {high:.3g}".replace("inf", "∞")
    source = f"; {record.source}" if record.source else ""
    return f"{record.definition} ({record.units}{ends}{source})"


def _slug(word: str) -> str:
    return "term-" + re.sub(r"[^a-z0-9]+", "-", word.lower())


TERMS = {
    word.lower(): Entry(word, _slug(word), meaning)
    for word, meaning in sorted(
        [*((word, _meaning(name)) for word, name in _MEASURES.items()), *_WORDS.items()],
        key=lambda entry: entry[0].lower(),
    )
}
"""Word, in small letters -> its entry."""

_FIND = re.compile(
    r"(?<![\w-])(" + "|".join(map(re.escape, sorted(TERMS, key=len, reverse=True))) + r")(?![\w-])",
    re.IGNORECASE,
)


def defined(text: str) -> Markup:
    """The text with each word of `TERMS` linked to its definition where it stands first; markup
    stays what it is."""
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        term = TERMS[match[1].lower()]
        if term.word in seen:
            return match[1]
        seen.add(term.word)
        return (
            f'<a class="term" tabindex="-1" href="#{term.slug}" title="{escape(term.meaning)}">'
            f"{match[1]}</a>"
        )

    pieces = re.split(r"(<[^>]*>)", str(escape(text)))
    return Markup("".join(p if p.startswith("<") else _FIND.sub(link, p) for p in pieces))


def glossary(measured: Collection[str]) -> list[Entry]:
    """The words, then the measures of the run that have no word of their own."""
    titled = [
        Entry(f"{MEASURES[name].title} ({name})", _slug(name), _meaning(name))
        for name in MEASURES
        if name in measured and name not in _MEASURES.values()
    ]
    return [*TERMS.values(), *titled]
