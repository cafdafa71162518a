"""Can a prompt add an ability that the model lacks?

    python analyses/architectural_limits.py            # the bundled model
    python analyses/architectural_limits.py --counts 1 4 16 64 128 --ranks 1 4 --steps 1000

`interp/experiments/architectural_limits.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "architectural_limits", *sys.argv[1:]]))
