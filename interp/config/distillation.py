"""Settings of `interp match distil`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from interp.conditions import Prompt
from interp.config.parsing import read_prompt
from interp.config.settings import Computing, Framing, Matched, Seed
from interp.errors import ConfigError


class Distillation(Framing, Matched, Computing):
    """Train a LoRA whose outputs without a prompt match the model's outputs with it."""

    queries: Path
    """JSONL file of training queries; the answers matched are theirs, or with --answer-tokens those
    that the prompted model writes."""
    out: Path
    """Folder of the adapter."""
    prompt_file: Path | None = None
    """Text file with the prompt that the LoRA imitates; it stands before every query."""
    system_file: Path | None = None
    """Text file with the system message of a --chat that the LoRA imitates."""
    heldout: Path | None = None
    """JSONL file of held-out queries for a second certificate."""
    separator: str = "\n"
    """Text between the prompt file's text and the query."""
    positions: Literal["answer", "all"] = "answer"
    """Match outputs at the answer's tokens only, or at all tokens of the query too."""
    on_policy: bool = False
    """Train on answers that the LoRA generates itself, with `KL(LoRA ‖ prompt)`."""
    refresh: int = Field(default=1, ge=1)
    """With --on-policy: epochs between two generations of answers."""
    align: Literal["resid_post"] | None = None
    """Also match the residual stream after every block, at the same positions."""
    align_weight: float = Field(default=1.0, gt=0)
    """Weight of the states' relative squared distance, relative to the divergence in nats."""
    rank: int = Field(default=8, ge=1)
    """Rank of the LoRA."""
    alpha: float = Field(default=16, gt=0)
    """LoRA alpha; the update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Module names that get a LoRA (all-linear: every linear layer but the unembedding)."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW, with cosine decay to zero."""
    epochs: int = Field(default=60, ge=1)
    """Largest number of passes over the queries."""
    batch_size: int = Field(default=16, ge=1)
    """Queries per gradient step."""
    target_kl: float = Field(default=1e-3, ge=0)
    """Stop early when an epoch's mean KL (nats) is at most this."""
    patience: int = Field(default=15, ge=1)
    """Stop early after this many epochs without improvement."""
    seed: Seed = 0
    """Seed of the LoRA's initial values, the order of queries and sampled answers."""
    seeds: int = Field(default=1, ge=1)
    """Number of LoRAs to train, with seeds `seed`, `seed + 1`, ...; several are written to
    `OUT/lora_0`, `OUT/lora_1`, ..."""
    adapter_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the adapter's file."""
    overwrite: bool = False
    """Replace an adapter in `out`."""

    @property
    def prompt(self) -> Prompt:
        """The prompt to imitate; a ConfigError unless exactly one is given."""
        if self.system_file is not None and self.prompt_file is None:
            return self.system(self.system_file)
        if self.prompt_file is not None and self.system_file is None:
            return Prompt(text=read_prompt(self.prompt_file), separator=self.separator)
        raise ConfigError("give exactly one of --prompt-file and --system-file")

    def check(self) -> None:
        """A ConfigError where an option needs another one."""
        if self.on_policy and not self.answer_tokens:
            raise ConfigError("--on-policy needs --answer-tokens: how many tokens the LoRA writes")
