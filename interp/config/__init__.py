"""Settings: the Python API, the YAML file and the command line are the same models.

    Experiment(model="gpt2", adapter=("lora",), prompt_file=("p.txt",), queries="q", out="run")
    Experiment(**from_yaml("experiment.yaml"))

Torch-free, so that `interp diverge --help` answers at once.
"""

from interp.config.bundled import bundled, bundled_families
from interp.config.distillation import Distillation
from interp.config.experiment import Experiment
from interp.config.files import FILE_ONLY, from_yaml
from interp.config.parsing import (
    CONDITION_NAME,
    explain,
    parse_condition,
    read_prompt,
    write_condition,
)
from interp.config.settings import (
    Bootstrapped,
    ChatFrame,
    Computing,
    Framing,
    Loading,
    Matched,
    OfPair,
    OfRun,
    Seed,
    Settings,
)

__all__ = [
    "CONDITION_NAME",
    "FILE_ONLY",
    "Bootstrapped",
    "ChatFrame",
    "Computing",
    "Distillation",
    "Experiment",
    "Framing",
    "Loading",
    "Matched",
    "OfPair",
    "OfRun",
    "Seed",
    "Settings",
    "bundled",
    "bundled_families",
    "explain",
    "from_yaml",
    "parse_condition",
    "read_prompt",
    "write_condition",
]
