"""What stands in a run folder, and whether something may be written there. Torch-free.

refuse_finished(Path("RUN"), resume=False, overwrite=False)     # a RunError says what is there
"""

from __future__ import annotations

import os
from pathlib import Path

from interp.errors import RunError
from interp.runs.files import MANIFEST, check_inside
from interp.untrusted import read_json

UNFINISHED = ".unfinished"
"""Folder of the shards of an unfinished run, within its own."""

SETTINGS = "settings.json"
"""File there that says what they are shards of."""

SHARDS = "*.safetensors"


def has_begun(out: Path) -> bool:
    """Whether something unfinished lies in a run folder."""
    return any((out / UNFINISHED).glob(SHARDS))


def begun_by(out: Path) -> str | None:
    """The command that measures more of a finished run and has begun, such as `ladder`; None where
    a run itself has, or where nothing says so."""
    try:
        settings = read_json((out / UNFINISHED / SETTINGS).read_bytes())
    except (OSError, ValueError):
        return None
    command = settings.get("command") if isinstance(settings, dict) else None
    return command if isinstance(command, str) and command.isidentifier() else None


def refuse_finished(out: Path, *, resume: bool, overwrite: bool) -> None:
    """A `RunError` where a folder holds a run that nobody wants replaced, or nothing can be
    written."""
    check_inside(out, out / UNFINISHED)
    begun, finished = has_begun(out), (out / MANIFEST).exists()
    if finished and not (overwrite or (resume and begun)):
        if begun:
            raise RunError(_beside(out))
        raise RunError(f"{out} holds a finished run; choose another --out or pass --overwrite")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise RunError(f"cannot write to {out}: {there} takes no files; choose another --out")


def refuse_unfinished(out: Path, *, resume: bool, overwrite: bool) -> None:
    """A `RunError` where a folder holds something unfinished that nobody wants to go on with."""
    if has_begun(out) and not (resume or overwrite):
        raise RunError(f"{out} holds an unfinished run; pass --resume to go on or --overwrite")


def refuse_other(out: Path, command: str) -> None:
    """A `RunError` where something else than this command of a finished run has begun there: its
    shards would be lost."""
    if has_begun(out) and (other := begun_by(out)) != command:
        what = f"`interp {other}` of it" if other else "run that is to replace it"
        raise RunError(
            f"{out} holds an unfinished {what}: end that first (--resume), or remove "
            f"{out / UNFINISHED}"
        )


def _beside(out: Path) -> str:
    """What to do about something unfinished beside a finished run."""
    if command := begun_by(out):
        return (
            f"{out} holds a finished run, which is whole, and an unfinished `interp {command}` of "
            "it: go on with that (--resume), pass --overwrite to begin a new run, or choose "
            "another --out"
        )
    return (
        f"{out} holds a finished run, which is whole, and an unfinished one that is to replace it: "
        "pass --overwrite --resume to go on with that, --overwrite to begin anew, or choose "
        "another --out"
    )
