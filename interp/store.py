"""Shards of an unfinished run: content-addressed, atomic, and refused when the settings changed.

    with Store.open(out, settings, resume=True) as store:
        tally = store.sharded("matched", len(queries), begin, 16, print, InProcess(subject))
        store.finish()

They lie in `OUT/.unfinished/` and go when the run is written. A shard's name ends in the sha256 of
its bytes, so a truncated or altered file is not found and is computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import load, save

from interp.capture import chunks
from interp.engines import Engine, Tick
from interp.errors import RunError
from interp.measures.tally import Key, Summing, Tally, absorb_, as_it_is, from_arrays
from interp.runs.files import MANIFEST, write_atomic

SHARD = 64
"""Queries per shard: what is lost at most when a run is killed."""

_Context = TypeVar("_Context")

FOLDER, _SETTINGS, _LOCK, _SUFFIX = ".unfinished", "settings.json", "lock", ".safetensors"


@dataclass(frozen=True)
class Store:
    """The shards of one run."""

    folder: Path

    @classmethod
    @contextmanager
    def open(
        cls,
        out: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> Iterator[Store]:
        """Claim a run folder; refuses one in use, finished, or begun with other settings."""
        folder = out / FOLDER
        begun = any(folder.glob(f"*{_SUFFIX}"))
        if (out / MANIFEST).exists() and not (overwrite or (resume and begun)):
            raise RunError(f"{out} holds a finished run; choose another --out or pass --overwrite")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / _LOCK).open("w")
        except OSError as error:
            raise RunError(
                f"cannot write to {out}: {error.strerror}; choose another --out"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another process is writing {out}; choose another --out") from error
            store = cls(folder)
            store._claim(out, dict(settings), resume=resume, overwrite=overwrite)
            yield store

    def _claim(self, out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        file = self.folder / _SETTINGS
        begun = any(self.folder.glob(f"*{_SUFFIX}"))
        if begun and not (resume or overwrite):
            raise RunError(f"{out} holds an unfinished run; pass --resume to go on or --overwrite")
        if begun and resume:
            way_out = "start again without --resume" if overwrite else "pass --overwrite"
            _refuse_changes(json.loads(file.read_text(encoding="utf-8")), settings, out, way_out)
        else:
            for shard in self.folder.glob(f"*{_SUFFIX}"):
                shard.unlink()
        for leftover in self.folder.glob(".tmp-*"):
            leftover.unlink()
        write_atomic(file, json.dumps(settings, indent=1, sort_keys=True).encode())

    def sharded(
        self,
        name: str,
        count: int,
        begin: Callable[[_Context], Callable[[Sequence[int]], Tally]],
        size: int,
        progress: Tick,
        engine: Engine[_Context],
        summed: Callable[[Sequence[int]], Summing] = lambda shard: as_it_is,
    ) -> Tally:
        """What `begin` (on the engine's context) makes of the numbers of `count` queries, at most
        `size` at a time. Shards that an earlier attempt finished are not done again; `progress` is
        told how many newly are.

        Shards are merged in their order, whichever is done first, so every engine's run and a
        resumed one have the same bits; `summed`: how what a shard keeps by query becomes sums.
        """
        shards = {
            f"{name}-{number:05d}": shard
            for number, shard in enumerate(chunks(range(count), SHARD))
        }
        missing = {place: s for place, s in shards.items() if self._content(place) is None}
        for place, shard in shards.items():
            if place not in missing:
                progress(len(shard))
        work = partial(_by_chunk, begin, size)
        newly = self._kept(list(missing), engine.run(work, list(missing.values()), progress))
        total: Tally = {}
        for place, shard in shards.items():
            done = None if place in missing else self.get(place)
            while place in missing:  # others that are done before it are read again in their turn
                finished, done = next(newly)
                del missing[finished]
            assert done is not None, place
            absorb_(total, done, summed(shard))
        return total

    def _kept(
        self, places: Sequence[str], results: Iterator[tuple[int, Tally]]
    ) -> Iterator[tuple[str, Tally]]:
        """Shards by their place, once they are on disk."""
        for number, done in results:
            self.put(places[number], done)
            yield places[number], done

    def get(self, shard: str) -> Tally | None:
        """A finished shard, or None."""
        content = self._content(shard)
        return None if content is None else _unpack(content)

    def _content(self, shard: str) -> bytes | None:
        """The bytes of a finished shard; what is damaged is removed."""
        for path in sorted(self.folder.glob(f"{shard}-*{_SUFFIX}")):
            content = path.read_bytes()
            if path.stem.removeprefix(f"{shard}-") == hashlib.sha256(content).hexdigest():
                return content
            path.unlink()
        return None

    def put(self, shard: str, tally: Tally) -> None:
        """Keep a finished shard."""
        content = _pack(tally)
        name = f"{shard}-{hashlib.sha256(content).hexdigest()}{_SUFFIX}"
        write_atomic(self.folder / name, content)

    def finish(self) -> None:
        """Remove the shards: the run is written."""
        shutil.rmtree(self.folder)


def _by_chunk(
    begin: Callable[[_Context], Callable[[Sequence[int]], Tally]], size: int, context: _Context
) -> Callable[[Sequence[int], Tick], Tally]:
    """Work on a shard: its queries, at most `size` at a time."""
    compute = begin(context)

    def shard(numbers: Sequence[int], tick: Tick) -> Tally:
        done: Tally = {}
        for part in chunks(numbers, size):
            absorb_(done, compute(part))
            tick(len(part))
        return done

    return shard


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


def _refuse_changes(before: dict[str, Any], now: dict[str, Any], out: Path, way_out: str) -> None:
    now = json.loads(json.dumps(now))
    different = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if different:
        raise RunError(
            f"{out} was begun with other settings ({', '.join(different)}): "
            f"resume with the same ones, or {way_out}"
        )
