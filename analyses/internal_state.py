"""Does a prompt reach the internal state of a LoRA that says the same?

    python analyses/internal_state.py                  # the bundled model
    python analyses/internal_state.py --budgets 16 64 256 --longest 1000

`interp/experiments/internal_state.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "internal_state", *sys.argv[1:]]))
