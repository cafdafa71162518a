"""What can go wrong, each with one line that says what, where and what to do."""


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
