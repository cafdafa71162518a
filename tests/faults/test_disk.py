"""Files of a run: what a full disk, a kill, a link or another hand makes of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from killing import in_child

from interp.errors import RunError
from interp.plots import export
from interp.report.writing import write
from interp.runs.files import (
    ARRAYS,
    FIGURES,
    MANIFEST,
    SCHEMA_VERSION,
    TABLE,
    TEMPORARY,
    read_manifest,
    remove_temporaries,
    seal,
    write_run,
)
from interp.runs.view import load_run
from interp.store import FOLDER, Store

ROWS = [{"measure": "cosine", "condition": "a", "reference": "b", "value": 0.5, "n": 3}]
ARRAY = {"gram": xr.DataArray(np.arange(3.0), dims=("layer",), coords={"layer": [0, 1, 2]})}
PASSED = {"certificates": [{"condition": "a", "passed": True, "mean_js": 0.1}], "seed": 3}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", ROWS, ARRAY, PASSED)
    return tmp_path / "run"


def put(run: Path, manifest: Any) -> None:
    (run / MANIFEST).write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))


# The manifest ------------------------------------------------------------------------------------


def test_every_entry_of_the_manifest_is_vouched_for(run: Path) -> None:
    """Renaming what a certificate says is `passed` was taken silently once."""
    text = (run / MANIFEST).read_text()
    found = load_run(run).manifest
    for old, new in {'"passed"': '"passes"', "0.1": "0.2", '"seed": 3': '"seed": 4'}.items():
        assert old in text
        put(run, text.replace(old, new))
        with pytest.raises(RunError, match="sha256 differs"):
            load_run(run)
    put(run, json.dumps(found, indent=7, sort_keys=True))  # the same entries, written otherwise
    assert load_run(run).manifest == found


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_one_flipped_byte_of_the_manifest_never_changes_what_is_read(run: Path, place: int) -> None:
    content = bytearray((run / MANIFEST).read_bytes())
    before = read_manifest(run)
    content[len(content) * place // 100] ^= 1
    (run / MANIFEST).write_bytes(content)
    try:
        after = read_manifest(run)
    except RunError:
        return
    assert after == before  # white space


def test_a_run_of_the_schema_before_is_read_and_sealed_as_of_now(run: Path) -> None:
    manifest = json.loads((run / MANIFEST).read_text())
    del manifest["sha256 of this manifest"]
    put(run, manifest | {"schema_version": SCHEMA_VERSION})
    with pytest.raises(RunError, match="sha256 differs"):
        load_run(run)
    put(run, manifest | {"schema_version": 2})
    seal(run, read_manifest(run), [])
    assert load_run(run).manifest["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema_version": 1e999}, "Infinity"),
        ({"schema_version": 0}, "schema_version is 0"),
        ({"schema_version": "2"}, "schema_version is '2'"),
        ({"schema_version": True}, "schema_version is True"),
        ({"files": []}, "no files"),
        ({"files": [["a", "b"]]}, "no files"),
        ({"files": {}}, "no results.parquet"),
        ({"files": {"../x": "0" * 64}}, "no file '../x'"),
        ({"files": {"/etc/passwd": "0" * 64}}, "no file"),
        ({"files": {TABLE: 7}}, "no file"),
        ({"arrays": None}, "no arrays"),
        ({"arrays": {"a": {"dims": 3}}}, "no dims"),
    ],
)
def test_a_manifest_of_another_shape_is_damaged(
    run: Path, changed: dict[str, Any], said: str
) -> None:
    manifest = json.loads((run / MANIFEST).read_text())
    del manifest["sha256 of this manifest"]
    put(run, (manifest | {"schema_version": 2} | changed))
    with pytest.raises(RunError, match="is damaged") as caught:
        load_run(run)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# Disks, kills, links -----------------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_leaves_the_old_run_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = load_run(run).manifest
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_run(run, ROWS * 2, {}, {})
    monkeypatch.undo()
    assert load_run(run).manifest == before
    assert sorted(os.listdir(run)) == sorted([TABLE, ARRAYS, MANIFEST])


def killed_while_removing(folder: Path) -> None:
    def removing(path: Any) -> None:
        os.remove(Path(path) / "settings.json")
        os.kill(os.getpid(), signal.SIGKILL)

    with Store.open(folder, {"seed": 0}) as store:
        (store.folder / "matched-00000-x.safetensors").write_bytes(b"a")
        shutil.rmtree = removing
        store.finish()


def test_a_kill_while_the_shards_are_removed_leaves_no_trace(tmp_path: Path) -> None:
    """The folder went file by file once, its settings first: `--resume` then was a traceback."""
    assert in_child(lambda: killed_while_removing(tmp_path))
    assert not (tmp_path / FOLDER).exists()
    assert len(list(tmp_path.glob(f"{TEMPORARY}*"))) == 1
    with Store.open(tmp_path, {"seed": 1}, resume=True):
        assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


@pytest.mark.parametrize("content", [None, b"", b'{"seed": ', b"[]", b"\xff", b'{"a": 1, "a": 1}'])
def test_lost_settings_of_an_unfinished_run_are_one_line(
    tmp_path: Path, content: bytes | None
) -> None:
    with Store.open(tmp_path, {"seed": 0}) as store:
        (store.folder / "matched-00000-x.safetensors").write_bytes(b"a")
    file = tmp_path / FOLDER / "settings.json"
    file.unlink() if content is None else file.write_bytes(content)
    with (
        pytest.raises(RunError, match=r"settings\.json is missing or damaged.*--overwrite"),
        Store.open(tmp_path, {"seed": 0}, resume=True),
    ):
        pass


def test_temporary_files_in_the_run_folder_go(run: Path) -> None:
    (run / FIGURES).mkdir()
    left = [run / f"{TEMPORARY}a", run / FIGURES / f"{TEMPORARY}b", run / f"{TEMPORARY}c"]
    for path in left[:2]:
        path.write_text("half")
    (left[2] / "matched").mkdir(parents=True)
    remove_temporaries(run)
    assert not any(path.exists() for path in left)
    assert load_run(run)


def test_a_linked_folder_of_figures_is_refused(run: Path, tmp_path: Path) -> None:
    """Writing and removing would go to where the link leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.json").write_text("{}")
    (run / FIGURES).symlink_to(elsewhere)
    for draw in (lambda: write(run), lambda: export({}, run / FIGURES)):
        with pytest.raises(RunError, match="leads out of the run"):
            draw()
    assert [path.name for path in elsewhere.iterdir()] == ["mine.json"]
    (run / FIGURES).unlink()
    (run / "inside").mkdir()
    (run / FIGURES).symlink_to("inside")
    assert export({}, run / FIGURES) == []


def test_a_linked_folder_of_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out"), Store.open(tmp_path / "run", {}):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_files_that_were_sealed_damaged_are_one_line(run: Path) -> None:
    """Whoever seals a manifest over garbage gets no traceback out of it."""
    for name in (TABLE, ARRAYS):
        copied = run.parent / name
        shutil.copytree(run, copied)
        (copied / name).write_bytes(b"garbage")
        seal(copied, read_manifest(copied), [name])
        with pytest.raises(RunError, match="is damaged"):
            load_run(copied)
