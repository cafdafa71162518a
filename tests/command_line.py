"""What is asked of every command: a flag for every setting, faults in one line.

failed(["patch", "RUN"], capsys)        # "interp: RUN is not a run: ..."
on_a_terminal(120, "head", "RUN", "L0H1")    # the lines, on a terminal of 120 columns
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable

import pytest

from interp import cli


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert cli.main(words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    said = [line for line in error.splitlines() if line.startswith("interp: ")]
    assert error.splitlines()[-1:] == said
    return said[0]


def check_flags(
    command: list[str], fields: Iterable[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every one of these settings is a flag."""
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    shown = capsys.readouterr().out
    for field in fields:
        assert f"--{field.replace('_', '-')}" in shown


def on_a_terminal(width: int, *words: str) -> list[str]:
    """Lines that a command writes on a terminal of so many columns, without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "interp", *words]
    child = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=env | {"TERM": "xterm"}
    )
    os.close(slave)
    said = b""
    while True:
        try:
            read = os.read(master, 1 << 16)
        except OSError:  # the terminal is closed: nobody writes to it any more
            break
        if not read:
            break
        said += read
    os.close(master)
    assert child.wait(60) == 0, said
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode()).replace("\r", "").splitlines()
