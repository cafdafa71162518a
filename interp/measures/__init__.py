"""What is measured: pure functions of tensors, one file per section of the definitions.

`output`: distributions of the next token. `state`: residual stream and what is written to it,
through the condition Gram. `attention`: patterns and scores of the query's own keys. Functions
give one value per query token (NaN where it is undefined); `interp.statistics` averages.
"""

from __future__ import annotations

import torch

from interp import noise

UNITS = {
    "kl_divergence": "nats",
    "js_divergence": "nats",
    "top1_agreement": "share",
    "sequence_kl": "nats",
    "answer_agreement": "share",
    "own_agreement": "share",
    "own_difference": "tokens",
    "accuracy": "share",
    "rec2ftp": "share",
    "relative_l2": "ratio",
    "cosine": "cosine",
    "delta_alignment": "cosine",
    "delta_norm_ratio": "ratio",
    "sim_aou": "cosine",
    "prefix_mass": "share",
    "prefix_mass_no_sink": "share",
    "entropy": "nats",
    "entropy_no_sink": "nats",
    "content_entropy": "nats",
    "content_entropy_no_sink": "nats",
    "content_js": "nats",
    "content_js_no_sink": "nats",
    "sim_am": "cosine",
    "sim_am_delta": "cosine",
    "router_js": "nats",
    "expert_overlap": "share",
    "rewiring_share": "share",
    "petrov_residual": "nats",
    "change_pattern": "share",
    "change_value": "share",
    "change_prefix": "share",
    "change_input": "share",
    "score_query": "share",
    "score_key": "share",
    "score_weights": "share",
    "score_interaction": "share",
    "lens_js": "nats",
    "lens_kl": "nats",
    "answer_information": "nats",
    "decision_depth": "layer",
    "influence": "logits",
    "linear_cka": "share",
    "procrustes_distance": "distance",
    "mutual_knn": "share",
    "probe_transfer": "ratio",
    "intrinsic_dimension": "dimensions",
    "gride_2": "dimensions",
    "gride_4": "dimensions",
    "gride_8": "dimensions",
    "divergence_index": "ratio",
    "permanova_f": "ratio",
    "damage": "nats",
    "damage_random_direction": "nats",
    "damage_random_difference": "nats",
    "relative_damage": "ratio",
    "recovery": "share",
    "recovery_random_direction": "share",
    "recovery_random_difference": "share",
    "answer_change": "nats",
    "answer_recovery": "share",
    "interchange_depth": "layer",
    "state_equivalence_depth": "layer",
    "function_vector_recovery": "share",
    "function_vector_null": "share",
    "function_vector_random": "share",
    "attribution": "nats",
    "ablation_damage": "nats",
    "ablation_kept": "share",
    "ablation_change": "ratio",
    "singular_value": "norm",
    "relative_norm": "ratio",
    "stable_rank": "dimensions",
    "intruder_dimensions": "count",
    "subspace_overlap_left": "share",
    "subspace_overlap_left_chance": "share",
    "subspace_overlap_right": "share",
    "subspace_overlap_right_chance": "share",
    "implicit_rank": "dimensions",
    "implicit_rank_chance": "dimensions",
    "implicit_rank_shuffled": "dimensions",
    "implicit_cosine": "cosine",
    "implicit_cosine_chance": "cosine",
    "implicit_cosine_shuffled": "cosine",
    "implicit_overlap_left": "share",
    "implicit_overlap_left_chance": "share",
    "implicit_overlap_left_random": "share",
    "implicit_overlap_right": "share",
    "implicit_overlap_right_chance": "share",
}
"""Measure -> units, in the order in which a reader meets them."""


NOISE = {getattr(torch, name): size for name, size in noise.NOISE.items()}
"""`interp.noise.NOISE` by dtype; what it means for a measure is `interp.noise.floor`."""


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The dtype sums are made in: float64 (float32 where the device has none)."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
