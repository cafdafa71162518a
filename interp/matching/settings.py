"""The target of an emulation and its queries: settings of `interp match invert` and experiments.

Torch-free, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from interp import organism
from interp.conditions import Condition, FineTuned, Lora, Prompt
from interp.config import Bootstrapped, Framing, Matched, Seed, read_prompt
from interp.errors import ConfigError
from interp.names import short_name
from interp.queries import read_queries

EmulationKind = Literal["soft_prompt", "prefix", "text", "few_shot"]


class Emulation(Matched, Bootstrapped):
    """The target of an emulation, and the queries on which it is emulated."""

    queries: Path
    """JSONL file of the queries on which the emulation must give the target's outputs."""
    out: Path
    """Folder of the result."""
    adapter: str | None = None
    """Target: a LoRA (folder or hub id)."""
    fine_tuned: str | None = None
    """Target: a model of the same architecture (folder or hub id)."""
    prompt_file: Path | None = None
    """Target: a prompt (text file)."""
    separator: str = "\n"
    """Text between a prompt's text and the query."""
    heldout: Path | None = None
    """JSONL file of held-out queries; results are scored on them, nothing is fitted on them."""
    pool: Path | None = None
    """JSONL file of demonstrations to choose from; each needs an answer."""
    template: str = "{query} {answer}\n"
    """Format of a demonstration."""
    floor: tuple[str, ...] = ()
    """LoRAs trained with other seeds; their distance from the target is the noise floor."""
    batch_size: int = Field(default=64, ge=1)
    """Queries per batch."""
    seed: Seed = 0
    """Seed of all random starts and draws."""
    resume: bool = False
    """Go on with an interrupted attempt in `out`."""
    overwrite: bool = False
    """Replace a result in `out`."""

    @property
    def target(self) -> Condition:
        """The target; a ConfigError unless exactly one is given."""
        if len(given := self._targets()) != 1:
            raise ConfigError(f"give exactly one of {self._flags}")
        return given[0]

    @property
    def _flags(self) -> str:
        return "--adapter, --fine-tuned and --prompt-file"

    def _targets(self) -> list[Condition]:
        given: list[Condition] = []
        if self.adapter is not None:
            given.append(Lora(self.adapter))
        if self.fine_tuned is not None:
            given.append(FineTuned(self.fine_tuned))
        if self.prompt_file is not None:
            given.append(Prompt(text=read_prompt(self.prompt_file), separator=self.separator))
        return given

    @property
    def model_name(self) -> str:
        """The model's name for people."""
        return short_name(self.model)

    @property
    def unseen(self) -> Path:
        """The file of the held-out queries; a ConfigError where there is none."""
        if self.heldout is None:
            raise ConfigError("unseen queries are asked for: give --heldout")
        return self.heldout

    def demonstrations(self) -> list[tuple[str, str]]:
        """The (query, answer) pairs of the pool."""
        if self.pool is None:
            raise ConfigError("demonstrations are chosen from a file: give --pool")
        return read_demonstrations(self.pool)


def read_demonstrations(path: Path) -> list[tuple[str, str]]:
    """The (query, answer) pairs of a JSONL file."""
    shots = read_queries(path)
    if missing := [shot.text for shot in shots if not shot.answer]:
        raise ConfigError(f"{path}: the demonstration {missing[0]!r} has no answer")
    return [(shot.text, str(shot.answer)) for shot in shots]


class Inversion(Framing, Emulation):
    """Find the prompt that gives the outputs of a LoRA, a fine-tuned model or another prompt."""

    system_file: Path | None = None
    """Target: the system message of a --chat (text file)."""
    kind: EmulationKind = "soft_prompt"
    """Kind of prompt: virtual token embeddings, keys and values of virtual tokens, text, or
    demonstrations."""
    tokens: int = Field(default=8, ge=1)
    """Virtual tokens, tokens of the text, or largest number of demonstrations."""
    bias: bool = False
    """Also fit a constant logit bias that minimises the remaining divergence."""
    layers: tuple[int, ...] = ()
    """Virtual tokens: also match the residual stream after these layers."""
    patterns: tuple[int, ...] = ()
    """Virtual tokens: also match the content patterns of these layers' heads."""
    inside: float = Field(default=1.0, gt=0)
    """Weight of the loss on states, relative to the output divergence in nats."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of the search (none: 300 gradient steps, or 40 steps of the text search)."""
    rate: float = Field(default=0.1, gt=0)
    """Adam's learning rate, relative to the root mean square of the initial values."""
    candidates: int = Field(default=64, ge=1)
    """Text: single-token changes tried per step."""
    top: int = Field(default=32, ge=1)
    """Text: changes are drawn from so many best tokens per position."""
    fluency: float = Field(default=0.0, ge=0)
    """Text and demonstrations: weight of the prompt's own surprisal (nats per token)."""
    restarts: int = Field(default=1, ge=1)
    """Text and virtual tokens: random restarts; the best is kept."""

    @property
    def _flags(self) -> str:
        return "--adapter, --fine-tuned, --prompt-file and --system-file"

    def _targets(self) -> list[Condition]:
        systems = [] if self.system_file is None else [self.system(self.system_file)]
        return [*super()._targets(), *systems]

    def check(self) -> None:
        """A ConfigError for a missing option, or for one that this kind of prompt does not have."""
        if self.kind == "few_shot":
            self.demonstrations()
        if self.kind in ("text", "few_shot") and (self.layers or self.patterns):
            raise ConfigError(f"--layers and --patterns are for virtual tokens, not {self.kind}")


def bundled_emulation(out: Path) -> dict[str, Any]:
    """The fields of the bundled model's emulation: a LoRA that gives the opposite, LoRAs of four
    other seeds, and demonstrations that are not among the queries."""
    first, *others = sorted(organism.ADAPTERS.iterdir())
    return {
        "model": str(organism.MODEL),
        "adapter": str(first),
        "floor": tuple(map(str, others)),
        "queries": organism.QUERIES / "matched.jsonl",
        "heldout": organism.QUERIES / "heldout.jsonl",
        "pool": organism.QUERIES / "pool.jsonl",
        "template": "{query} {answer} ; ",
        "out": out,
        "overwrite": True,
    }
