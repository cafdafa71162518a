"""Shards of an unfinished run: content-addressed, atomic, and refused when the settings changed.

    with Store.open(out, settings, resume=True) as store:
        tally = store.sharded("matched", len(queries), begin, 16, print, InProcess(subject))
        store.finish()

They lie in `OUT/.unfinished/` and go when the run is written. A shard's name ends in the sha256 of
its bytes, so a truncated or altered file is not found and is computed again. Of a shard that is not
done, its first chunks are kept too: every minute, and when it is interrupted (in this process; a
worker of Ray begins its shard again).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from interp.capture import chunks
from interp.config import OfRun
from interp.engines import Engine, InProcess, Tick
from interp.errors import RunError
from interp.measures.tally import Summing, Tally, absorb_, as_it_is
from interp.runs.claiming import (
    SETTINGS,
    SHARDS,
    UNFINISHED,
    begun_by,
    has_begun,
    refuse_finished,
    refuse_other,
    refuse_unfinished,
)
from interp.runs.files import TABLE, TEMPORARY, remove_temporaries, write_atomic
from interp.shards import (
    FirstChunks,
    ShardWork,
    by_chunk,
    read_shard,
    shard_bytes,
    write_shard,
)
from interp.untrusted import read_json

SHARD = 64
"""Queries per shard."""

_Context = TypeVar("_Context")

FOLDER, _LOCK = UNFINISHED, "lock"


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
        refuse_finished(out, resume=resume, overwrite=overwrite)
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
                command = begun_by(out)
                raise RunError(
                    f"another process measures more of {out} (`interp {command}`): wait for its end"
                    if command
                    else f"another process is writing {out}: wait for its end, or choose another "
                    "--out"
                ) from error
            store = cls(folder)
            store._claim(out, dict(settings), resume=resume, overwrite=overwrite)
            yield store

    @classmethod
    @contextmanager
    def of_run(
        cls,
        settings: OfRun,
        manifest: Mapping[str, Any],
        command: str,
        besides: Collection[str] = (),
    ) -> Iterator[Store]:
        """The shards of what a command measures more of a finished run; they go once it has ended.
        `besides`: settings that, like the device, do not change the numbers (beyond rounding)."""
        without = {*OfRun.model_fields, *besides}
        begun = {
            **settings.model_dump(mode="json", exclude=without),
            "command": command,
            "sha256 of the run": manifest["files"][TABLE],
        }
        with cls.open(settings.run, begun, resume=settings.resume, overwrite=True) as store:
            yield store
            store.finish()

    def _claim(self, out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        file = self.folder / SETTINGS
        refuse_unfinished(out, resume=resume, overwrite=overwrite)
        if command := settings.get("command"):
            refuse_other(out, command)
        if has_begun(out) and resume:
            way_out = "start again without --resume" if overwrite else "pass --overwrite"
            _refuse_changes(_settings_in(file, way_out), settings, out, way_out)
        else:
            for shard in self.folder.glob(SHARDS):
                shard.unlink()
        for place in (self.folder, out):
            remove_temporaries(place)
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

        Shards are merged in their order, whichever is done first, and within a shard chunks in
        theirs, so every engine's run and a resumed one have the same bits; `summed`: how what a
        shard keeps by query becomes sums.
        """
        shards = {
            f"{name}-{number:05d}": shard
            for number, shard in enumerate(chunks(range(count), SHARD))
        }
        missing = {
            place: s for place, s in shards.items() if shard_bytes(self.folder, place) is None
        }
        for place, shard in shards.items():
            if place not in missing:
                progress(len(shard))
        here = isinstance(engine, InProcess)
        items = [ShardWork(s, self._part(place) if here else None) for place, s in missing.items()]
        work = partial(by_chunk, begin, size)
        newly = self._kept(list(missing), engine.run(work, items, progress))
        total: Tally = {}
        for place, shard in shards.items():
            done = None if place in missing else self.get(place)
            while place in missing:  # others that are done before it are read again in their turn
                finished, done = next(newly)
                del missing[finished]
            assert done is not None, place
            absorb_(total, done, summed(shard))
        return dict(sorted(total.items()))

    def _part(self, place: str) -> FirstChunks:
        """Where the first chunks of a shard are kept."""
        return FirstChunks(self.folder, f"{place}.part")

    def _kept(
        self, places: Sequence[str], results: Iterator[tuple[int, Tally]]
    ) -> Iterator[tuple[str, Tally]]:
        """Shards by their place, once they are on disk."""
        for number, done in results:
            self.put(places[number], done)
            self._part(places[number]).drop()
            yield places[number], done

    def get(self, shard: str) -> Tally | None:
        """A finished shard, or None."""
        return read_shard(self.folder, shard)

    def put(self, shard: str, tally: Tally) -> None:
        """Keep a finished shard."""
        write_shard(self.folder, shard, tally)

    def finish(self) -> None:
        """Remove the shards: the run is written. Their folder goes at once, and then what is in
        it."""
        gone = tempfile.mkdtemp(dir=self.folder.parent, prefix=TEMPORARY)
        os.replace(self.folder, gone)
        shutil.rmtree(gone)


def _settings_in(file: Path, way_out: str) -> dict[str, Any]:
    """The settings of an unfinished run; a `RunError` where they are lost."""
    try:
        settings = read_json(file.read_bytes())
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise RunError(
            f"{file} is missing or damaged, and nothing else says what the unfinished run's shards "
            f"are of: {way_out}"
        )
    return settings


def _refuse_changes(before: dict[str, Any], now: dict[str, Any], out: Path, way_out: str) -> None:
    now = json.loads(json.dumps(now))
    different = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if different:
        raise RunError(
            f"{out} was begun with other settings ({', '.join(different)}): "
            f"resume with the same ones, or {way_out}"
        )
