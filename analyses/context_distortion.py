"""Does a huge prompt blur the query?

    python analyses/context_distortion.py              # the bundled model
    python analyses/context_distortion.py --lengths 16 64 256

`interp/experiments/context_distortion.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "context_distortion", *sys.argv[1:]]))
