"""All figures that a run's table has rows for, by file name, in the order of the report.

    for name, figure in figures(load_run("RUN")).items(): ...

What a run did not measure has no figure; the rest is drawn all the same.
"""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from interp.plots.ablation import ablation
from interp.plots.attribution import attribution, attribution_heads
from interp.plots.by_head import (
    head_changes,
    head_map,
    influence_heads,
    layer_position,
    score_changes,
)
from interp.plots.by_layer import (
    answer_tokens,
    layers,
    routing,
    segments,
)
from interp.plots.channels import channels
from interp.plots.edges import edges
from interp.plots.embedding import condition_embedding
from interp.plots.families import divergence, head_divergence
from interp.plots.few_heads import few_heads
from interp.plots.geometry import dimensions, similarity
from interp.plots.head import head_view
from interp.plots.implicit import implicit
from interp.plots.influence import waterfall
from interp.plots.information import information_by_layer
from interp.plots.interchange import (
    interchange,
    interchange_contexts,
    interchange_segments,
)
from interp.plots.interchange_maps import interchange_heads, interchange_positions
from interp.plots.interchange_overlap import interchange_overlap
from interp.plots.ladder import equivalence_ladder
from interp.plots.outputs import output
from interp.plots.reading import reading
from interp.plots.steered import steered_samples
from interp.plots.subspaces import subspaces
from interp.plots.weights import spectra, weights_overlap
from interp.runs.heads import HeadView
from interp.runs.readings import JACOBIAN_LENS, PATCHSCOPE
from interp.runs.view import NotMeasured, Run

RECIPES: dict[str, Callable[[Run], go.Figure]] = {
    "output": output,
    "layers": layers,
    "segments": segments,
    "answer_tokens": answer_tokens,
    "routing": routing,
    "divergence": divergence,
    "embedding": condition_embedding,
    "influence": waterfall,
    "information": information_by_layer,
    "geometry": similarity,
    "dimensions": dimensions,
    "divergence_z": head_divergence,
    "divergence_pattern": lambda run: head_divergence(run, "pattern"),
    "influence_heads": influence_heads,
    "heads_content_js": lambda run: head_map(run, "content_js"),
    "heads_relative_l2": lambda run: head_map(run, "relative_l2"),
    "heads_sim_am_delta": lambda run: head_map(run, "sim_am_delta"),
    "heads_rewiring_share": lambda run: head_map(run, "rewiring_share"),
    "heads_petrov_residual": lambda run: head_map(run, "petrov_residual"),
    "changes": head_changes,
    "scores": score_changes,
    "heads_prefix_mass": lambda run: head_map(run, "prefix_mass"),
    "positions_resid_post": lambda run: layer_position(run, "relative_l2", "resid_post"),
    "positions_attn_out": lambda run: layer_position(run, "relative_l2", "attn_out"),
    "positions_mlp_out": lambda run: layer_position(run, "relative_l2", "mlp_out"),
    "head_view": lambda run: head_view(HeadView.of(run), run),
    "interchange": interchange,
    "interchange_segments": interchange_segments,
    "interchange_contexts": interchange_contexts,
    "interchange_positions": interchange_positions,
    "interchange_heads": interchange_heads,
    "interchange_patterns": lambda run: interchange_heads(run, "pattern"),
    "interchange_overlap": interchange_overlap,
    "ladder": equivalence_ladder,
    "few_heads": few_heads,
    "attribution": attribution,
    "attribution_heads": attribution_heads,
    "ablation": ablation,
    "subspaces": subspaces,
    "edges": edges,
    "weights_spectra": spectra,
    "weights_overlap": weights_overlap,
    "weights_prompts": implicit,
    "reading": reading,
    "jacobian": lambda run: reading(run, JACOBIAN_LENS),
    "patchscope": lambda run: reading(run, PATCHSCOPE),
    "steered": steered_samples,
    "channels": channels,
}


def figures(run: Run) -> dict[str, go.Figure]:
    """Name -> figure; what the run did not measure is left out."""
    found = {}
    for name, recipe in RECIPES.items():
        if name == "head_view" and not run.manifest.get("head_view"):
            continue
        try:
            found[name] = recipe(run)
        except NotMeasured:
            continue
    return found
