"""What stands in a run folder, and whether something may be written there. Torch-free.

refuse_finished(Path("RUN"), resume=False, overwrite=False)     # a RunError says what is there
"""

from __future__ import annotations

import os
from pathlib import Path

from interp.errors import RunError
from interp.runs.files import MANIFEST, check_inside

UNFINISHED = ".unfinished"
"""Folder of the shards of an unfinished run, within its own."""

SHARDS = "*.safetensors"


def has_begun(out: Path) -> bool:
    """Whether something unfinished lies in a run folder."""
    return any((out / UNFINISHED).glob(SHARDS))


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


def _beside(out: Path) -> str:
    """What to do about something unfinished beside a finished run."""
    return (
        f"{out} holds a finished run, which is whole, and something unfinished beside it (a run "
        "that is to replace it, or an `interp patch` or `weights` of it): pass --overwrite "
        "--resume to go on with such a run, --overwrite to begin one, or choose another --out"
    )
