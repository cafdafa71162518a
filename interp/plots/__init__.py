"""Plotly figures of a run; each takes a `Run` (or a `HeadView`) and returns a `Figure`.

    from interp import load_run, plots
    run = load_run("RUN")
    plots.layers(run).show()
    plots.head_map(run, "content_js").show()
    plots.export(plots.figures(run), Path("figures"))

Every title says what is seen and warns where outputs did not match; every caption carries model,
conditions, n, interval, seed and the match certificate. Torch-free.
"""

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
    layers,
    routing,
)
from interp.plots.channels import channels
from interp.plots.curves import Curves, curves
from interp.plots.edges import edges
from interp.plots.embedding import condition_embedding
from interp.plots.exporting import export
from interp.plots.families import divergence, head_divergence
from interp.plots.few_heads import few_heads
from interp.plots.gallery import figures
from interp.plots.geometry import dimensions, similarity
from interp.plots.head import attention, head_view
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
from interp.plots.scorecard import scorecard
from interp.plots.steered import steered_samples
from interp.plots.subspaces import subspaces
from interp.plots.weights import spectra, weights_overlap

__all__ = [
    "Curves",
    "ablation",
    "attention",
    "attribution",
    "attribution_heads",
    "channels",
    "condition_embedding",
    "curves",
    "dimensions",
    "divergence",
    "edges",
    "equivalence_ladder",
    "export",
    "few_heads",
    "figures",
    "head_changes",
    "head_divergence",
    "head_map",
    "head_view",
    "implicit",
    "influence_heads",
    "information_by_layer",
    "interchange",
    "interchange_contexts",
    "interchange_heads",
    "interchange_overlap",
    "interchange_positions",
    "interchange_segments",
    "layer_position",
    "layers",
    "output",
    "reading",
    "routing",
    "score_changes",
    "scorecard",
    "similarity",
    "spectra",
    "steered_samples",
    "subspaces",
    "waterfall",
    "weights_overlap",
]
