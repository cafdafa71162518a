"""The golden zone: for single queries, inside what the model already knows, is a prompt enough?

    python analyses/golden_zone.py                     # the bundled model
    python analyses/golden_zone.py --shots 0 1 2 4 8 16 --steps 200

`interp/experiments/golden_zone.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "golden_zone", *sys.argv[1:]]))
