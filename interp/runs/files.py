"""A run on disk: one tidy table, labelled arrays, and a manifest that vouches for both.

    write_run(Path("RUN"), rows, arrays, manifest)
    read_manifest("RUN")["certificates"]

Files: `results.parquet` (columns: `COLUMNS`); `interchange.parquet`, `subspaces.parquet`,
`edges.parquet`, `weights.parquet`, `reading.parquet` and `ladder.parquet` (the same, where `interp
patch`, `interp subspace`, `interp edges`, `interp weights`, `interp read` and `interp ladder` were
run; `interp.load_run` puts all into one table), `reading_tokens.parquet` (columns:
`TOKEN_COLUMNS`),
`queries.parquet` and `answers.parquet` (the tokens measured, and what every condition wrote),
`arrays.safetensors` (dims and coordinates in the manifest), `manifest.json` (schema, configuration,
versions, sha256 of every other file and of itself). Every file is written to a temporary name,
synced and renamed, so a reader sees the old or the new one; those of a run are all written before
the first is renamed. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.untrusted import read_json

if TYPE_CHECKING:  # pandas and xarray take most of a second to import: only when a run is opened
    import pandas as pd
    import xarray as xr

SCHEMA_VERSION = 3
_UNHASHED = 2
"""The schema before: the same, but that its manifest has no hash of its own."""

TEMPORARY = ".tmp-"
"""What the name of an unfinished file, or of a folder on its way out, begins with."""

TABLE, INTERCHANGE, SUBSPACES, EDGES, WEIGHTS, READING, READ_TOKENS, LADDER = (
    "results.parquet",
    "interchange.parquet",
    "subspaces.parquet",
    "edges.parquet",
    "weights.parquet",
    "reading.parquet",
    "reading_tokens.parquet",
    "ladder.parquet",
)
QUERIES, ANSWERS, ARRAYS = "queries.parquet", "answers.parquet", "arrays.safetensors"
MANIFEST, REPORT, FIGURES = "manifest.json", "report.html", "figures"

ADDED = INTERCHANGE, SUBSPACES, EDGES, WEIGHTS, READING, LADDER
"""Tables that commands add to a finished run."""

COLUMNS = {
    "measure": "string",
    "condition": "string",
    "reference": "string",
    "site": "string",
    "layer": "Int64",
    "head": "Int64",
    "position": "string",
    "queries": "string",
    "value": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "n": "Int64",
    "p_adjusted": "float64",
    "units": "string",
}
"""Columns of `results.parquet` and their pandas dtypes.

