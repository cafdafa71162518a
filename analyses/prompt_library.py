"""Could a library of good prompts, with a mechanism that picks one, stand in for training?

    python analyses/prompt_library.py                  # the bundled model
    python analyses/prompt_library.py --kind soft_prompt --tokens 1 --steps 100

`interp/experiments/prompt_library.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "prompt_library", *sys.argv[1:]]))
