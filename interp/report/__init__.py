"""The report of a run: one offline HTML file, and a table for the terminal. Torch-free.

    from interp.report import write
    write(Path("RUN"))                       # RUN/report.html and RUN/figures/

    from interp.report import patch_table, text_table
    rich.print(text_table(load_run("RUN")))

The report is a view: run `write` again after changing nothing and its bytes are the same.
"""

from interp.report.comparing import write_comparison
from interp.report.edges import edge_table
from interp.report.ladder import ladder_table
from interp.report.patching_lines import patch_table
from interp.report.reading import reading_table
from interp.report.subspaces import subspaces_table
from interp.report.terminal import head_view_table, text_table
from interp.report.weights import weights_table
from interp.report.writing import kept_head, write, write_head_view

__all__ = [
    "edge_table",
    "head_view_table",
    "kept_head",
    "ladder_table",
    "patch_table",
    "reading_table",
    "subspaces_table",
    "text_table",
    "weights_table",
    "write",
    "write_comparison",
    "write_head_view",
]
