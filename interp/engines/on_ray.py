"""Work by actors of Ray Core: one item per actor at a time, and no wait without an end.

    with ray_workers(Request(workers=2, cpus=1), open_context) as engine:
        results = dict(engine.run(begin, items, tick))

Every actor opens a context of its own. One that dies is started again by Ray and does its item
again. Results travel as pickled bytes, so that their arrays are as writable as those made here.
"""

from __future__ import annotations

import os
import pickle
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from interp.engines.engine import Begin, Engine, Tick
from interp.errors import ConfigError, InterpError, RunError

_Context = TypeVar("_Context")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

RESTARTS = 3
"""How often Ray starts a dead worker again, and tries again what it was doing."""


@dataclass(frozen=True)
class Request:
    """What Ray is asked for: workers with so many `cpus` and `gpus` each, of the cluster at
    `address` (none: one that is started here), each with `timeout` seconds to answer."""

    workers: int
    cpus: int = 1
    gpus: int = 0
    address: str | None = None
    timeout: float = 120.0

    def __str__(self) -> str:
        gpus = f" and {self.gpus} GPU" if self.gpus else ""
        return f"{self.workers} workers with {self.cpus} CPU{gpus} each"


@contextmanager
def ray_workers(request: Request, opened: Callable[[], _Context]) -> Iterator[Engine[_Context]]:
    """Actors that work on what `opened` gives them; killed when left, with the cluster that was
    started for them.

    A Ray that this process has initialised is used where no address is named. `ConfigError` without
    Ray; a `RunError` that says what was asked for and what there is where an actor does not answer.
    """
    ray = _imported()
    ours = request.address is not None or not ray.is_initialized()
    if ours:
        _connect(ray, request)
    actors: list[Any] = []
    try:
        actor = ray.remote(
            num_cpus=request.cpus,
            num_gpus=request.gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
            concurrency_groups={"life": 1},  # answers while the work goes on
        )(_Actor)
        actors += [actor.remote(request.timeout) for _ in range(request.workers)]
        engine = _RayEngine(ray, request, actors, opened)
        engine.hear(actors)
        yield engine
    finally:
        for actor in actors:
            ray.kill(actor)
        if ours:
            ray.shutdown()


class _Actor:
    """In a worker's process: the context, opened once, and the work that was begun last."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.made: dict[str, Any] = {}

    def alive(self) -> None:
        """A sign of life."""

    def work(self, refs: Mapping[str, Any], item: Any) -> bytes:
        """The pickled result of an item, and how far it ticked."""
        import ray

        key = refs["begin"].hex()
        if "context" not in self.made:
            self.made["context"] = ray.get(refs["opened"], timeout=self.timeout)()
        if key not in self.made:
            begin = ray.get(refs["begin"], timeout=self.timeout)
            context = self.made["context"]
            self.made = {"context": context, key: begin(context)}
        ticks: list[int] = []
        result = self.made[key](item, ticks.append)
        return pickle.dumps((result, sum(ticks)), protocol=pickle.HIGHEST_PROTOCOL)


@dataclass
class _RayEngine:
    """Items to actors, results back."""

    ray: Any
    request: Request
    actors: Sequence[Any]
    opened: Callable[[], Any]
    shared: dict[str, Any] = field(default_factory=dict)

    def run(
        self, begin: Begin[Any, _Item, _Result], items: Iterable[_Item], tick: Tick
    ) -> Iterator[tuple[int, _Result]]:
        """Every actor has one item at a time, and gets its next before a result is handed on."""
        if not self.shared:
            self.shared["opened"] = self.ray.put(self.opened)
        refs = self.shared | {"begin": self.ray.put(begin)}
        left, idle = enumerate(items), deque(self.actors)
        running: dict[Any, tuple[int, Any]] = {}

        def send() -> None:
            while idle and (following := next(left, None)):
                number, item = following
                actor = idle.popleft()
                running[actor.work.remote(refs, item)] = number, actor

        send()
        while running:
            done, _ = self.ray.wait([*running], timeout=self.request.timeout)
            if not done:
                self.hear([actor for _, actor in running.values()])
            for ref in done:
                number, actor = running.pop(ref)
                result, ticked = self._result(ref)
                idle.append(actor)
                send()
                tick(ticked)
                yield number, result

    def hear(self, actors: Sequence[Any]) -> None:
        """A `RunError` unless all of these answer in time, whatever they are doing."""
        signs = [actor.alive.options(concurrency_group="life").remote() for actor in actors]
        timeout = self.request.timeout
        _, silent = self.ray.wait(signs, num_returns=len(signs), timeout=timeout)
        if silent:
            raise RunError(
                f"Ray was asked for {self.request}; {len(silent)} of {len(signs)} gave no sign of "
                f"life within {timeout:g} s. The cluster has {self._resources()}: ask for fewer "
                "--workers, for fewer threads (OMP_NUM_THREADS), or give it a longer --timeout"
            )

    def _resources(self) -> str:
        there, free = self.ray.cluster_resources(), self.ray.available_resources()
        kinds = [kind for kind in ("CPU", "GPU") if there.get(kind)]
        return " and ".join(
            f"{there[kind]:g} {kind} ({free.get(kind, 0):g} free)" for kind in kinds
        )

    def _result(self, ref: Any) -> Any:
        """What an actor returned, or raised; a `RunError` where it was lost for good."""
        failed = self.ray.exceptions
        try:
            return pickle.loads(self.ray.get(ref, timeout=self.request.timeout))
        except failed.RayTaskError as error:
            if isinstance(error.cause, InterpError):
                raise error.cause from None
            if not isinstance(error.cause, failed.RayError):
                raise
            raise RunError(
                f"a worker of Ray cannot do its work ({_reason(error)}): every machine needs the "
                "same interp"
            ) from error
        except failed.RayError as error:
            raise RunError(
                f"Ray lost a worker, which it starts up to {1 + RESTARTS} times "
                f"({_reason(error)}): see Ray's logs; what was finished is on disk"
            ) from error


def _imported() -> Any:
    """Ray, which then reports no usage; a `ConfigError` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray: pip install 'interp[ray]'") from error
    return ray


def _connect(ray: Any, request: Request) -> None:
    """Join the cluster at the request's address, or start one here."""
    address = request.address or "local"
    if "://" in address:
        raise ConfigError(
            f"--address {address}: give the HOST:PORT of a cluster this machine is in"
        )
    _knock(address, request.timeout)
    quiet = {"logging_level": "error", "log_to_driver": False}
    if request.address is None:
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        raise RunError(
            f"no cluster of Ray at {address}: {_reason(error)}; one with token authentication, as "
            "`ray start` says, is joined with RAY_AUTH_MODE=token"
        ) from error


def _knock(address: str, timeout: float) -> None:
    """A `RunError` where nobody listens: Ray itself would try for five minutes, and then exit."""
    if not (place := re.fullmatch(r"(.+):(\d+)", address)):
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"no cluster of Ray answers at {address} ({error}): start one with `ray start --head`, "
            "or leave --address out for one on this machine"
        ) from error


def _reason(error: BaseException) -> str:
    """The line of an error of Ray that says most: the last of a traceback, or the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return lines[-1] if re.match(r"\w+Error: ", lines[-1]) else lines[0]
