"""One record per measure: its name, units, definition and source, and how it is rounded and tested.

    MEASURES["content_js"].title            # "content JS divergence"
    MEASURES["content_js"].units            # "nats"
    named(rounding="cosine")                # the measures that are cosines

A new measure is a record here and a key where it is computed; tables, tests, noise floors, figures
and the documentation read the rest from it. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log
from typing import Literal

Rounding = Literal["ratio", "divergence", "cosine", "unbounded", "count"]
Position = Literal["token", "answer token", "answer", ""]
Bounds = tuple[float, float]

ANY, JS, PART = (-inf, inf), (0.0, log(2)), (-inf, 1.0)
"""Ranges: any number; a JS divergence, nats; a part of an effect, below 0 where it does harm."""


@dataclass(frozen=True)
class Measure:
    """What there is to know of a measure.

    `title`: for axes and titles. `head`: the site at which heads have it, where they do.
    `rounding`: how rounding moves it (`interp.noise.floor`). `signed`: its zero is the middle of
    its range. `position`: a value per token, per token that predicts an answer, per whole answer,
    or none of these. `group`: what it is withheld with (`interp.capabilities`; "": never). `max_t`:
    the site whose map is corrected by max-T, which bounds the chance of one false cell; all others
    are by Benjamini-Hochberg, which bounds the share of false cells.
    """

    title: str
    units: str
    definition: str
    source: str = ""
    head: str = ""
    rounding: Rounding = "ratio"
    signed: bool = False
    position: Position = ""
    group: str = ""
    max_t: str = ""
    bounds: Bounds | None = None

    @property
    def range(self) -> Bounds:
        """Least and largest value there can be: `bounds`, or what the units say."""
        if self.bounds is not None:
            return self.bounds
        if self.rounding == "cosine":
            return -1.0, 1.0
        if self.signed:
            return -inf, inf
        return 0.0, 1.0 if self.units == "share" else inf


DAI = "Dai et al. 2212.10559"
PETROV = "Petrov et al. 2310.19698"
DHERIN = "Dherin et al. 2507.16003"
MINDER = "after Minder et al. 2510.13900"
EAP = "Syed et al. 2310.10348"
DAS = "Geiger et al. 2303.02536"
GURNEE = "after Gurnee et al. 2026 (Transformer Circuits Thread), as TransformerLens fits it"


def _patterns(
    title: str,
    units: str,
    definition: str,
    rounding: Rounding = "ratio",
    max_t: str = "",
    bounds: Bounds | None = None,
) -> Measure:
    """Of a head's attention rows."""
    return Measure(
        title, units, definition, head="pattern", rounding=rounding, position="token",
        group="patterns", max_t=max_t, bounds=bounds,
    )  # fmt: skip


def _share(
    title: str,
    definition: str,
    head: str,
    group: str,
    source: str = "",
    signed: bool = True,
    bounds: Bounds | None = None,
) -> Measure:
    """A part of a whole, a ratio of sums over tokens."""
    return Measure(
        title, "share", definition, source, head, signed=signed, position="token", group=group,
        bounds=bounds,
    )  # fmt: skip


def _readout(
    title: str,
    units: str,
    definition: str,
    rounding: Rounding,
    source: str = "",
    bounds: Bounds | None = None,
) -> Measure:
    """Of the logit lens."""
    return Measure(
        title, units, definition, source, rounding=rounding, position="answer token", group="lens",
        bounds=bounds,
    )  # fmt: skip


def _channel(title: str, of: str) -> Measure:
    """Energy of changes along a LoRA's directions."""
    directions = {"input": "input (right)", "output": "output (left)"}[of]
    return Measure(
        f"share along what is {title}", "share",
        f"Σ(direction·Δ)² / Σ‖Δ‖² of what a condition changes, from base, of a module's {of}, "
        f"along the {directions} singular directions of a LoRA's update",
    )  # fmt: skip


def _over(of: str, other: str) -> Measure:
    """The same over a null's."""
    return Measure(
        f"share of the {of}'s change over {other}", "share", f"share less {other}", signed=True,
        bounds=(-1.0, 1.0),
    )  # fmt: skip