`condition`, `reference`: what is compared (`reference` is null for a measure of one condition).
`site`: a site name or `output`; `layer`, `head`: 0-based, null where there is none.
`position`: `last` (the last token before the answer), `mean` (all tokens up to it), an index
within the query counted from its start; with answers or a chat frame a segment: `query` (its text),
`template` (what follows it), `answer` (the rows that predict the answer, `last` the first of them),
or one of these rows (`answer_0`, ...). Of an interchange,
`condition` is whose values were put into `reference`'s run, at `site` and `position` (`all`: every
token of query and answer; else a segment, `last`, or an index within the query's text), and what it
does is summed over the answer's tokens. At position `context` are the keys and values of what
precedes the query: of their distances `queries`, `n` and the interval are null, of an exchange in
all layers at once `layer` is.
`queries`: `matched` or `heldout`. `value`: NaN where the measure is undefined, `n` then says on
how few queries. `ci_low`, `ci_high`: 95 % interval, queries resampled. `p_adjusted`: null where
no test was made. Of weights alone, `queries` and `n` are null, `site` is a module's path (`path:q`:
that part of a fused one), `position` the number of a singular value, and the interval of a chance
level holds 95 % of what chance gives. Of a ladder, `condition` is whose states are mapped and
`reference` whose they are mapped to, `site` ends in the rung (`resid_post:rank_4`; `none`: no map,
`full`: the reference's own state), and `n` counts the queries that score.
"""

TOKEN_COLUMNS = {
    "lens": "string",
    "condition": "string",
    "reference": "string",
    "queries": "string",
    "site": "string",
    "layer": "Int64",
    "position": "string",
    "vector": "string",
    "share": "float64",
    "rank": "Int64",
    "token_id": "Int64",
    "token": "string",
    "score": "float64",
    "task": "boolean",
}
"""Columns of `reading_tokens.parquet`: which tokens a vector says, or which drive it.

`vector`: `mean`, or a direction and its end. `rank`: 1 is the token that it says most. `score`:
standard deviations of the vocabulary above its mean. `task`: whether it is a task word. Tokens are
kept as they are: whoever shows one escapes it.
"""


def token_hash(ids: Iterable[int]) -> str:
    """Hex sha256 of token ids in their order."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def sha256(*paths: str | Path) -> str:
    """Hex sha256 over files; directories count with every file below them, by relative name."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if path.is_dir():
                digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write through a temporary file, fsync and rename; on failure the old file is untouched."""
    with _staged({path: content}.items()):
        pass


@contextmanager
def _staged(contents: Iterable[tuple[Path, bytes]]) -> Iterator[None]:
    """Files are written beside their places, synced, and renamed one after another when left; on
    failure before that nothing has changed."""
    temporary: dict[Path, str] = {}
    path = Path()
    try:
        for path, content in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary[path] = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary[path], 0o644)
        yield
        for path, written in temporary.items():
            os.replace(written, path)
    except OSError as error:
        raise RunError(
            f"could not write {path}: {error.strerror}; free space or choose --out"
        ) from error
    finally:
        for written in temporary.values():
            Path(written).unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process has left in a run folder, and in that of its figures."""
    for leftover in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"{FIGURES}/{TEMPORARY}*")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def check_inside(root: Path, folder: Path) -> None:
    """A `RunError` where a folder of a run is a link that leads out of it."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise RunError(f"{folder} leads out of the run, to {folder.resolve()}: remove the link")


