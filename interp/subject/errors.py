"""The one error of this room."""


class SubjectError(Exception):
    """A model or adapter that cannot be trusted; the message says what, where and what to do."""
