"""The page on large models: measured points, published peaks, predictions, and what is assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple


class Gpu(NamedTuple):
    """Published peaks: dense bfloat16 FLOP/s, bytes/s and bytes of its memory, bytes/s of its
    network card."""

    flops: float
    bandwidth: float
    memory: float
    network: float


H100 = Gpu(989e12, 3.35e12, 80e9, 50e9)

MODELS = {
    "1B": {"layers": 16, "d_model": 2048, "heads": 32, "key_heads": 8, "d_mlp": 8192},
    "8B": {"layers": 32, "d_model": 4096, "heads": 32, "key_heads": 8, "d_mlp": 14336},
    "70B": {"layers": 80, "d_model": 8192, "heads": 64, "key_heads": 8, "d_mlp": 28672},
}
"""Shapes of Llama 3.2 1B and Llama 3.1 8B and 70B (their `config.json`)."""
ASKED = {"queries": 1_000_000, "length": 64, "prompt": 200, "vocabulary": 128_256, "chunk": 64}
GPUS = (8, 64, 512)


def page(
    constants: Any, works: Sequence[Any], points: Sequence[Any], fitted: int, found: dict[str, Any]
) -> str:
    """Everything in Markdown; `works` and `points`: those fitted, then those held out."""
    flops, bandwidth = _shares(constants, found["peaks"])
    errors = [_errors(constants, w, p) for w, p in zip(works, points, strict=True)]
    inside, outside = errors[:fitted], errors[fitted:]
    return _TEXT.format(
        machine=f"{found['machine']}, one thread, torch {found['torch']}",
        points=_points(works, points, errors, fitted),
        inside=_worst(inside),
        outside=_worst(outside),
        constants=_constants(constants, flops, bandwidth, found["peaks"]),
        predictions=_predictions(constants, type(works[0]), flops, bandwidth),
        **ASKED | {"queries": f"{ASKED['queries']:,}", "vocabulary": f"{ASKED['vocabulary']:,}"},
    )


def _shares(constants: Any, peaks: dict[str, float]) -> tuple[float, float]:
    """Of this machine's own peaks, what the fitted constants reach; at most all of it."""
    flops = min(1.0, 1 / (constants.flop * peaks["flops"])) if constants.flop else 1.0
    bandwidth = min(1.0, 1 / (constants.byte * peaks["bytes"])) if constants.byte else 1.0
    return flops, bandwidth


def _errors(constants: Any, work: Any, point: Any) -> tuple[float, float, float]:
    """Relative errors of the shards' seconds, the merging's seconds, and the bytes."""
    return (
        constants.shards(work) / point.shards - 1,
        constants.merging(work) / point.merging - 1,
        constants.kept(work) / point.kept - 1,
    )


def _worst(errors: Sequence[tuple[float, ...]]) -> str:
    shards, merging, kept = (
        f"{100 * sum(map(abs, column)) / len(column):.0f} % on average, "
        f"{100 * max(map(abs, column)):.0f} % at worst"
        for column in zip(*errors, strict=True)
    )
    return f"time of shards {shards}; time of merging {merging}; bytes of shards {kept}"


def _points(works: Sequence[Any], points: Sequence[Any], errors: Any, fitted: int) -> str:
    lines = []
    for i, (work, point, error) in enumerate(zip(works, points, errors, strict=True)):
        shape = (work.layers, work.d_model, work.heads, work.queries, work.length, work.prompt)
        lines.append(
            f"| {' | '.join(map(str, shape))} | {'fitted' if i < fitted else 'held out'} | "
            f"{point.shards:.2f} s ({100 * error[0]:+.0f} %) | "
            f"{point.merging:.2f} s ({100 * error[1]:+.0f} %) | "
            f"{point.kept / 1e6:.0f} MB ({100 * error[2]:+.0f} %) |"
        )
    return "\n".join(lines)


