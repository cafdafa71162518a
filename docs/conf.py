"""How `make docs` builds this folder: Markdown (MyST) into HTML with furo, offline.

Tables of flags, conditions and columns are written into their pages while these are read
(`recipes/handbook.py`), so that they cannot drift from the code.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from interp import __version__
from recipes.handbook import filled

project, author, copyright = "interp", "The interp authors", "2026, The interp authors"
release = version = __version__

extensions = ["myst_parser"]
myst_heading_anchors = 3
highlight_language = "text"

html_theme = "furo"
html_title = "interp"
html_static_path = ["_static"]
html_css_files = ["interp.css"]
html_show_sourcelink = html_copy_source = False


def setup(app):
    """Fill the pages' places for generated tables."""
    app.connect("source-read", filled)
