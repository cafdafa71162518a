"""When a prompt makes the model say what a LoRA makes it say, is it the same inside?

    python analyses/beyond_tokens.py                   # the bundled model
    python analyses/beyond_tokens.py --virtual 64 --steps 300

`interp/experiments/beyond_tokens.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "beyond_tokens", *sys.argv[1:]]))
