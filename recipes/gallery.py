"""The committed gallery: the bundled model's figures, as PNG with the plotted numbers beside.

python recipes/gallery.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from interp import Patching, diverge, load_run, patch
from interp.cli.commands import demo_experiment
from interp.plots import export, figures
from interp.reading.run import read_run
from interp.reading.settings import DifferenceReading
from interp.rungs.run import ladder
from interp.rungs.settings import Ladder
from interp.weights.run import weigh
from interp.weights.settings import Weighing

GALLERY = Path(__file__).resolve().parent.parent / "figures"

SHOWN = (
    "embedding",
    "divergence",
    "layers",
    "heads_content_js",
    "heads_petrov_residual",
    "changes",
    "influence",
    "information",
    "geometry",
    "heads_prefix_mass",
    "head_view",
    "output",
    "interchange",
    "interchange_overlap",
    "few_heads",
    "ablation",
    "weights_overlap",
    "weights_prompts",
    "reading",
    "jacobian",
    "patchscope",
    "steered",
    "channels",
    "ladder",
)

RUNS = Path("runs/weak_points")
EXPERIMENTS = {
    "scorecard": "figures",
    "equivalence_strength": "equivalence_strength/figures",
    "reachability": "internal_state/figures",
}
"""Figures of `analyses/weak_points.py`, and where it leaves them; copied where it has run."""


def main() -> None:
    """Run the demo's experiment and keep the figures that the documentation shows."""
    with tempfile.TemporaryDirectory() as folder:
        run = diverge(demo_experiment(Path(folder) / "run"))
        patch(Patching(run=run))
        weigh(Weighing(run=run))
        read_run(DifferenceReading(run=run, jacobian="base"))
        ladder(Ladder(run=run))
        drawn = figures(load_run(run))
        export({name: drawn[name] for name in SHOWN}, Path(folder))
        for name in SHOWN:
            for suffix in ("png", "csv"):
                source = Path(folder) / f"{name}.{suffix}"
                if not source.exists():
                    raise SystemExit("no browser was found: install chromium to draw the gallery")
                shutil.copy(source, GALLERY / source.name)
    copied = [
        Path(shutil.copy(source, GALLERY / source.name))
        for name, place in EXPERIMENTS.items()
        for suffix in ("png", "csv")
        if (source := RUNS / place / f"{name}.{suffix}").is_file()
    ]
    print(f"{len(SHOWN)} figures in {GALLERY.name}/, and {len(copied) // 2} of {RUNS}")


if __name__ == "__main__":
    main()
