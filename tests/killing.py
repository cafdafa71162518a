"""Runs that are killed at some moment, in processes that have everything imported already.

killed = in_child(lambda: run_study(experiment), after=1.3)     # True: by SIGKILL, in time
subprocess.Popen(command, preexec_fn=heeding_signals)           # ended by SIGINT wherever it runs
"""

from __future__ import annotations

import math
import os
import signal
import time
import traceback
from collections.abc import Callable


def in_child(
    work: Callable[[], object],
    after: float = math.inf,
    since: Callable[[], bool] = lambda: True,
) -> bool:
    """Do the work in a forked process, killed `after` so many seconds `since` something was so;
    whether it was killed, also by itself. A fault of the work itself is an error here."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    began = math.inf
    while time.monotonic() - began < after:
        if began == math.inf and since():
            began = time.monotonic()
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, -signal.SIGKILL), "the work failed"
            return code != 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def heeding_signals() -> None:
    """A shell starts what runs in its background deaf to SIGINT, and a child inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