def write_run(
    path: Path,
    rows: pd.DataFrame | Iterable[dict[str, Any]],
    arrays: Mapping[str, xr.DataArray],
    manifest: dict[str, Any],
    beside: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Write the table, the arrays, tables `beside` them (file name -> table) and last the manifest
    into the folder `path`."""
    import numpy as np
    from safetensors.numpy import save

    def contents() -> Iterator[tuple[Path, bytes]]:
        for name, table in (beside or {}).items():
            yield path / name, table.to_parquet(index=False)
        yield path / TABLE, as_table(rows).to_parquet(index=False)
        values = {n: np.ascontiguousarray(array.values) for n, array in sorted(arrays.items())}
        yield path / ARRAYS, save(values)

    labels = {
        name: {
            "dims": list(map(str, array.dims)),
            "coords": {str(d): array[d].values.tolist() for d in array.dims if d in array.coords},
            **array.attrs,
        }
        for name, array in sorted(arrays.items())
    }
    files = [TABLE, ARRAYS, *(beside or {})]
    with _staged(contents()):  # of a run that is replaced nothing is left from here on
        for name in (MANIFEST, *ADDED, READ_TOKENS, QUERIES, ANSWERS):
            (path / name).unlink(missing_ok=True)
    seal(path, {**manifest, "schema_version": SCHEMA_VERSION, "arrays": labels}, files)


def add_interchange(path: Path, rows: pd.DataFrame, findings: Mapping[str, Any]) -> None:
    """Write what `interp patch` measured beside a finished run, and its findings into the
    manifest."""
    _add(path, {INTERCHANGE: as_table(rows)}, "interchange", findings)


def add_weights(path: Path, rows: pd.DataFrame, findings: Mapping[str, Any]) -> None:
    """The same of `interp weights`."""
    _add(path, {WEIGHTS: as_table(rows)}, "weights", findings)


def add_reading(
    path: Path, rows: pd.DataFrame, tokens: pd.DataFrame, findings: Mapping[str, Any]
) -> None:
    """The same of `interp read`, whose ranked `tokens` are a table of their own."""
    ranked = tokens.reindex(columns=list(TOKEN_COLUMNS)).astype(TOKEN_COLUMNS)
    _add(path, {READING: as_table(rows), READ_TOKENS: ranked}, "reading", findings)


def add_subspaces(path: Path, rows: pd.DataFrame, findings: Mapping[str, Any]) -> None:
    """The same of `interp subspace`."""
    _add(path, {SUBSPACES: as_table(rows)}, "subspaces", findings)


def add_edges(path: Path, rows: pd.DataFrame, findings: Mapping[str, Any]) -> None:
    """The same of `interp edges`."""
    _add(path, {EDGES: as_table(rows)}, "edges", findings)


def add_ladder(path: Path, rows: pd.DataFrame, findings: Mapping[str, Any]) -> None:
    """The same of `interp ladder`."""
    _add(path, {LADDER: as_table(rows)}, "ladder", findings)


def _add(
    path: Path, tables: Mapping[str, pd.DataFrame], entry: str, findings: Mapping[str, Any]
) -> None:
    manifest = read_manifest(path)
    for file in tables:
        manifest["files"].pop(file, None)
    if manifest.pop(entry, None):
        seal(path, manifest, [])  # a crash from here on leaves the run without this part
    for file, table in tables.items():
        write_atomic(path / file, table.to_parquet(index=False))
    seal(path, {**manifest, entry: dict(findings)}, list(tables))


def seal(path: Path, manifest: dict[str, Any], files: Iterable[str]) -> None:
    """Write the manifest with the sha256 of `files` added to those it already vouches for, and its
    own."""
    hashes = {**manifest.get("files", {}), **{name: sha256(path / name) for name in files}}
    document = {**manifest, "files": dict(sorted(hashes.items()))}
    if document.get("schema_version") == _UNHASHED:
        document["schema_version"] = SCHEMA_VERSION
    document[_OWN] = _own_hash(document)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path / MANIFEST, text.encode())


_OWN = "sha256 of this manifest"


def _own_hash(manifest: Mapping[str, Any]) -> str:
    """Hex sha256 of all other entries, in the one form that JSON's writer gives them."""
    entries = {name: value for name, value in manifest.items() if name != _OWN}
    text = json.dumps(entries, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def as_table(rows: pd.DataFrame | Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows (dicts; missing columns are null) as a DataFrame with exactly `COLUMNS`."""
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    return frame.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a run folder, its schema checked."""
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise RunError(
            f"{path} is not a run: it has no {MANIFEST}; make one with `interp diverge --out`"
        )
    try:
        manifest = read_json(file.read_bytes())
        version = _version_of(manifest)
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged ({error}); run `interp diverge` again") from error
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{file} has schema version {version}, this interp reads {SCHEMA_VERSION}: "
            "update interp"
        )
    if version < _UNHASHED:
        raise RunError(
            f"{file} has schema version {version}, this interp reads {SCHEMA_VERSION}: "
            "run `interp diverge` again"
        )
    try:
        _check_entries(manifest, version)
    except ValueError as error:
        raise RunError(f"{file} is damaged ({error}); run `interp diverge` again") from error
    return manifest


def _version_of(manifest: Any) -> int:
    """The schema version of what may be a manifest."""
    if not isinstance(manifest, dict):
        raise ValueError("it has no entries")
    version = manifest.get("schema_version")
    if type(version) is not int or version < 1:
        raise ValueError(f"its schema_version is {version!r}")
    return version


_DIGEST = re.compile("[0-9a-f]{64}")


def _check_entries(manifest: Mapping[str, Any], version: int) -> None:
    """A ValueError where a manifest is not what `seal` has written."""
    if (version == SCHEMA_VERSION or _OWN in manifest) and manifest.get(_OWN) != _own_hash(
        manifest
    ):
        raise ValueError("it is not what was written: its sha256 differs")
    for entry in ("files", "arrays"):
        if not isinstance(manifest.get(entry), dict):
            raise ValueError(f"it has no {entry}")
    for name, digest in manifest["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not _DIGEST.fullmatch(str(digest)):
            raise ValueError(f"it vouches for no file {name!r}")
    for name, label in manifest["arrays"].items():
        if not (isinstance(label, dict) and isinstance(label.get("dims"), list)
                and isinstance(label.get("coords"), dict)):  # fmt: skip
            raise ValueError(f"array {name!r} has no dims or coords")
    for name in (TABLE, ARRAYS):
        if name not in manifest["files"]:
            raise ValueError(f"it vouches for no {name}")
