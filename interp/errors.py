"""What can go wrong, each with one line that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InterpError(Exception):
    """Base of every error that is the input's fault; the command line prints its message alone."""


class ConfigError(InterpError):
    """An experiment that cannot be run as written."""


class ConditionError(InterpError):
    """A condition that cannot be built."""


class QueryError(InterpError):
    """Queries that cannot be used; the message names the file and line."""


class SubjectError(InterpError):
    """A model or adapter that cannot be trusted."""


class ParityError(SubjectError):
    """A hooked model that does not do what the plain one does."""


class RunError(InterpError):
    """A run that cannot be written or read."""


def similar(name: str, known: Iterable[str]) -> str:
    """A question for who has misspelt a name, to be put behind an error; "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""
