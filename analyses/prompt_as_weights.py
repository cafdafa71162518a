"""Is a prompt an update of the weights, and is it one that does not depend on the query?

    python analyses/prompt_as_weights.py               # the bundled model
    python analyses/prompt_as_weights.py --ranks 1 4 16

`interp/experiments/prompt_as_weights.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "prompt_as_weights", *sys.argv[1:]]))
