"""The command line as a module: `python -m interp`."""

import sys

from interp.cli import main

sys.exit(main())
