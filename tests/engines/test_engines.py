"""Engines without Ray: what runs here, and what is refused before anything starts."""

from __future__ import annotations

import importlib.metadata
import re
import socket
import sys
from pathlib import Path

import pytest
import ray_work

from interp.config import Computing
from interp.engines import InProcess, opened_engine
from interp.engines.opening import Threads, Worker
from interp.errors import ConfigError, RunError


def test_in_process_does_one_item_after_another_on_its_context(tmp_path: Path) -> None:
    ticks: list[int] = []
    found = list(InProcess(tmp_path).run(ray_work.squares, [3, 1], ticks.append))
    assert [(number, result.tolist()) for number, result in found] == [(0, [3, 9]), (1, [1, 1])]
    assert ticks == [1, 1, 1, 1]


def test_work_without_items_is_not_begun(tmp_path: Path) -> None:
    assert list(InProcess(tmp_path).run(ray_work.squares, [], print)) == []
    assert list(tmp_path.iterdir()) == []


def refused(settings: Computing) -> str:
    with (
        pytest.raises((ConfigError, RunError)) as caught,
        opened_engine(settings, None, lambda _: None, "cpu"),
    ):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("fields", [{"workers": 2}, {"address": "auto"}])
def test_workers_without_ray_are_refused(fields: dict[str, object]) -> None:
    """Before a model is opened."""
    with pytest.raises(ConfigError) as caught:
        Computing.model_validate(fields)
    assert "--engine ray" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_ray_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'interp[ray]'" in refused(Computing(engine="ray"))


def test_an_address_where_nobody_listens_is_said_before_ray_tries() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        said = refused(Computing(engine="ray", address=address))
    assert said.startswith(f"no cluster of Ray answers at {address}")
    assert "ray start --head" in said


def test_ray_s_client_is_refused() -> None:
    pytest.importorskip("ray")
    assert "HOST:PORT" in refused(Computing(engine="ray", address="ray://127.0.0.1:10001"))


@pytest.mark.parametrize("version", ["0.0.1", "(not installed)"])
def test_a_worker_with_other_libraries_is_refused(tmp_path: Path, version: str) -> None:
    worker = Worker(lambda: "a model", Threads.here(), tmp_path, {"numpy": version})
    installed = importlib.metadata.version("numpy")
    with pytest.raises(RunError, match=re.escape(f"numpy {installed}, the run has {version}")):
        worker()


def test_a_worker_without_the_run_s_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="same files at the same paths"):
        Worker(lambda: "a model", Threads.here(), tmp_path / "elsewhere", {})()


@pytest.mark.parametrize("omp", ["2", None])
def test_a_worker_stands_in_the_run_s_folder_with_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, omp: str | None
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = Threads.here()
    try:
        found = Worker(lambda: (Path.cwd(), Threads.here()), Threads(3, 2, omp), tmp_path, {})()
    finally:
        before.use()
    assert found == (tmp_path, Threads(3, 2, omp))
    assert Threads.here() == before
