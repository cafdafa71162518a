"""Where does the hypothesis hold that a prompt can emulate a LoRA, where does it fail?

    python analyses/weak_points.py                              # the bundled model
    python analyses/weak_points.py --resume                     # go on after an interruption
    python analyses/weak_points.py --only golden_zone --seed 1

Runs the experiments of `interp/experiments/` one after another into one report with a scorecard.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "all", *sys.argv[1:]]))
