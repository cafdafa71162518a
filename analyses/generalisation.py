"""Does a prompt that emulates a LoRA on some queries carry to others?

    python analyses/generalisation.py                  # the bundled model
    python analyses/generalisation.py --draws 5 --counts 1 54   # more draws, fewer sizes

`interp/experiments/generalisation.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "generalisation", *sys.argv[1:]]))
