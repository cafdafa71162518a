"""What differs between runs, as token ids, folders and numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """Token ids before the query, positions skipped between them, weights, logit biases (token,
    value, query positions or None for all; negative counts from the query's end), and before
    everything else the virtual tokens of a peft prompt tuning (`soft`) or the keys and values of a
    prefix tuning (`keys`), both folders. `steering`: a vector and the block after which it is
    added to the query's rows."""

    prefix: tuple[int, ...] = ()
    shift: int = 0
    adapter: str | None = None
    scale: float = 1.0
    model: str | None = None
    bias: tuple[tuple[int, float, tuple[int, ...] | None], ...] = ()
    soft: str | None = None
    keys: str | None = None
    steering: tuple[tuple[float, ...], int] | None = None

    @property
    def weights(self) -> tuple[str | None, float, str | None]:
        return (self.adapter, self.scale, self.model)

    @property
    def computation(self) -> tuple[object, ...]:
        """What the states depend on: the same computation gives the same bits."""
        return (self.prefix, self.shift, self.weights, self.soft, self.keys, self.steering)
