"""What measures are called, where heads carry them, and which have their zero in the middle.

    NAMES["content_js"]            # "content JS divergence"
    title("content_js", rows)      # "content JS divergence [nats]"

Names of columns are for tables and code; these are for axes and titles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

HEAD_SITES = {
    "content_js": "pattern",
    "content_js_no_sink": "pattern",
    "prefix_mass": "pattern",
    "prefix_mass_no_sink": "pattern",
    "entropy": "pattern",
    "entropy_no_sink": "pattern",
    "content_entropy": "pattern",
    "content_entropy_no_sink": "pattern",
    "rewiring_share": "pattern",
    "petrov_residual": "pattern",
    "sim_am": "attn_scores",
    "sim_am_delta": "attn_scores",
    "relative_l2": "z",
    "cosine": "z",
    "delta_alignment": "z",
    "delta_norm_ratio": "z",
    "change_pattern": "z",
    "change_value": "z",
    "change_prefix": "z",
    "change_input": "z",
    "score_query": "attn_scores",
    "score_key": "attn_scores",
    "score_weights": "attn_scores",
    "score_interaction": "attn_scores",
    "influence": "z",
    "divergence_index": "z",
}
"""Where each measure of a head is found (`divergence_index` also at `pattern`)."""

SITES = {
    "resid_post": "residual stream",
    "attn_out": "attention output",
    "mixer_out": "mixer output",
    "mlp_out": "MLP output",
    "router": "mixture of experts",
    "z": "head outputs",
    "pattern": "attention patterns",
}

NAMES = {
    "relative_l2": "relative L2 distance",
    "cosine": "cosine similarity",
    "delta_alignment": "delta alignment (cosine)",
    "delta_norm_ratio": "delta norm ratio",
    "sim_aou": "SimAOU (cosine)",
    "content_js": "content JS divergence",
    "content_js_no_sink": "content JS divergence without the sink",
    "prefix_mass": "prefix mass",
    "prefix_mass_no_sink": "prefix mass without the sink",
    "entropy": "attention entropy",
    "entropy_no_sink": "attention entropy without the sink",
    "content_entropy": "content entropy",
    "content_entropy_no_sink": "content entropy without the sink",
    "sim_am": "score similarity (cosine)",
    "sim_am_delta": "score-change similarity (cosine)",
    "router_js": "router JS divergence",
    "expert_overlap": "overlap of chosen experts",
    "rewiring_share": "re-wiring share",
    "petrov_residual": "re-wiring no prefix can do",
    "change_pattern": "pattern",
    "change_value": "values",
    "change_prefix": "prefix",
    "change_input": "inputs",
    "score_query": "queries' inputs",
    "score_key": "keys' inputs",
    "score_weights": "weights",
    "score_interaction": "only together",
    "js_divergence": "JS divergence",
    "top1_agreement": "top-1 agreement",
    "kl_divergence": "KL divergence",
    "rec2ftp": "Rec2FTP",
    "sequence_kl": "sequence KL, forced",
    "answer_agreement": "whole answers the same, forced",
    "own_agreement": "own answers the same",
    "own_difference": "first token where own answers part",
    "lens_js": "logit-lens JS divergence",
    "lens_kl": "logit-lens KL to own output",
    "answer_information": "information on the answer",
    "decision_depth": "decision depth",
    "influence": "influence on the answer's logit",
    "linear_cka": "linear CKA (debiased)",
    "procrustes_distance": "Procrustes distance",
    "mutual_knn": "mutual kNN",
    "probe_transfer": "probe transfer",
    "intrinsic_dimension": "TwoNN",
    "gride_2": "Gride, scale 2",
    "gride_4": "Gride, scale 4",
    "gride_8": "Gride, scale 8",
    "divergence_index": "divergence index",
    "permanova_f": "PERMANOVA pseudo-F",
    "ablation_damage": "damage",
    "ablation_kept": "effect kept",
    "ablation_change": "internal change",
    "attribution": "attribution (first order)",
    "function_vector_recovery": "recovery by the function vector",
    "damage": "damage",
    "relative_damage": "relative damage",
    "recovery": "recovery",
    "singular_value": "singular value",
    "relative_norm": "relative norm",
    "stable_rank": "stable rank",
    "intruder_dimensions": "intruder dimensions",
    "subspace_overlap_left": "overlap of what is written",
    "subspace_overlap_right": "overlap of what is read",
    "implicit_rank": "effective rank",
    "implicit_cosine": "mean cosine of two queries' updates",
    "implicit_overlap_left": "overlap with the LoRA, written",
    "implicit_overlap_right": "overlap with the LoRA, read",
}

SIGNED = {
    "cosine",
    "delta_alignment",
    "sim_aou",
    "sim_am",
    "sim_am_delta",
    "influence",
    "change_pattern",
    "change_value",
    "change_prefix",
    "change_input",
    "score_query",
    "score_key",
    "score_weights",
    "score_interaction",
    "recovery",
    "attribution",
    "answer_change",
}
"""Measures whose zero is the middle of their range."""

COSINES = {"cosine", "delta_alignment", "sim_aou", "sim_am", "sim_am_delta"}
"""Measures between -1 and 1."""


def units(frame: pd.DataFrame) -> str:
    """` [nats]`, or nothing for a plain number and where the name already says it."""
    plain = ("", "1", "cosine", "distance")
    found = [u for u in frame["units"].dropna().unique() if u not in plain]
    return f" [{found[0]}]" if found else ""


def title(measure: str, frame: pd.DataFrame) -> str:
    """The measure as an axis names it."""
    return NAMES.get(measure, measure) + units(frame)
