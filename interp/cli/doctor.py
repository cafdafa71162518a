"""What a run depends on, on one screen: versions, device, browser, hub, cache.

for what, found in symptoms():
    print(what, found)
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from interp import __version__

_LIBRARIES = ("torch", "transformers", "transformer-lens", "peft", "plotly")
_OPTIONAL = ("kaleido", "ray", "torchao", "gguf")


def symptoms() -> Iterator[tuple[str, str]]:
    """What is looked at, and what was found; what may be amiss begins with an exclamation mark."""
    yield "interp", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield "libraries", ", ".join(map(_version, _LIBRARIES))
    yield "optional", ", ".join(map(_version, _OPTIONAL))
    yield "processor", _processor()
    yield "device", _device()
    yield "browser", _browser()
    yield "hub", _hub()
    yield "cache", _cache()
    yield "folder", _folder()


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} -"


def _processor() -> str:
    import psutil

    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    threads = os.environ.get("OMP_NUM_THREADS")
    bound = f", OMP_NUM_THREADS={threads}" if threads else ""
    return f"{os.cpu_count()} cores{bound}, {free / 1e9:.1f} of {total / 1e9:.1f} GB memory free"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        free, total = torch.cuda.mem_get_info()
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        return f"cuda ({count}): {torch.cuda.get_device_name(0)}, {memory}"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu (no cuda)"


def _browser() -> str:
    from interp.plots.exporting import find_browser

    path = find_browser()
    return path or "! none on PATH: no PNG or SVG pictures (install chromium)"


def _hub() -> str:
    from huggingface_hub import constants

    from interp.hub import hub_fault

    if constants.HF_HUB_OFFLINE:
        return "not asked: HF_HUB_OFFLINE is set"
    fault = hub_fault()
    return f"! {fault}" if fault else f"{constants.ENDPOINT} answers"


def _cache() -> str:
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE)
    held = sorted(path.name.removeprefix("models--") for path in root.glob("models--*"))
    free = next(f for f in (root, *root.parents) if f.exists())
    return f"{root}: {len(held)} models, {shutil.disk_usage(free).free / 1e9:.0f} GB free"


def _folder() -> str:
    here = Path.cwd()
    fault = "" if os.access(here, os.W_OK) else "! cannot be written to: "
    return f"{fault}{here}, {shutil.disk_usage(here).free / 1e9:.0f} GB free"
