"""What would a study of a large model cost, on paper? FLOPs, bytes and network of its parts.

A few constants are fitted to studies of small random models that are measured here, and the model
is tried on others. Then come published peaks of a GPU in the place of this machine's.

    python benchmarks/scaling_model.py           # writes scaling_model.json, docs/scaling.md
    python benchmarks/scaling_model.py --kept    # the page again, from scaling_model.json
    python benchmarks/scaling_model.py --smoke   # tiny models: does everything run?
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from costs import Study
from reference import CACHE, ROOT, Size, made
from scaling_page import page
from scipy.optimize import nnls
from threadpoolctl import threadpool_limits

from interp.engines import InProcess
from interp.store import FOLDER, Store
from interp.subject.loading import quiet
from interp.sweep import sweep

KEPT = Path(__file__).with_suffix(".json")
CONDITIONS, WEIGHTED, PREFIXED, PAIRS = 5, 2, 2, 7
"""Of the reference's study: all, those with weights of their own, with a prompt; pairs compared."""


@dataclass(frozen=True)
class Work:
    """A study: a model's shape, and what it is asked."""

    layers: int
    d_model: int
    heads: int
    queries: int
    length: int
    prompt: int
    vocabulary: int = 2048
    key_heads: int = 0
    d_mlp: int = 0
    chunk: int = 64

    @property
    def keys_values(self) -> float:
        """Width of all keys (and of all values)."""
        return (self.key_heads or self.heads) * self.d_model / self.heads

    @property
    def attention(self) -> float:
        """Parameters of what makes queries, keys and values."""
        return self.layers * self.d_model * (self.d_model + 2 * self.keys_values)

    @property
    def parameters(self) -> float:
        """Of all blocks and the unembedding."""
        d_mlp = self.d_mlp or int(2.6875 * self.d_model)
        others = self.layers * (self.d_model + 3 * d_mlp) + self.vocabulary
        return self.attention + others * self.d_model

    @property
    def flops(self) -> float:
        """Of all forward passes: whole ones of every condition, patterns alone at pinned inputs of
        all but base and again of those with weights, and what precedes the query once."""
        alone = CONDITIONS - 1 + WEIGHTED
        tokens = self.queries * self.length
        weights = 2 * tokens * (CONDITIONS * self.parameters + alone * self.attention)
        prompted = 2 * PREFIXED / CONDITIONS  # of the runs, behind a prompt; twice a multiplication
        keys = self.length + prompted / 2 * self.prompt
        mixing = 4 * tokens * self.layers * self.d_model * keys * (CONDITIONS + alone)
        return weights + mixing + 2 * PREFIXED * self.prompt * self.parameters

    @property
    def bytes(self) -> float:
        """What the measures read, in float64: Grams of states and of patterns, functions of
        patterns by pair, outputs, and some eight times the rows behind a prompt; and copies of the
        prompt's keys and values for every query."""
        grams = CONDITIONS * (CONDITIONS + 1) / 2
        states = 4 * self.layers * self.d_model * grams
        patterns = self.layers * self.heads * self.length * (grams + 4 * PAIRS)
        outputs = self.vocabulary * (CONDITIONS + 2 * PAIRS)
        rows = 2 * PREFIXED * self.layers * self.prompt  # of own runs, and at pinned inputs
        behind = rows * 8 * self.heads
        copied = rows * 2 * self.keys_values * 4
        own = 8 * self.length * (states + patterns + outputs + behind)
        return self.queries * (own + copied)

    @property
    def calls(self) -> float:
        """Blocks that are run, whatever is in them."""
        runs = 2 * CONDITIONS - 1 + WEIGHTED
        return math.ceil(self.queries / self.chunk) * self.layers * runs

    @property
    def cells(self) -> tuple[float, float]:
        """Numbers kept of all queries: one a layer, and one a head, for every position's label."""
        labels = 2 + min(self.length, 32)
        return (
            self.queries * self.layers * labels,
            self.queries * self.layers * self.heads * labels,
        )


FITTED = [
    Work(2, 128, 4, 64, 16, 20),
    Work(4, 128, 8, 64, 16, 20),
    Work(4, 256, 4, 64, 16, 200),
    Work(4, 256, 8, 128, 16, 20),
    Work(8, 256, 8, 64, 16, 20),
    Work(4, 512, 8, 64, 16, 20, 8192),
    Work(8, 512, 8, 32, 16, 200),
    Work(2, 512, 8, 64, 32, 20),
    Work(4, 256, 8, 64, 16, 1000),
]
HELD_OUT = [
    Work(6, 384, 6, 96, 16, 100),
    Work(8, 512, 8, 64, 16, 200, 8192),
    Work(4, 256, 8, 256, 24, 50),
    Work(2, 768, 12, 64, 16, 20),
]
TINY = [Work(layers, 64, 4, 16, 6, 20, 128) for layers in (1, 2, 3)]


