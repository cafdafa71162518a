"""Experiments on the hypothesis that a prompt can emulate a LoRA: one file each, run by name.

    GoldenZone = trial_named("golden_zone")
    trial = GoldenZone(**GoldenZone.bundled_fields())   # with the settings of the bundled model
    trial.conclude(trial.measure(no_progress))

Each file opens with its question and with what each answer would mean. This one is torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from interp.config import Computing
from interp.config.settings import Settings
from interp.errors import ConfigError, similar
from interp.matching.settings import Emulation

if TYPE_CHECKING:
    from interp.experiments.trial import Trial

QUESTIONS = {
    "generalisation": "does a prompt that emulates a LoRA on some queries carry to others?",
    "beyond_tokens": "is what says the same as a LoRA the same inside?",
    "context_distortion": "does a huge prompt blur the query?",
    "architectural_limits": "can a prompt add an ability that the model lacks?",
    "internal_state": "does a prompt reach the internal state of a LoRA?",
    "golden_zone": "is a prompt enough for single queries inside what the model knows?",
    "prompt_library": "could a library of prompts with a router stand in for training?",
    "equivalence_strength": "how strong is the best prompt-equivalent of a LoRA?",
    "prompt_as_weights": "is a prompt an update of the weights, whatever the query?",
    "exact_chain": "is a prompt an exact chain of weight patches, one for all queries?",
}
"""Name of every experiment -> its question."""

_UNSCORED = ("prompt_as_weights", "exact_chain")
SCORED = tuple(name for name in QUESTIONS if name not in _UNSCORED)
"""Those of the scorecard, in order; the others have a prompt for their target."""


class AllTrials(Emulation, Computing):
    """Run all experiments on the hypothesis and write their scorecard."""

    only: tuple[str, ...] = ()
    """Names of the experiments to run; the others' findings are kept if they are of the same model
    and target."""


class Claims(Settings):
    """Test claims of the literature on the bundled model and on SmolLM2; write one table."""

    only: tuple[int, ...] = ()
    """Numbers of the claims to measure (none: all); what is known of the others stays."""
    models: tuple[str, ...] = ("organism", "smollm2")
    """Models to measure them on: organism, smollm2."""
    scripts: Path = Path("analyses/claims")
    """Folder of the scripts, one per claim."""
    chat: Path = Path("analyses/chat")
    """Folder of SmolLM2's prompts, adapters and queries."""
    smollm2: Path = Path(".cache/smollm2")
    """Folder of SmolLM2."""
    out: Path = Path("runs/claims")
    """Folder of what is measured, one file per claim and model."""
    docs: Path = Path("docs/findings/claims.md")
    """Markdown file of the table."""
    limit: int | None = Field(default=None, ge=4)
    """Largest number of queries per model (none: as many as each claim asks for)."""
    resume: bool = False
    """Keep what was measured with the same script and settings."""


def check_named(name: str, among: Iterable[str] = QUESTIONS) -> None:
    """A `ConfigError` with the names that there are where it is none of them."""
    if name not in among:
        what = f"{name!r}{similar(name, among)}"
        raise ConfigError(f"no experiment {what}; there are {', '.join(among)}")


def trial_named(name: str) -> type[Trial]:
    """An experiment; a `ConfigError` where there is none of this name."""
    check_named(name)
    trial: type[Trial] = getattr(
        import_module(f"interp.experiments.{name}"), name.title().replace("_", "")
    )
    return trial
