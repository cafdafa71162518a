"""How strong is the best prompt-equivalent of a LoRA, for one query and for many?

    python analyses/equivalence_strength.py            # the bundled model
    python analyses/equivalence_strength.py --virtual 1 16 --steps 300

`interp/experiments/equivalence_strength.py` says what each answer would mean, and measures it.
"""

import sys

from interp.cli import main

sys.exit(main(["experiment", "equivalence_strength", *sys.argv[1:]]))
