"""What every engine does, and the one that does it here. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_Context = TypeVar("_Context")
_Own = TypeVar("_Own", covariant=True)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Tick = Callable[[int], None]
"""Called with how much is newly done."""

Begin = Callable[[_Context], Callable[[_Item, Tick], _Result]]
"""Work: from a context to what is done with one item, which tells its tick how far it is. An item's
result depends on the context and the item alone; that of a lost worker is made again elsewhere."""


class Engine(Protocol[_Own]):
    """Does work on items."""

    def run(
        self, begin: Begin[_Own, _Item, _Result], items: Iterable[_Item], tick: Tick
    ) -> Iterator[tuple[int, _Result]]:
        """(number, result) of every item, in any order, each as soon as it is done."""


@dataclass(frozen=True)
class InProcess(Generic[_Context]):
    """One item after another, on a context of this process."""

    context: _Context

    def run(
        self, begin: Begin[_Context, _Item, _Result], items: Iterable[_Item], tick: Tick
    ) -> Iterator[tuple[int, _Result]]:
        work = None
        for number, item in enumerate(items):
            work = work or begin(self.context)
            yield number, work(item, tick)
