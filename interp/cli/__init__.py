"""The `interp` command: picks a subcommand, runs it, and turns errors into one line.

Exit codes: 0 done, 1 a check of `interp validate` failed, 2 bad input or a model that cannot be
trusted, 130 interrupted. Nothing that needs torch is imported before a subcommand has read its
flags.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from interp import __version__
from interp.errors import ConfigError, InterpError

_Command = Callable[[Sequence[str]], None]

COMMANDS = {
    "demo": "the bundled model: families of prompts and LoRAs, in about a minute",
    "diverge": "where do prompts and adapters diverge inside a model? (the main job)",
    "head": "one head of a run, closely: interp head RUN L5H3",
    "patch": "is one condition's internal state as good as the other's? interp patch RUN",
    "subspace": "in how few dimensions does a state act? interp subspace RUN",
    "weights": "what do a run's adapters do to the weights? interp weights RUN",
    "read": "what do a run's differences say in words? interp read RUN",
    "ladder": "is the difference of two conditions one vector, one map, or more? interp ladder RUN",
    "validate": "is the instrument right on this machine, or with --model? exits 1 if not",
    "report": "draw the report of a run again, and pictures: interp report RUN",
    "experiment": "can a prompt emulate a LoRA? interp experiment NAME, or all",
    "match distil": "train a LoRA that does what a prompt does",
    "match invert": "find the prompt that does what a LoRA does",
}


def _usage() -> str:
    """The top-level help."""
    lines = [f"  interp {name:<14}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "Where inside a network do a prompt and a LoRA that say the same thing diverge?",
            "",
            *lines,
            "",
            "interp COMMAND --help lists a command's flags; --debug shows tracebacks;",
            "interp --version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(f"interp {__version__}")
        return 0

    def run() -> None:
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


def choose(words: Sequence[str]) -> tuple[_Command, Sequence[str]]:
    """The function of a command and the words that are left for it."""
    name = " ".join(words[:2]) if words[0] == "match" else words[0]
    if name == "probe":
        raise ConfigError("no command 'probe': one head of a run is `interp head RUN L5H3`")
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}; there are {', '.join(COMMANDS)}")
    from interp.cli.importing import preload

    preload("interp.cli.commands")
    from interp.cli import commands

    return getattr(commands, name.replace(" ", "_") + "_command"), words[len(name.split()) :]


def resume_hint(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    if list(words[:2]) == ["match", "distil"]:
        return "The best adapter so far is in --out; training starts anew with --overwrite."
    inverted = list(words[:2]) == ["match", "invert"]
    added = ("diverge", "patch", "subspace", "weights", "read", "ladder", "experiment")
    if words[0] not in added and not inverted:
        return "Nothing is left to resume."
    import shlex

    kept = inverted or words[0] == "experiment"
    dropped = ["--resume"] if kept else ["--resume", "--overwrite"]  # the older result stands
    resumed = [word for word in words if word not in dropped]
    return f"Go on with: interp {shlex.join([*resumed, '--resume'])}"
