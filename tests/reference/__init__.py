"""The slow reference: every number of a run from plain Hugging Face, peft and numpy.

    conditions = {"base": Condition(), "prompt": Condition(prefix=(5, 6, 7))}
    observed = observe("path/to/model", conditions, queries=[[10, 11], [12]])
    study = Study(conditions, observed, pairs=[("prompt", "base")], answers=[13, None])
    table = rows(study)

Every query runs alone, the whole sequence recomputed: no cache, no padding, no bridge, and no
import of the library under test. States are read by plain hooks on the Hugging Face modules,
attention scores are computed again from queries and keys and checked against the model's own
patterns, and the measures are written out in float64 from their definitions.

`conditions`, `models`, `attention`, `running`, `writing`: what a model does. `measures`, `readout`,
`geometry`, `families`: what is measured. `study`, `pooling`, `table`: the
rows. `numbers`: the arithmetic.
"""

from .conditions import Condition
from .models import open_model
from .running import States, observe, run
from .study import KEY, Key, Study, Value
from .table import certificate, rows
from .writing import own_rows, write

__all__ = [
    "KEY",
    "Condition",
    "Key",
    "States",
    "Study",
    "Value",
    "certificate",
    "observe",
    "open_model",
    "own_rows",
    "rows",
    "run",
    "write",
]
