"""Files of shards, and the work on one: what is done of it is kept while it goes on.

    write_shard(folder, "matched-00000", tally)
    read_shard(folder, "matched-00000")         # None where it is not there, or damaged
    work = by_chunk(begin, 16, context)         # a shard's queries, 16 at a time

A shard's chunks are merged in their order, those of an earlier attempt first, so that an
interrupted shard has the bits of one that went through (with the same chunks).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from safetensors.numpy import load, save

from interp.capture import chunks
from interp.engines import Tick
from interp.measures.tally import Key, Tally, absorb_, from_arrays
from interp.runs.files import write_atomic
from interp.statistics import Maximum

SUFFIX = ".safetensors"

KEEP_EVERY = 60.0
"""Seconds of work after which what is done of a shard is kept: what a run loses at most, with one
chunk, when it is killed."""

_SHARE = 20
"""A shard is kept again only after so many times as long as keeping it took."""

_Context = TypeVar("_Context")


def read_shard(folder: Path, shard: str) -> Tally | None:
    """A finished shard, or None."""
    content = shard_bytes(folder, shard)
    return None if content is None else _unpack(content)


def shard_bytes(folder: Path, shard: str) -> bytes | None:
    """The bytes of a finished shard; what is damaged is removed."""
    for path in _files(folder, shard):
        content = path.read_bytes()
        if path.stem.removeprefix(f"{shard}-") == hashlib.sha256(content).hexdigest():
            return content
        path.unlink()
    return None


def write_shard(folder: Path, shard: str, tally: Tally) -> Path:
    """Keep a finished shard; returns its file."""
    content = _pack(tally)
    file = folder / f"{shard}-{hashlib.sha256(content).hexdigest()}{SUFFIX}"
    write_atomic(file, content)
    return file


def _files(folder: Path, shard: str) -> list[Path]:
    """The files of a shard, by the sha256 in their names."""
    return sorted(folder.glob(f"{shard}-{'?' * 64}{SUFFIX}"))


class FirstChunks(NamedTuple):
    """The first chunks of a shard, merged, as a file of their own; it is replaced as they become
    more."""

    folder: Path
    name: str

    def kept(self) -> Tally:
        """What an earlier attempt has left; nothing where that is damaged."""
        return read_shard(self.folder, self.name) or {}

    def keep(self, tally: Tally) -> None:
        """Replace it."""
        before = _files(self.folder, self.name)
        after = write_shard(self.folder, self.name, tally)
        for path in before:
            if path != after:
                path.unlink(missing_ok=True)

    def drop(self) -> None:
        """The shard is whole."""
        for path in _files(self.folder, self.name):
            path.unlink(missing_ok=True)


class ShardWork(NamedTuple):
    """The numbers of a shard's queries, and where its first chunks are kept (None: nowhere)."""

    numbers: Sequence[int]
    part: FirstChunks | None


def by_chunk(
    begin: Callable[[_Context], Callable[[Sequence[int]], Tally]], size: int, context: _Context
) -> Callable[[ShardWork, Tick], Tally]:
    """Work on a shard: its queries, at most `size` at a time."""
    compute = begin(context)

    def shard(work: ShardWork, tick: Tick) -> Tally:
        done = _Begun.of(work, tick)
        try:
            for chunk in chunks(work.numbers[done.count :], size):
                done.add(compute(chunk), len(chunk))
                tick(len(chunk))
        except BaseException:
            done.keep()
            raise
        return done.tally

    return shard


class _Begun:
    """What is done of a shard: the merged chunks, and how many queries they have."""

    def __init__(self, work: ShardWork, tally: Tally, count: int) -> None:
        self.part, self.tally, self.count = work.part, tally, count
        self.due = time.monotonic() + KEEP_EVERY
        self.merging, self.on_disk = False, count

    @classmethod
    def of(cls, work: ShardWork, tick: Tick) -> _Begun:
        """What an earlier attempt has done of it."""
        tally = work.part.kept() if work.part else {}
        kept = tally.pop(_COUNT, None)
        count = int(kept.compute()) if isinstance(kept, Maximum) else 0
        if count:
            tick(count)
        return cls(work, tally, count)

    def add(self, tally: Tally, newly: int) -> None:
        """The next chunk is done."""
        self.merging = True
        absorb_(self.tally, tally)
        self.count += newly
        self.merging = False
        if time.monotonic() >= self.due:
            began = time.monotonic()
            self.keep()
            took = time.monotonic() - began
            self.due = time.monotonic() + max(KEEP_EVERY, _SHARE * took)

    def keep(self) -> None:
        """Leave it on disk, if there is news and it is whole (an interruption in mid-merge leaves
        what was kept before)."""
        if self.part and self.count > self.on_disk and not self.merging:
            self.part.keep({**self.tally, _COUNT: Maximum.of([float(self.count)])})
            self.on_disk = self.count


_COUNT = Key("queries done", "", "", "")


def _pack(tally: Tally) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    for key, accumulator in sorted(tally.items()):
        for name, array in accumulator.arrays().items():
            arrays["|".join((*key, name))] = np.ascontiguousarray(array)
    return save(arrays)


def _unpack(content: bytes) -> Tally:
    groups: dict[Key, dict[str, np.ndarray]] = {}
    for label, array in load(content).items():
        *key, name = label.split("|")
        groups.setdefault(Key(*key), {})[name] = array
    return {key: from_arrays(arrays) for key, arrays in sorted(groups.items())}
