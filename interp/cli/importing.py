"""Imports at less cost: Python looks for no garbage meanwhile.

preload("interp.study", "interp.report")
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module


def preload(*modules: str) -> None:
    """Import modules; what is there afterwards is never looked through for garbage.

    Importing makes a million objects that stay. To look through them again and again while they
    are made takes a quarter of the time of all imports, and of the last ones most. What is garbage
    before is collected first: it would stay, too.
    """
    modules = tuple(name for name in modules if name not in sys.modules)
    if not modules:
        return
    gc.collect()
    before = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            import_module(module)
    finally:
        gc.freeze()
        if before:
            gc.enable()
