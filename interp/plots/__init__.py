"""Plotly figures of a run; each takes a `Run` (or a `HeadView`) and returns a `Figure`.

    from interp import load_run, plots
    run = load_run("RUN")
    plots.layers(run).show()
    plots.head_map(run, "content_js").show()
    plots.export(plots.figures(run), Path("figures"))

Every title says what is seen and warns where outputs did not match; every caption carries model,
conditions, n, interval, seed and the match certificate. Torch-free.
"""

from interp.plots.by_layer import layers
from interp.plots.exporting import export
from interp.plots.gallery import figures
from interp.plots.heads import head_view
from interp.plots.maps import head_map, layer_position
from interp.plots.outputs import output

__all__ = ["export", "figures", "head_map", "head_view", "layer_position", "layers", "output"]
