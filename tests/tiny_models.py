"""The tiny models of `interp validate`, which the tests share."""

from interp.validation.tiny import *  # noqa: F403