SECTIONS: dict[str, dict[str, Measure]] = {
    "Output": {
        "kl_divergence": Measure(
            "KL divergence", "nats", "KL(condition ‖ reference) of next-token distributions",
            rounding="divergence", position="token",
        ),
        "js_divergence": Measure(
            "JS divergence", "nats",
            "½KL(p‖m) + ½KL(q‖m) of next-token distributions, m = (p + q)/2",
            "Lin 1991, doi:10.1109/18.61115", rounding="divergence", position="token", bounds=JS,
        ),
        "top1_agreement": Measure(
            "top-1 agreement", "share", "both put the same token first", rounding="count",
            position="token",
        ),
        "sequence_kl": Measure(
            "sequence KL, forced", "nats", "KL summed over the tokens of a forced answer",
            rounding="divergence", position="answer",
        ),
        "answer_agreement": Measure(
            "whole answers the same, forced", "share",
            "both put every token of a forced answer first",
            rounding="count", position="answer",
        ),
        "own_agreement": Measure(
            "own answers the same", "share", "both write the same answer", rounding="count",
            position="answer",
        ),
        "own_difference": Measure(
            "first token where own answers part", "tokens", "tokens before two own answers differ",
            rounding="count", position="answer",
        ),
        "accuracy": Measure(
            "accuracy", "share", "the answer's token comes first", rounding="count",
            position="answer token",
        ),
        "rec2ftp": Measure(
            "Rec2FTP", "share",
            "of what is wrong in base and right in the reference, the part that is "
            "right in the condition", DAI, rounding="count", position="answer token",
        ),
    },
    "States": {
        "relative_l2": Measure(
            "relative L2 distance", "ratio", "‖x_a − x_b‖ / ½(‖x_a‖ + ‖x_b‖) per token", head="z",
            position="token", max_t="resid_post", bounds=(0.0, 2.0),
        ),
        "cosine": Measure(
            "cosine similarity", "cosine", "cosine of x_a and x_b per token", head="z",
            rounding="cosine", signed=True, position="token",
        ),
        "delta_alignment": Measure(
            "delta alignment (cosine)", "cosine",
            "cos(x_a − x_base, x_b − x_base): do both push the "
            "same way?", head="z", rounding="cosine", signed=True, position="token",
        ),
        "delta_norm_ratio": Measure(
            "delta norm ratio", "ratio", "‖x_a − x_base‖ / ‖x_b − x_base‖", head="z",
            rounding="unbounded", position="token",
        ),
        "sim_aou": Measure(
            "SimAOU (cosine)", "cosine", "delta alignment of attention outputs on the unit sphere",
            DAI,
            rounding="cosine", signed=True, position="token",
        ),
    },
    "Attention and routing": {
        "prefix_mass": _patterns(
            "prefix mass", "share", "attention on everything before the query"
        ),
        "prefix_mass_no_sink": _patterns(
            "prefix mass without the sink", "share", "the same, the first key left out"
        ),
        "entropy": _patterns("attention entropy", "nats", "−Σ p ln p of a whole row", "unbounded"),
        "entropy_no_sink": _patterns(
            "attention entropy without the sink", "nats", "the same, the first key left out",
            "unbounded",
        ),
        "content_entropy": _patterns(
            "content entropy", "nats", "−Σ p ln p of a row over the query's own keys", "unbounded"
        ),
        "content_entropy_no_sink": _patterns(
            "content entropy without the sink", "nats",
            "the same, the query's first token left out",
            "unbounded",
        ),
        "content_js": _patterns(
            "content JS divergence", "nats", "JS divergence of rows over the query's own keys",
            "divergence", max_t="pattern", bounds=JS,
        ),
        "content_js_no_sink": _patterns(
            "content JS divergence without the sink", "nats",
            "the same, the query's first token left out", "divergence", bounds=JS,
        ),
        "sim_am": Measure(
            "score similarity (cosine)", "cosine", "cosine of rows of pre-softmax scores", DAI,
            "attn_scores", "cosine", True, "token", "scores",
        ),
        "sim_am_delta": Measure(
            "score-change similarity (cosine)", "cosine", "the same of changes from base",
            "after Deutch et al. 2311.07772", "attn_scores", "cosine", True, "token", "scores",
        ),
        "router_js": Measure(
            "router JS divergence", "nats",
            "JS divergence of a router's distributions over experts",
            rounding="divergence", position="token", group="routing", bounds=JS,
        ),
        "expert_overlap": Measure(
            "overlap of chosen experts", "share", "|A ∩ B| / k of the experts that a token goes to",
            rounding="count", position="token", group="routing",
        ),
        "rewiring_share": _share(
            "re-wiring share", "part of the content JS from base that the weights bring about, "
            "Shapley-averaged over both orders", "pattern", "pinned inputs", signed=False,
            bounds=ANY,
        ),
        "petrov_residual": Measure(
            "re-wiring no prefix can do", "nats",
            "content JS from base at base's inputs, under the "
            "condition's weights and prefix: 0 for every prefix", PETROV, "pattern", "divergence",
            position="token", group="pinned inputs", bounds=JS,
        ),
        "change_pattern": _share(
            "pattern", "of a head's output change: other attention, at base's inputs", "z",
            "change decomposition",
        ),
        "change_value": _share(
            "values", "of a head's output change: other values, at base's inputs", "z",
            "change decomposition",
        ),
        "change_prefix": _share(
            "prefix", "of a head's output change: the prefix's mass and values, at base's inputs",
            "z",
            "change decomposition", PETROV,
        ),
        "change_input": _share(
            "inputs", "of a head's output change: changed inputs", "z", "change decomposition"
        ),
        "score_query": _share(
            "queries' inputs", "of the change of a head's scores: its queries' inputs (Shapley)",
            "attn_scores", "score split",
        ),
        "score_key": _share(
            "keys' inputs", "of the change of a head's scores: its keys' inputs (Shapley)",
            "attn_scores", "score split",
        ),
        "score_weights": _share(
            "weights", "of the change of a head's scores: its weights (Shapley)", "attn_scores",
            "score split",
        ),
        "score_interaction": _share(
            "only together", "of the change of a head's scores: what none of the three does alone",
            "attn_scores", "score split",
        ),
    },
    "Readout": {
        "lens_js": _readout(
            "logit-lens JS divergence", "nats", "JS divergence of two logit lenses", "divergence",
            bounds=JS,
        ),
        "lens_kl": _readout(
            "logit-lens KL to own output", "nats", "KL(own output ‖ logit lens of a layer)",
            "divergence",
        ),
        "answer_information": _readout(
            "information on the answer", "nats", "log-probability of the answer in the logit lens",
            "unbounded", bounds=ANY,
        ),
        "decision_depth": _readout(
            "decision depth", "layer", "first layer from which the top token stays", "count"
        ),
        "influence": Measure(
            "influence on the answer's logit", "logits",
            "a write's part in the change of the answer's "
            "logit, the final norm's scale frozen", head="z", rounding="unbounded", signed=True,
            position="answer token", group="influence",
        ),
    },
    "Geometry of queries": {
        "linear_cka": Measure(
            "linear CKA (debiased)", "share", "centred kernel alignment of two clouds of queries, "
            "debiased", "Murphy et al. 2405.01012", bounds=(-1.0, 1.0),
        ),
        "procrustes_distance": Measure(
            "Procrustes distance", "distance", "√(2 − 2‖X'Y‖_*) of centred clouds of norm 1",
            "Williams et al. 2110.14739", bounds=(0.0, 2**0.5),
        ),
        "mutual_knn": Measure(
            "mutual kNN", "share", "shared part of the k nearest neighbours by cosine",
            "Huh et al. 2405.07987",
        ),
        "probe_transfer": Measure(
            "probe transfer", "ratio",
            "accuracy of a linear probe on the other condition, over that "
            "on its own",
        ),
        "intrinsic_dimension": Measure(
            "TwoNN", "dimensions", "N / Σ ln(r₂/r₁)", "Facco et al. 1803.06992"
        ),
        "gride_2": Measure("Gride, scale 2", "dimensions", "Gride at neighbours 2 and 4",
                           "Denti et al. 2104.13832"),
        "gride_4": Measure("Gride, scale 4", "dimensions", "Gride at neighbours 4 and 8",
                           "Denti et al. 2104.13832"),
        "gride_8": Measure("Gride, scale 8", "dimensions", "Gride at neighbours 8 and 16",
                           "Denti et al. 2104.13832"),
    },
    "Families": {
        "divergence_index": Measure(
            "divergence index", "ratio", "distance between families over distance within them",
            head="z",
        ),
        "permanova_f": Measure(
            "PERMANOVA pseudo-F", "ratio", "variance between families over variance within them",
            "Anderson 2001, doi:10.1111/j.1442-9993.2001.01070.pp.x",
        ),
    },
    "Interchange and ablation": {
        "damage": Measure(
            "damage", "nats", "KL(own output ‖ output with the other's value)",
            rounding="divergence"
        ),
        "damage_random_direction": Measure(
            "damage, random direction", "nats", "the same of a step as long in a random direction"
        ),
        "damage_random_difference": Measure(
            "damage, random difference", "nats", "the same of a step as long along an unrelated "
            "query's difference"
        ),
        "relative_damage": Measure(
            "relative damage", "ratio", "damage over that of base's value in its place"
        ),
        "recovery": Measure(
            "recovery", "share", "1 − KL(source ‖ patched) / KL(source ‖ target)", signed=True,
            bounds=PART,
        ),
        "recovery_random_direction": Measure(
            "recovery, random direction", "share",
            "the same of a step as long in a random direction", bounds=PART,
        ),
        "recovery_random_difference": Measure(
            "recovery, random difference", "share", "the same of a step as long along an unrelated "
            "query's difference", bounds=PART,
        ),
        "answer_change": Measure(
            "change of the answer's log-odds", "nats", "log-odds of the answer, patched − own",
            rounding="unbounded", signed=True,
        ),
        "answer_recovery": Measure(
            "recovery of the answer's log-odds", "share", "answer change over the source's lead",
            bounds=ANY,
        ),
        "interchange_depth": Measure(
            "interchange depth", "layer", "first layer from which damage stays within tolerance"
        ),
        "state_equivalence_depth": Measure(
            "state-equivalence depth", "layer", "the same, in both directions"
        ),
        "function_vector_recovery": Measure(
            "recovery by the function vector", "share",
            "recovery in base by the summed mean outputs "
            "of the strongest heads", "Todd et al. 2310.15213", bounds=PART,
        ),
        "function_vector_null": Measure(
            "recovery by base's vector", "share", "the same of base's own mean outputs",
            bounds=PART,
        ),
        "function_vector_random": Measure(
            "recovery by a random vector", "share", "the same of a random vector of that norm",
            bounds=PART,
        ),
        "attribution": Measure(
            "attribution (first order)", "nats", "gradient of the answer's log-odds times the step",
            rounding="unbounded", signed=True,
        ),
        "ablation_damage": Measure(
            "damage", "nats", "KL(own output ‖ output without a part of the LoRA)",
            rounding="divergence",
        ),
        "ablation_kept": Measure(
            "effect kept", "share", "of the LoRA's effect without that part",
            bounds=PART,
        ),
        "ablation_change": Measure(
            "internal change", "ratio", "relative L2 distance of states without that part"
        ),
    },
    "Subspaces": {
        "subspace_recovery": Measure(
            "recovery in k dimensions", "share",
            "recovery by the source's state along a learned subspace of the residual stream",
            DAS, signed=True, bounds=PART,
        ),
        "subspace_recovery_full": Measure(
            "recovery by the whole state", "share", "the same of all dimensions", signed=True,
            bounds=PART,
        ),
        "subspace_recovery_principal": Measure(
            "recovery, principal directions", "share",
            "the same of the k leading directions of the difference, untrained", signed=True,
            bounds=PART,
        ),
        "subspace_recovery_random_rotation": Measure(
            "recovery, random directions", "share", "the same of random subspaces", signed=True,
            bounds=PART,
        ),
        "subspace_recovery_shuffled": Measure(
            "recovery, other queries' states", "share",
            "the same of other queries' source states along a subspace learned on such",
            signed=True, bounds=PART,
        ),
        "subspace_recovery_random_difference": Measure(
            "recovery, random difference", "share",
            "within the learned subspace, a step as long along an unrelated query's difference",
            signed=True, bounds=PART,
        ),
        "subspace_recovery_crossed": Measure(
            "recovery, the other's subspace", "share",
            "the same along the subspace learned for the other condition", signed=True,
            bounds=PART,
        ),
        "subspace_dimension": Measure(
            "smallest sufficient dimension", "dimensions",
            "from which on a learned subspace recovers as much as the whole state, up to a margin",
        ),
    },
    "Edges": {
        "edge_attribution": Measure(
            "edge (first order)", "nats",
            "what a sender writes otherwise times the gradient at one receiver's input",
            EAP, rounding="unbounded", signed=True,
        ),
        "edge_effect": Measure(
            "edge, patched", "nats",
            "change of the answer's log-odds by a sender's write into one receiver alone",
            "path patching: Goldowsky-Dill et al. 2304.05969", rounding="unbounded", signed=True,
        ),
        "edge_flow": Measure(
            "edges from layer into layer", "nats", "sum of their sizes, to first order", EAP,
            rounding="unbounded",
        ),
    },
    "Equivalence ladder": {
        "mapped_variance": Measure(
            "variance explained", "share",
            "1 − Σ‖x_b − m(x_a)‖² / Σ‖x_b − x_a‖² of a fitted map m, on other queries",
            signed=True, bounds=PART,
        ),
        "mapped_kl": Measure(
            "KL with the mapped state", "nats",
            "KL(reference ‖ the reference's run with m(x_a) in the place of x_b)",
            rounding="divergence",
        ),
        "mapped_recovery": Measure(
            "recovery by the mapped state", "share",
            "the part of that KL that goes when x_a is mapped: 1 − KL(m) / KL(no map)",
            signed=True, bounds=PART,
        ),
        "mapped_shortfall": Measure(
            "shortfall from full interchange", "share",
            "recovery of the reference's own state less that of a rung", signed=True,
        ),
        "mapped_ridge": Measure(
            "ridge of a fitted map", "ratio",
            "over the mean variance of a dimension of x_a; chosen inside the fitting half",
        ),
        "steered_kl": Measure(
            "KL where the mapped state steers", "nats",
            "KL(reference ‖ the condition's own run with m(x_a) in the place of x_a)",
            rounding="divergence",
        ),
        "steered_recovery": Measure(
            "recovery by steering", "share", "the same of steering: 1 − KL(m) / KL(no map)",
            signed=True, bounds=PART,
        ),
        "steered_shortfall": Measure(
            "shortfall from full interchange", "share",
            "the same of steering; full interchange puts x_b in the place of x_a", signed=True,
        ),
    },
    "Weights": {
        "singular_value": Measure("singular value", "norm", "of the LoRA's update of a matrix"),
        "relative_norm": Measure("relative norm", "ratio", "‖ΔW‖ / ‖W‖ (Frobenius)"),
        "stable_rank": Measure("stable rank", "dimensions", "‖ΔW‖_F² / ‖ΔW‖₂²"),
        "intruder_dimensions": Measure(
            "intruder dimensions", "count", "leading singular vectors of W + ΔW unlike all of W's",
            "Shuttleworth et al. 2410.21228",
        ),
        "subspace_overlap_left": Measure(
            "overlap of what is written", "share", "‖U₁'U₂‖_F² / r of two updates' output spaces"
        ),
        "subspace_overlap_left_chance": Measure("chance", "share", "the same of random spaces"),
        "subspace_overlap_right": Measure(
            "overlap of what is read", "share", "‖V₁'V₂‖_F² / r of two updates' input spaces"
        ),
        "subspace_overlap_right_chance": Measure("chance", "share", "the same of random spaces"),
        "implicit_rank": Measure(
            "effective rank", "dimensions", "of a prompt's implicit updates, stacked over queries",
            DHERIN,
        ),
        "implicit_rank_chance": Measure("chance", "dimensions",
            "the same, moved in random directions"),
        "implicit_rank_shuffled": Measure("shuffled", "dimensions", "the same of shuffled tokens"),
        "implicit_cosine": Measure(
            "mean cosine of two queries' updates", "cosine", "of a prompt's implicit updates",
            DHERIN, bounds=(-1.0, 1.0),
        ),
        "implicit_cosine_chance": Measure("chance", "cosine",
            "the same, moved in random directions", bounds=(-1.0, 1.0),
        ),
        "implicit_cosine_shuffled": Measure(
            "shuffled", "cosine", "the same of shuffled tokens",
            bounds=(-1.0, 1.0),
        ),
        "implicit_overlap_left": Measure(
            "overlap with the LoRA, written", "share", "of implicit updates and the LoRA's", DHERIN
        ),
        "implicit_overlap_left_chance": Measure("chance", "share", "the same of random spaces"),
        "implicit_overlap_left_random": Measure("random LoRA", "share",
            "the same of a random LoRA"),
        "implicit_overlap_right": Measure(
            "overlap with the LoRA, read", "share", "of implicit updates and the LoRA's", DHERIN
        ),
        "implicit_overlap_right_chance": Measure("chance", "share", "the same of random spaces"),
    },
    "Readings of differences": {
        "difference_norm": Measure(
            "size of the mean difference", "ratio",
            "‖mean of x_a − x_b over queries‖ / mean ‖x_base‖, states averaged over a segment",
        ),
        "word_score": Measure(
            "score of the task words", "SD",
            "mean logit of the task words, over the vocabulary's mean, that differences add in the "
            "logit lens: mean over queries, in standard deviations of the vocabulary (root mean "
            "square over queries)", MINDER,
            rounding="unbounded", signed=True,
        ),
        "word_score_random": Measure(
            "random differences", "SD",
            "the same of base's states at every two queries, first less second: middle 95 %",
            MINDER, signed=True,
        ),
        "word_score_excess": Measure(
            "score over the control's", "SD",
            "score of the task words less that of the control in the condition's place, on the "
            "same queries", signed=True,
        ),
        "word_rank": Measure(
            "median rank of the task words", "count",
            "place among all tokens by the logit that the mean difference adds, 1 the first",
            bounds=(1.0, inf),
        ),
        "jacobian_score": Measure(
            "score of the task words, Jacobian lens", "SD",
            "`word_score` of J Δ: J is the mean Jacobian of the last block's output, at a token "
            "and all later ones, by this layer's", GURNEE, rounding="unbounded", signed=True,
        ),
        "jacobian_score_random": Measure(
            "random differences, Jacobian lens", "SD", "`word_score_random` of J Δ", MINDER,
            signed=True,
        ),
        "jacobian_score_excess": Measure(
            "score over the control's, Jacobian lens", "SD", "`word_score_excess` of J Δ",
            signed=True,
        ),
        "jacobian_rank": Measure(
            "median rank of the task words, Jacobian lens", "count", "`word_rank` of J Δ",
            bounds=(1.0, inf),
        ),
        "patchscope_score": Measure(
            "score in a patchscope", "SD",
            "the task words' mean logit over the vocabulary's mean, in its SD, of what the mean "
            "difference adds to a neutral prompt's next token in the place of one of its states",
            "after Ghandeharioun et al. 2401.06102", signed=True,
        ),
        "patchscope_random": Measure(
            "random differences", "SD",
            "the same of base's states at two random queries: middle 95 %", signed=True,
        ),
        "steered_words": Measure(
            "task words in steered samples", "share",
            "of the tokens that base writes with the mean difference added, those that are task "
            "words", "after Turner et al. 2308.10248",
        ),
        "steered_words_random": Measure(
            "random direction", "share", "the same with a random direction as long",
        ),
    },
    "A LoRA's own variables": {
        "channel_read": _channel("read by the LoRA", "input"),
        "channel_written": _channel("written by the LoRA", "output"),
        "channel_read_excess": _over("input", "the neutral prompt's"),
        "channel_written_excess": _over("output", "the neutral prompt's"),
        "channel_read_over_random": _over("input", "that along a random LoRA's directions"),
        "channel_written_over_random": _over("output", "that along a random LoRA's directions"),
        "channel_read_chance": Measure("chance", "share", "rank over the input's dimensions"),
        "channel_written_chance": Measure("chance", "share", "rank over the output's dimensions"),
        "direction_auroc": Measure(
            "AUROC of a direction", "share",
            "chance that |V_k x| / ‖x‖ (or |U_k'y| / ‖y‖), mean over a text's tokens, is larger "
            "for a matched query than for an unrelated text", "Hanley & McNeil 1982",
        ),
        "direction_auroc_best": Measure(
            "AUROC of the best direction", "share",
            "the same of the direction that is best on one half of the texts, on the other half; "
            "above 0.5: as on the first", "Hanley & McNeil 1982",
        ),
        "direction_word_score": Measure(
            "score of the task words", "SD",
            "of what a direction writes to the residual stream, by the lens: mean logit of the "
            "task words over the vocabulary's mean, in its standard deviations",
            rounding="unbounded", signed=True,
        ),
    },
}  # fmt: skip
"""Section of the documentation -> its measures, in the order in which a reader meets them."""

MEASURES: dict[str, Measure] = {k: v for part in SECTIONS.values() for k, v in part.items()}
"""Measure -> its record."""


def named(**fields: str | bool) -> frozenset[str]:
    """The measures whose record has these values."""
    return frozenset(_having(fields))


def _having(fields: dict[str, str | bool]) -> Iterator[str]:
    for name, measure in MEASURES.items():
        if all(getattr(measure, field) == value for field, value in fields.items()):
            yield name