def _constants(constants: Any, flops: float, bandwidth: float, peaks: dict[str, float]) -> str:
    rates = asdict(constants)
    return (
        f"- {1e12 * rates['flop']:.3g} ps a FLOP of a forward pass: {100 * flops:.0f} % of "
        f"{peaks['flops'] / 1e9:.0f} GFLOP/s of a large product\n"
        f"- {1e9 * rates['byte']:.3g} ns a byte that measures read: {100 * bandwidth:.0f} % of "
        f"{peaks['bytes'] / 1e9:.1f} GB/s of a large sum\n"
        f"- {1e3 * rates['call']:.3g} ms a block that is run\n"
        f"- {rates['of_layer']:.3g} bytes of a shard a query, layer and label, and "
        f"{rates['of_head']:.3g} a query, head and label\n"
        f"- {1e9 * rates['merged']:.3g} ns of merging a byte of a shard"
    )


def _predictions(constants: Any, kind: Any, flops: float, bandwidth: float) -> str:
    lines = []
    for name, shape in MODELS.items():
        work = kind(**shape, **ASKED)
        bytes_of_weights = 2 * (work.parameters + work.vocabulary * work.d_model)
        each = -(-bytes_of_weights // (0.8 * H100.memory))
        one = (
            work.flops / (flops * H100.flops)
            + work.bytes / (bandwidth * H100.bandwidth)
            + constants.call * work.calls
        )
        loading = bytes_of_weights / H100.network
        sent, merging = constants.kept(work) / H100.network, constants.merging(work)
        for gpus in GPUS:
            shards = one / (gpus // each)
            longer = "merging" if merging > shards else "shards"
            lines.append(
                f"| {name} | {gpus} | {each:.0f} | {_time(loading)} | {_time(shards)} | "
                f"{constants.kept(work) / 1e12:.3g} TB, {_time(sent)} | {_time(merging)} | "
                f"{_time(max(shards, merging))} ({longer}) |"
            )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


_TEXT = """# Past one machine, on paper

Written by `python benchmarks/scaling_model.py`. No GPU was measured: the numbers on GPUs below are
arithmetic on published peaks, under the assumptions of the last section.

A study's time is taken to be FLOPs of its forward passes, bytes that its measures read, and blocks
that are run (Python, launches), each times a constant; workers share it. Shards are then sent to
one process, which reads and merges them in their order, under all bootstrap replicates and sign
vectors; its time is a constant times their bytes.

## Measured, and the model's error

Sweeps of all default measures over five conditions (base, a prompt, neutral text, two LoRAs) on
random models; CPU seconds ({machine}); in brackets the model's error.

| layers | d_model | heads | queries | tokens | prompt | | shards | merging | kept |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{points}

Fitted: {inside}.

Held out: {outside}.

The constants:

{constants}

## Predicted

{queries} queries of {length} tokens behind a prompt of {prompt}, a vocabulary of {vocabulary},
the same five conditions, bfloat16, {chunk} queries at a time, on H100 SXM.

| model | GPUs | GPUs a worker | loading | shards | sent to one process | merging | run |
| --- | --- | --- | --- | --- | --- | --- | --- |
{predictions}

A run takes as long as the longer of shards and merging, which goes on beside them. Where that is
merging, more GPUs gain nothing: what limits such a study is its one merging process.

| H100 SXM, published | | source |
| --- | --- | --- |
| bfloat16, dense | 989 TFLOP/s | NVIDIA H100 Tensor Core GPU datasheet |
| memory | 80 GB at 3.35 TB/s | the same |
| network | one 400 Gb/s card a GPU | NVIDIA DGX H100 datasheet |

## What is assumed

- A GPU reaches the same share of its published peaks as one thread here reaches of its measured
  ones. Nothing here tests that; it is the weakest assumption.
- Running a block costs as much beside its arithmetic as it does here.
- Models that do not fit 80 % of one GPU's memory lie on several, which work one after the other
  (`device_map`): such a worker is as fast as one GPU. What goes between these is left out.
- Merging is one process on a CPU core like the one measured, whatever the number of workers.
- Every worker reads the weights through its own network card, at its peak; so does the merging
  process read the shards.
- Generating answers, parity, tables and the report are left out.
- Shapes: Llama 3.2 1B, Llama 3.1 8B and 70B. The measured models are up to 8 layers of 768; a
  prediction for 70B goes four orders of magnitude beyond what the constants were fitted to.
"""
