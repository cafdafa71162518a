"""Run the tutorial for real, and write what its commands print into it.

    python recipes/tutorial.py                     # docs/tutorial.md, some minutes
    python recipes/tutorial.py docs/howto/x.md     # another page

A block of code in the language `console` has lines of shell after `$ ` (those that begin with `> `
go on), each followed by what it prints. All blocks of a page run in the repository's root;
what goes to stderr (progress, notes) is not shown.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
COLUMNS = "80"


def commands_of(block: str) -> list[str]:
    """The commands of a block, each with the lines that go on."""
    found: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif line.startswith("> ") and found:
            found[-1] += f"\n{line[2:]}"
    return found


def shown(command: str) -> str:
    """A command as it is written on the page, and what it prints."""
    first, *rest = command.split("\n")
    typed = "\n".join([f"$ {first}", *(f"> {line}" for line in rest)])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "COLUMNS": COLUMNS, "PATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    print(f"{done.returncode} {typed}", file=sys.stderr)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {command}")
    said = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
    return f"{typed}\n{said}\n\n" if said else f"{typed}\n"


def run_page(page: Path) -> None:
    """Run the page's commands in their order, and write what they print."""

    def again(block: re.Match[str]) -> str:
        return "```console\n" + "".join(map(shown, commands_of(block[1]))).rstrip() + "\n```"

    page.write_text(BLOCK.sub(again, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or [str(PAGE)]:
        run_page(Path(name))
