"""Tab completion of commands and flags: a script that a shell reads once.

    eval "$(interp completion bash)"            # in ~/.bashrc; zsh the same
    interp completion fish | source             # in ~/.config/fish/config.fish

The script is static: nothing of Python runs when a key is pressed. Files complete as ever.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

from interp.cli import COMMANDS, choose
from interp.experiments import QUESTIONS

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

_BASH = """\
_interp() {{
    local words=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}") now="${{COMP_WORDS[COMP_CWORD]}}" known=""
    case "${{words[*]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$known" -- "$now"))
}}
complete -o default -F _interp interp
"""


def script(shell: str) -> str:
    """The completion script of a shell: `bash`, `zsh` or `fish`."""
    if shell == "fish":
        return "\n".join(_fish())
    bash = _BASH.format(cases="\n".join(_cases()))
    zsh = "autoload -U +X bashcompinit && bashcompinit\n"
    return zsh + bash if shell == "zsh" else bash


def _first_words() -> dict[str, list[str]]:
    """What may follow: words so far -> the next."""
    first = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    second = [name.split()[1] for name in COMMANDS if name.startswith("match ")]
    return {
        "": [*first, "--help", "--version"],
        "match": [*second, "--help"],
        "experiment": [*QUESTIONS, "claims", "all"],
        "completion": ["bash", "zsh", "fish"],
    }


def _cases() -> Iterator[str]:
    for words, known in _first_words().items():
        yield f'        "{words}") known="{" ".join(known)}" ;;'
    for name in COMMANDS:
        yield f'        "{name}"*) known="{" ".join(_flags(name))}" ;;'


def _fish() -> Iterator[str]:
    yield "complete -c interp -n __fish_use_subcommand -f -a '" + " ".join(_first_words()[""]) + "'"
    for words, known in _first_words().items():
        if words:
            seen = f"'__fish_seen_subcommand_from {words}'"
            yield f"complete -c interp -n {seen} -a '{' '.join(known)}'"
    for name in COMMANDS:
        last = name.split()[-1]
        for flag in _flags(name):
            yield f"complete -c interp -n '__fish_seen_subcommand_from {last}' -l {flag[2:]}"


def _flags(name: str) -> list[str]:
    """The flags of a command, as its help lists them."""
    text = io.StringIO()
    words = [*name.split(), *(["all"] if name == "experiment" else []), "--help"]
    command, rest = choose(words)
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command(rest)
    found = (flag for line in text.getvalue().splitlines() for flag in _FLAG.findall(line)[:2])
    return list(dict.fromkeys(found))
