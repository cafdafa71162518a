"""The `interp` command: picks a subcommand, runs it, and turns errors into one line.

Exit codes: 0 done, 1 a check of `interp validate` failed, 2 bad input or a model that cannot be
trusted, 130 interrupted. Nothing that needs torch is imported before a subcommand has read its
flags.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from interp import __version__
from interp.errors import ConfigError, InterpError, similar

_Command = Callable[[Sequence[str]], None]
_HELP = ("-h", "--help", "help")

OF_RUN = {
    "patch": "is one condition's internal state as good as the other's? interp patch RUN",
    "subspace": "in how few dimensions does a state act? interp subspace RUN",
    "edges": "whose output into whose input carries a condition? interp edges RUN",
    "weights": "what do a run's adapters do to the weights? interp weights RUN",
    "read": "what do a run's differences say in words? interp read RUN",
    "ladder": "is the difference of two conditions one vector, one map, or more? interp ladder RUN",
}
"""Commands that measure more of a finished run."""

COMMANDS = {
    "demo": "the bundled model: families of prompts and LoRAs, in about a minute",
    "diverge": "where do prompts and adapters diverge inside a model? (the main job)",
    "head": "one head of a run, closely: interp head RUN L5H3",
    **OF_RUN,
    "validate": "is the instrument right on this machine, or with --model? exits 1 if not",
    "report": "draw the report of a run again, and pictures: interp report RUN",
    "compare": "several runs in one page: interp compare RUN_A RUN_B",
    "experiment": "can a prompt emulate a LoRA? interp experiment NAME, or all",
    "match distil": "train a LoRA that does what a prompt does",
    "match invert": "find the prompt that does what a LoRA does",
    "doctor": "versions, device, browser, hub and cache on one screen",
    "completion": "tab completion: interp completion bash (or zsh, fish)",
}


VIEWS = ("report", "compare", "head", "doctor", "completion")
"""Commands in `interp.cli.views`; the others are in `interp.cli.commands`."""


def _usage(group: str = "") -> str:
    """The top-level help, as wide as the terminal; of the commands alone that begin with the word
    `group`."""
    wide = shutil.get_terminal_size().columns
    named = {n: what for n, what in COMMANDS.items() if n.startswith(group)}
    lines = [
        "Where inside a network do a prompt and a LoRA that say the same thing diverge?",
        "",
        *(f"  interp {name:<14}{what}" for name, what in named.items()),
        "",
        "interp COMMAND --help lists a command's flags; --debug shows tracebacks; "
        "interp --version.",
    ]
    indents = (" " * 23 * line.startswith("  ") for line in lines)
    folded = (
        textwrap.fill(line, wide, subsequent_indent=indent)
        for line, indent in zip(lines, indents, strict=True)
    )
    return "\n".join(folded)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _answer(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _answer(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in _HELP:
        print(_usage())
        return 0
    if words[0] == "match" and words[1:2] and words[1] in _HELP:
        print(_usage("match "))
        return 0
    if words[0] == "--version":
        print(f"interp {__version__}")
        return 0

    def run() -> None:
        _check_words(words)
        command, rest = choose(words)
        command(rest)

    return guarded(run, resume_hint(words), debug=debug)


def guarded(action: Callable[[], None], hint: str = "", *, debug: bool = False) -> int:
    """The exit code of an action (a command, an analysis script), its errors as one line."""
    try:
        action()
    except InterpError as error:
        if debug:
            raise
        print(f"interp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterp: interrupted. {hint}", file=sys.stderr)
        return 130
    return 0


def _check_words(words: Sequence[str]) -> None:
    """Words that are not UTF-8 (a file's name in another encoding) cannot be written anywhere."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{word!r} is not UTF-8: give another name") from error


def choose(words: Sequence[str]) -> tuple[_Command, Sequence[str]]:
    """The function of a command and the words that are left for it."""
    name = _name(words)
    if name == "probe":
        raise ConfigError("no command 'probe': one head of a run is `interp head RUN L5H3`")
    if name not in COMMANDS:
        near = similar(name, COMMANDS) if len(name) > len("match") else ""
        what = f"{name!r}{near}"
        raise ConfigError(f"no command {what}; there are {', '.join(COMMANDS)}")
    from interp.cli.importing import preload

    rest = words[len(name.split()) :]
    room = f"interp.cli.{'views' if name in VIEWS else 'commands'}"
    preload(room)
    commands = import_module(room)
    if name in OF_RUN:
        return partial(commands.of_run_command, name), rest
    return getattr(commands, name.replace(" ", "_") + "_command"), rest


def _name(words: Sequence[str]) -> str:
    """The command, which may be two words."""
    return " ".join(words[:2]) if words[0] == "match" else words[0]


def resume_hint(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    name = _name(words)
    if name == "match distil":
        return "The best adapter so far is in --out; training starts anew with --overwrite."
    if name not in ("diverge", "experiment", "match invert", *OF_RUN):
        return "Nothing is left to resume."
    import shlex

    kept = name in ("experiment", "match invert")
    dropped = ["--resume"] if kept else ["--resume", "--overwrite"]  # the older result stands
    resumed = [word for word in words if word not in dropped]
    return f"Go on with: interp {shlex.join([*resumed, '--resume'])}"
