"""A script of `analyses/`, run as `python FILE WORDS` runs it, without its seconds of imports.

done = script("head_probe.py", "--heads", "L1H7", folder=tmp_path)
done.returncode, done.stdout, done.stderr
"""

from __future__ import annotations

import inspect
import io
import os
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest

ANALYSES = Path(__file__).resolve().parent.parent / "analyses"


def script(name: str, *words: str, folder: Path) -> CompletedProcess[str]:
    """Run a script in a folder, in this process; a fault that it does not tell itself is raised."""
    command, out, error = [str(ANALYSES / name), *words], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(error):
        patched.chdir(folder)
        patched.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(command[0], run_name="__main__")
    inspect.modulesbyfile.pop(os.path.realpath(command[0]), None)  # it is no `__main__` any more
    code = left.value.code
    assert code is None or isinstance(code, int), code
    return CompletedProcess(command, code or 0, out.getvalue(), error.getvalue())
