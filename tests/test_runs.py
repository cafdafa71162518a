"""A run on disk: what is written is read back, and what was tampered with is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from manifests import certificate, run_manifest

from interp.errors import RunError
from interp.names import Head
from interp.runs.files import (
    ARRAYS,
    COLUMNS,
    MANIFEST,
    SCHEMA_VERSION,
    TABLE,
    as_table,
    read_manifest,
    seal,
    sha256,
    write_atomic,
    write_run,
)
from interp.runs.heads import HeadView
from interp.runs.view import load_run

ROWS: list[dict[str, Any]] = [
    {"measure": "relative_l2", "condition": "prompt", "reference": "lora", "site": "z",
     "layer": 1, "head": 2, "position": "last", "queries": "matched", "value": 0.25,
     "ci_low": 0.2, "ci_high": 0.3, "n": 7, "units": "ratio"},
    {"measure": "accuracy", "condition": "base", "reference": None, "site": "output",
     "position": "last", "queries": "matched", "value": float("nan"), "n": 0, "units": "share"},
]  # fmt: skip


def head_view() -> HeadView:
    patterns = np.full((2, 1, 3, 4), np.nan, np.float32)
    patterns[:, :, 0, :2] = 0.5
    return HeadView(
        head=Head(1, 2),
        conditions=["base", "prompt"],
        pairs=[("prompt", "base")],
        tokens=[["</script>", "\0", "ש"]],
        patterns=patterns,
        content_js=np.array([[0.1]]),
        attended=[{"condition": "base", "token": "a", "where": "query", "position": 0, "mass": 1}],
    )


def some_arrays() -> dict[str, xr.DataArray]:
    gram = xr.DataArray(
        np.arange(8.0).reshape(2, 2, 2).transpose(2, 1, 0),  # not contiguous
        dims=("condition", "condition2", "layer"),
        coords={"condition": ["base", "prompt"], "condition2": ["base", "prompt"]},
    )
    return {"gram_z": gram} | head_view().arrays()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    write_run(run, ROWS, some_arrays(), {"seed": 3, "head_view": head_view().manifest()})
    return run


# What is written is read back -------------------------------------------------------------------


def test_the_table_comes_back_with_its_columns_and_types(folder: Path) -> None:
    table = load_run(folder).table
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == COLUMNS
    pd.testing.assert_frame_equal(table, as_table(ROWS))
    assert table["layer"].isna().tolist() == [False, True]


def test_the_arrays_come_back_to_the_bit_with_their_labels(folder: Path) -> None:
    arrays = load_run(folder).arrays
    for name, written in some_arrays().items():
        assert arrays[name].dims == written.dims
        assert arrays[name].values.tobytes() == np.ascontiguousarray(written.values).tobytes()
        assert arrays[name].dtype == written.dtype
        assert list(arrays[name].coords) == list(written.coords)
    assert arrays["gram_z"].sel(condition="prompt", condition2="base").values.tolist() == [1.0, 5.0]


def test_the_head_view_comes_back(folder: Path) -> None:
    read, written = HeadView.of(load_run(folder)), head_view()
    np.testing.assert_array_equal(read.patterns, written.patterns)
    np.testing.assert_array_equal(read.content_js, written.content_js)
    for field in ("head", "conditions", "pairs", "tokens", "attended"):
        assert getattr(read, field) == getattr(written, field)


def test_the_manifest_says_what_it_was_given_and_vouches_for_both_files(folder: Path) -> None:
    manifest = load_run(folder).manifest
    assert manifest["seed"] == 3
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["files"] == {name: sha256(folder / name) for name in (TABLE, ARRAYS)}


def test_a_table_has_exactly_the_columns_whatever_rows_bring() -> None:
    table = as_table([{"measure": "cosine", "value": 1, "other": "dropped"}])
    assert list(table.columns) == list(COLUMNS)
    assert table["ci_low"].isna().all()
    assert as_table([]).shape == (0, len(COLUMNS))


def test_sealing_adds_files_and_keeps_those_vouched_for(folder: Path) -> None:
    write_atomic(folder / "report.html", b"<p>")
    seal(folder, read_manifest(folder), ["report.html"])
    assert set(load_run(folder).manifest["files"]) == {TABLE, ARRAYS, "report.html"}


def test_sha256_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    for name, files in {"a": {"x": b"1"}, "b": {"y": b"1"}, "c": {"x": b"2"}}.items():
        for file, content in files.items():
            write_atomic(tmp_path / name / file, content)
    digests = {sha256(tmp_path / name) for name in "abc"}
    assert len(digests) == 3
    assert sha256(tmp_path / "a") in digests


# Writing is all or nothing ----------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """A stream whose disk is full once something is written."""

    def __init__(self, handle: int, _: str) -> None:
        self.handle = handle

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    write = staticmethod(no_space)


@pytest.mark.parametrize(
    ("module", "function", "fault"),
    [
        (os, "replace", no_space),
        (os, "fsync", no_space),
        (os, "fdopen", FullDisk),
        (tempfile, "mkstemp", no_space),
    ],
    ids=["rename", "sync", "write", "create"],
)
def test_a_full_disk_leaves_the_old_file_and_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, fault: Any
) -> None:
    path = tmp_path / "kept.bin"
    write_atomic(path, b"old")
    monkeypatch.setattr(module, function, fault)
    with pytest.raises(RunError) as caught:
        write_atomic(path, b"new, and longer")
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept.bin"]


def test_an_interrupt_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "kept.bin"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept.bin"]


def test_a_folder_below_a_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run/x\.bin"):
        write_atomic(tmp_path / "file" / "run" / "x.bin", b"")


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b))[1])
    write_run(tmp_path, ROWS, some_arrays(), {})
    assert order == [TABLE, ARRAYS, MANIFEST]


# Tampering and damage ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TABLE, ARRAYS])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_byte_is_refused(folder: Path, name: str, place: float) -> None:
    content = bytearray((folder / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name}.*sha256"):
        load_run(folder)


def test_one_flipped_byte_in_a_vouched_hash_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    digest = sha256(folder / TABLE)
    other = ("0" if digest[0] != "0" else "1") + digest[1:]
    (folder / MANIFEST).write_text(text.replace(digest, other))
    with pytest.raises(RunError, match="sha256"):
        load_run(folder)


@pytest.mark.parametrize("name", [TABLE, ARRAYS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        load_run(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_half_written_manifest_is_a_clear_error(folder: Path, share: float) -> None:
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunError, match="is damaged"):
        load_run(folder)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'"text"', b'{"schema_version": null}', b"\xff"])
def test_a_manifest_that_is_something_else_is_damaged(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(RunError, match=f"{MANIFEST} is damaged"):
        load_run(folder)


def test_a_manifest_that_names_no_files_is_a_clear_error(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"schema_version": SCHEMA_VERSION}))
    with pytest.raises(RunError):
        load_run(folder)


def test_a_newer_schema_names_both_versions(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["schema_version"] = SCHEMA_VERSION + 41
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=rf"{SCHEMA_VERSION + 41}.*{SCHEMA_VERSION}.*update interp"):
        load_run(folder)


def test_an_older_schema_names_both_versions(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["schema_version"] = 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(
        RunError,
        match=rf"version 1, .*{SCHEMA_VERSION}.*run `interp diverge` again",
    ):
        load_run(folder)


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_not_a_run_says_how_to_make_one(tmp_path: Path, exists: bool) -> None:
    path = tmp_path if exists else tmp_path / "nothing"
    with pytest.raises(RunError, match="interp diverge --out"):
        load_run(path)


def test_a_manifest_never_holds_a_number_that_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_run(tmp_path, ROWS, {}, {"seed": float("nan")})
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ((True, True), "PASS prompt vs lora, matched: .*; heldout: "),
        ((True, False), "FAIL prompt vs lora, matched: .*; heldout FAIL: "),
        ((False, False), "FAIL prompt vs lora, matched: .*; heldout: "),
        ((False,), "FAIL prompt vs lora, matched: "),
    ],
)
def test_a_verdict_says_once_that_it_failed_and_where(
    passed: tuple[bool, ...], said: str, tmp_path: Path
) -> None:
    pair = ("prompt", "lora")
    certificates = [
        certificate(pair, queries, 20, 0.01, one, "hot ->")
        for queries, one in zip(("matched", "heldout"), passed, strict=False)
    ]
    write_run(tmp_path, ROWS, {}, run_manifest({}, pair, certificates=certificates))
    assert re.match(said, load_run(tmp_path).verdict().text)
