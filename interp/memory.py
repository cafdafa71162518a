"""How much memory is in use, how much was at most, and whether an error says that it has run out.

with peak_memory(subject.device) as memory:
    ...
memory.before, memory.most          # bytes
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_SAID = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""What torch says where an allocation fails, on a CPU in a plain RuntimeError."""


@dataclass
class MemoryUse:
    """Bytes in use before something was done, and at most meanwhile (known once it is done): of the
    process, or of the cuda device."""

    before: int
    most: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[MemoryUse]:
    """Watch what is done inside. Where the largest size of a process cannot be set back (other
    systems than Linux), `most` is the largest since it began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        use = MemoryUse(torch.cuda.memory_allocated(device))
    else:
        if _CLEAR.exists():
            _CLEAR.write_text("5")
        use = MemoryUse(_of_process("VmRSS"))
    try:
        yield use
    finally:
        cuda = device.type == "cuda"
        use.most = torch.cuda.max_memory_allocated(device) if cuda else _of_process("VmHWM")


def _of_process(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (at most) in bytes."""
    if _STATUS.exists() and (found := re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())):
        return 1024 * int(found[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a device or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


def bytes_words(size: float) -> str:
    """A number of bytes for people: "1.4 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return (
                f"{size / factor:.2g} {unit}"
                if size < 10 * factor
                else f"{size / factor:,.0f} {unit}"
            )
    return f"{size / 1e3:.0f} kB"
