"""The engine that settings ask for, and what a worker does before its first work. Torch-free until
then."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from interp.config import Computing
from interp.engines.engine import Engine, InProcess
from interp.errors import RunError

_Settings = TypeVar("_Settings", bound=Computing)
_Context = TypeVar("_Context")

_LIBRARIES = (
    *("interp", "torch", "transformers", "transformer-lens", "peft", "numpy"),
    *("gguf", "torchao", "bitsandbytes"),
)
"""What the numbers depend on, as far as it is installed."""

_OMP = "OMP_NUM_THREADS"
_MISSING = "(not installed)"


@contextmanager
def opened_engine(
    settings: _Settings,
    context: _Context,
    another: Callable[[_Settings], _Context],
    device: str,
) -> Iterator[Engine[_Context]]:
    """Work on `context` here, or on what `another(settings)` opens in every worker; workers are
    gone afterwards.

    A worker has this process's number of threads (on which the last bits of sums may depend), its
    folder, the same versions of libraries, and the same type of `device` ("cpu", "cuda"): one GPU,
    the first that it sees. `another` is pickled when work is begun first. `ConfigError` or
    `RunError` where there are no such workers.
    """
    if settings.engine == "in-process":
        yield InProcess(context)
        return
    from interp.engines.on_ray import Request, ray_workers

    threads, on_gpu = Threads.here(), device == "cuda"
    there = settings.model_copy(update={"device": device})
    request = Request(
        workers=settings.workers or 2,
        cpus=1 if on_gpu else threads.torch,
        gpus=int(on_gpu),
        address=settings.address,
        timeout=settings.timeout,
    )
    versions = {name: _version(name) for name in _LIBRARIES}
    with ray_workers(
        request, Worker(partial(another, there), threads, Path.cwd(), versions)
    ) as engine:
        yield engine


class Threads(NamedTuple):
    """A process's number of threads, of torch and of numpy's linear algebra; `omp`: its
    OMP_NUM_THREADS, which Ray sets too."""

    torch: int
    blas: int
    omp: str | None

    @classmethod
    def here(cls) -> Threads:
        """Those of this process."""
        import torch
        from threadpoolctl import threadpool_info

        pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return cls(torch.get_num_threads(), max(pools, default=1), os.environ.get(_OMP))

    def use(self) -> None:
        """Have this process work with as many."""
        import torch
        from threadpoolctl import threadpool_limits

        os.environ.pop(_OMP, None)
        if self.omp is not None:
            os.environ[_OMP] = self.omp
        torch.set_num_threads(self.torch)
        threadpool_limits(self.blas, "blas")


@dataclass(frozen=True)
class Worker(Generic[_Context]):
    """How a worker comes to its context; called in the worker."""

    another: Callable[[], _Context]
    threads: Threads
    folder: Path
    versions: Mapping[str, str]

    def __call__(self) -> _Context:
        """The context; a `RunError` where the worker's results could be others."""
        here = socket.gethostname()
        for name, version in self.versions.items():
            if (found := _version(name)) != version:
                raise RunError(
                    f"the worker on {here} has {name} {found}, the run has {version}: "
                    "give all machines the same"
                )
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise RunError(
                f"the worker on {here} cannot read {self.folder} ({error.strerror}): workers need "
                "the same files at the same paths"
            ) from error
        self.threads.use()
        return self.another()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _MISSING
