"""Where independent work is done: in this process, or by workers of Ray.

    with opened_engine(settings, subject, another, "cpu") as engine:
        for place, result in engine.run(begin, items, tick):
            ...

Work is written once, in two steps: `begin(context)` is what all items share, and returns what is
done with one of them. The context (a model, say) is this process's own, or each worker's.
"""

from interp.engines.engine import Begin, Engine, InProcess, Tick
from interp.engines.opening import opened_engine

__all__ = ["Begin", "Engine", "InProcess", "Tick", "opened_engine"]
