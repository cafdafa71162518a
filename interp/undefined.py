"""Why a value can be undefined, in a few words beside it.

    reason("delta_alignment", n=7)      # "one of the two changes the state by rounding alone"
    reason("accuracy", n=0)             # "no query has an answer"

Torch-free.
"""

from __future__ import annotations

from interp.registry import MEASURES

_NO_DIRECTION = "one of the two changes by rounding alone, which has no direction"
_NOTHING_CHANGES = "what it is a share of changes by rounding alone"
_SAME_ALREADY = "source and target say the same already"
_FEW_POINTS = "too few queries, or no spread among them"
_NO_SPREAD = "members of a family do not differ"

REASONS = {
    "accuracy": "no query has an answer",
    "answer_information": "no query has an answer",
    "answer_recovery": _SAME_ALREADY,
    "change_input": _NOTHING_CHANGES,
    "change_pattern": _NOTHING_CHANGES,
    "change_prefix": _NOTHING_CHANGES,
    "change_value": _NOTHING_CHANGES,
    "content_entropy_no_sink": "no token of the query but its first is attended to",
    "content_js_no_sink": "no token of the query but its first is attended to",
    "cosine": "one of the two states is 0",
    "delta_alignment": _NO_DIRECTION,
    "delta_norm_ratio": "the reference changes the state by rounding alone",
    "divergence_index": _NO_SPREAD,
    "entropy_no_sink": "nothing but the first key is attended to",
    "gride_2": _FEW_POINTS,
    "gride_4": _FEW_POINTS,
    "gride_8": _FEW_POINTS,
    "intrinsic_dimension": _FEW_POINTS,
    "linear_cka": _FEW_POINTS,
    "mutual_knn": _FEW_POINTS,
    "own_difference": "the two answers never part",
    "permanova_f": _NO_SPREAD,
    "prefix_mass_no_sink": "nothing but the first key is attended to",
    "probe_transfer": "too few queries of each label, or a probe that learns nothing",
    "procrustes_distance": _FEW_POINTS,
    "rec2ftp": "no query is wrong in base and right in the reference",
    "recovery": _SAME_ALREADY,
    "relative_damage": "base's value does no damage in its place",
    "relative_l2": "both states are 0",
    "rewiring_share": _NOTHING_CHANGES,
    "score_interaction": _NOTHING_CHANGES,
    "score_key": _NOTHING_CHANGES,
    "score_query": _NOTHING_CHANGES,
    "score_weights": _NOTHING_CHANGES,
    "sim_am": "a row of scores is 0, or has a single key",
    "sim_am_delta": _NO_DIRECTION,
    "sim_aou": _NO_DIRECTION,
}
"""Measure -> when it has no value. Of all others: where what it is made of is no number."""

_NO_NUMBER = "what it is made of is not finite"
_NOWHERE = "no query has a token there"


def reason(measure: str, n: int | None = None) -> str:
    """When a measure has no value; `n`: the queries that count, as far as that is known."""
    root = measure.removesuffix("_chance").removesuffix("_calibrated")
    if (found := REASONS.get(root)) is not None:
        return found
    record = MEASURES.get(root)
    return _NOWHERE if n == 0 and record and record.position else _NO_NUMBER
