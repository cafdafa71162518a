"""What the settings of several commands share: every field is written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from interp.conditions import Frame, Prompt
from interp.config.parsing import read_prompt
from interp.errors import ConfigError

MANY = 1_000_000
"""Replicates and permutations are at most so many."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every random generator here takes."""


class Settings(BaseModel):
    """Frozen fields; the docstring under a field is the help of its flag."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Bootstrapped(Settings):
    """Measures with intervals over queries."""

    bootstrap: int = Field(default=200, ge=0, le=MANY)
    """Bootstrap replicates behind every interval."""


class OfRun(Settings):
    """More measurements of a finished run."""

    run: Path
    """Folder of a finished run; its model and inputs are read again and must not have changed."""
    device: str | None = None
    """Device: cpu, cuda, ... (none: that of the run)."""
    resume: bool = False
    """Go on with what this command has left unfinished of the run."""


class OfPair(OfRun):
    """More measurements of two conditions of a finished run."""

    condition: str | None = None
    """First condition of the pair (none: that of the run's headline)."""
    reference: str | None = None
    """Second condition of the pair (none: the reference of the run's headline)."""


class ChatFrame(Settings):
    """The format of a chat."""

    template_options: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as enable_thinking or date_string."""


class Loading(Settings):
    """How a command opens its model: the arguments of `interp.subject.load`."""

    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights; sums are in float64."""
    revision: str | None = None
    """Revision of a model on the hub."""
    adapter_revision: str | None = None
    """Revision of adapters on the hub."""
    trust_remote_code: bool = False
    """Allow a model to run code that comes with it."""
    allow_other_base: bool = False
    """Accept an adapter whose configuration names another base model."""
    allow_idle: bool = False
    """Accept an adapter, other weights or a steering vector that change no output."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer of all conditions (none: the model's)."""
    gguf_file: str | None = None
    """Read the model from this GGUF file of its folder or hub id, de-quantised."""
    quantization: Literal["int8", "int4"] | None = None
    """Round the weights of the blocks to 8 or 4 bits (by torchao; 4 on cuda by bitsandbytes)."""

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `load` that every command shares."""
        return {name: getattr(self, name) for name in Loading.model_fields}

    @property
    def hub(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` that name the model's files."""
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "gguf_file": self.gguf_file,
        }


class Computing(Settings):
    """Where independent work is done; the numbers do not depend on it."""

    engine: Literal["in-process", "ray"] = "in-process"
    """Do the work in this process, or with workers of Ray (`pip install 'interp[ray]'`)."""
    workers: int | None = Field(default=None, ge=1)
    """Number of Ray's workers, each with a copy of the model (none: 2)."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster, or auto (none: one is started on this machine)."""
    timeout: float = Field(default=120, gt=0)
    """Seconds that a worker of Ray has to be placed, and later to give a sign of life."""

    @model_validator(mode="after")
    def _of_ray(self) -> Self:
        if self.engine != "ray" and (self.workers, self.address) != (None, None):
            raise ConfigError("--workers and --address are of Ray's: add --engine ray")
        return self


class Matched(Loading):
    """A model on queries, and when two conditions' outputs on them count as matched."""

    model: str
    """Model folder or hub id."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first queries of each file."""
    tolerance_js: float = Field(default=0.02, ge=0)
    """Largest mean JS divergence (nats) at which outputs count as matched."""
    tolerance_top1: float = Field(default=0.95, ge=0, le=1)
    """Smallest share of queries with the same top-1 token at which outputs count as matched."""


class Framing(Loading):
    """The frame of the queries, and the source of their answers."""

    chat: bool = False
    """Every query is a user message in the tokenizer's chat template, in all conditions; a prompt
    file's text stands at the start of that message."""
    frame: ChatFrame | None = None
    """A chat with variables of its template (YAML only): `frame: {template_options: {...}}`."""
    answer_tokens: int = Field(default=0, ge=0)
    """Longest answer, in tokens, that conditions generate themselves (0: none are generated)."""
    temperature: float = Field(default=0, ge=0)
    """Sampling temperature of generated answers (0: greedy)."""

    @property
    def framed(self) -> Frame:
        """The frame of the queries."""
        return Frame(
            self.chat or self.frame is not None, self.frame.template_options if self.frame else {}
        )

    def system(self, path: Path) -> Prompt:
        """A file's text as a system message; a ConfigError without a chat."""
        if not self.framed.chat:
            raise ConfigError("--system-file is a chat's system message: add --chat")
        return Prompt(system=read_prompt(path))