@dataclass(frozen=True)
class Measured:
    """CPU seconds of one thread for the sweep's shards, and for reading and merging them; their
    bytes; and how many queries went together."""

    shards: float
    merging: float
    kept: float
    chunk: int


def measured(work: Work, repeats: int = 2) -> Measured:
    """All default measures of a study of this size; the faster of some repeats."""
    size = Size(
        work.layers, work.d_model, work.heads, work.vocabulary,
        work.queries, work.length, work.prompt,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        study = Study(made(CACHE, size), Path(folder))
        whole, merging = [], []
        for _ in range(repeats):
            whole.append(_seconds(study.everything))
            merging.append(_seconds(lambda: _merge(study)))
        files = (Path(folder) / "kept" / FOLDER).glob("matched-*.safetensors")
        kept = sum(file.stat().st_size for file in files)
    return Measured(min(whole) - min(merging), min(merging), kept, study.prepared.plan.batch_size)


def _merge(study: Study) -> None:
    """The sweep again where all its shards are there."""
    queries = study.prepared.groups["matched"]
    with Store.open(study.folder / "kept", {}, resume=True) as store:
        sweep(
            InProcess(study.subject),
            study.prepared.plan,
            queries,
            store,
            "matched",
            lambda *_: None,
        )


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


@dataclass(frozen=True)
class Constants:
    """Seconds per FLOP of a forward pass, per byte that measures read, and per block that is run;
    bytes of a shard per cell of a layer and of a head; seconds of merging per byte of a shard."""

    flop: float
    byte: float
    call: float
    of_layer: float
    of_head: float
    merged: float

    def shards(self, work: Work) -> float:
        """Seconds of one worker for all queries."""
        return self.flop * work.flops + self.byte * work.bytes + self.call * work.calls

    def kept(self, work: Work) -> float:
        """Bytes of all shards."""
        by_layer, by_head = work.cells
        return self.of_layer * by_layer + self.of_head * by_head

    def merging(self, work: Work) -> float:
        """Seconds for merging all shards."""
        return self.merged * self.kept(work)


def fit(works: Sequence[Work], found: Sequence[Measured]) -> Constants:
    """Non-negative least squares of the relative errors."""
    terms = [(work.flops, work.bytes, work.calls) for work in works]
    flop, byte, call = _relative(terms, [one.shards for one in found])
    of_layer, of_head = _relative([work.cells for work in works], [one.kept for one in found])
    (merged,) = _relative([(one.kept,) for one in found], [one.merging for one in found])
    return Constants(flop, byte, call, of_layer, of_head, merged)


def _relative(terms: Sequence[tuple[float, ...]], values: Sequence[float]) -> list[float]:
    rows = np.array(terms) / np.array(values)[:, None]
    scale = rows.max(0)
    solution, _ = nnls(rows / scale, np.ones(len(values)))
    return (solution / scale).tolist()


def peaks() -> dict[str, float]:
    """What one thread of this machine reaches: FLOP/s of a large float32 product, and bytes/s of a
    large sum of two tensors."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    with threadpool_limits(1):
        product = min(_seconds(lambda: a @ b) for _ in range(5))
        large, other = torch.ones(1 << 25), torch.ones(1 << 25)
        into = torch.ones_like(large)
        added = min(_seconds(lambda: torch.add(large, other, out=into)) for _ in range(5))
    return {"flops": 2 * 1024**3 / product, "bytes": 3 * large.nbytes / added}


def main(kept: bool = False, smoke: bool = False) -> None:
    """Measure, fit, try and predict.

    Args:
        kept: Measure nothing; write the page from scaling_model.json.
        smoke: Tiny models; nothing is written.
    """
    fitted, held_out = (TINY, TINY[:1]) if smoke else (FITTED, HELD_OUT)
    if not kept:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        with quiet():
            found: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__}
            found["points"] = [asdict(measured(work)) for work in (*fitted, *held_out)]
            found["peaks"] = peaks()
        torch.set_num_threads(before)
        if not smoke:
            KEPT.write_text(json.dumps(found, indent=1) + "\n")
    else:
        found = json.loads(KEPT.read_text())
    points = [Measured(**point) for point in found["points"]]
    works = [
        Work(**asdict(work) | {"chunk": point.chunk})
        for work, point in zip((*fitted, *held_out), points, strict=True)
    ]
    constants = fit(works[: len(fitted)], points[: len(fitted)])
    text = page(constants, works, points, len(fitted), found)
    print(text)
    if not smoke:
        (ROOT / "docs" / "scaling.md").write_text(text)


if __name__ == "__main__":
    tyro.cli(main)
