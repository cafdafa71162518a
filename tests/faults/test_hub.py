"""What the hub says to a name: offline, gated, private and misspelt are told apart, at once.

A server on this machine stands for the hub; the client is the real one, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

ASK = """
import json, sys
from interp import hub
hub.PATIENCE = 1.0
said = {}
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    said[name] = hub.refusal(name, revision or None)
print(json.dumps(said))
"""


ASKED: list[str] = []
"""Repositories that the hub was asked for, in order."""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, by the name of the repository."""

    def do_HEAD(self) -> None:
        codes = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound"),
                 "there": (404, "EntryNotFound"), "old": (404, "RevisionNotFound"),
                 "broken": (500, "")}  # fmt: skip
        name = self.path.split("/")[2]
        ASKED.append(name)
        if name == "slow":
            time.sleep(3)
        status, code = codes.get(name, (404, "EntryNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def asked(home: Path, endpoint: str, *names: str, **given: str) -> dict[str, str]:
    """What is said to names."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env=kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | given,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_every_answer_of_the_hub_has_a_line_of_its_own(endpoint: str, tmp_path: Path) -> None:
    names = ["org/there", "org/gated", "org/missing", "org/old@v9", "org/broken", "no name!"]
    said = asked(tmp_path, endpoint, *names)
    assert said["org/there"] is None
    expected = {
        "org/gated": "is gated: ask for access",
        "org/missing": "the hub has no org/missing: check the spelling",
        "org/old": "has no revision 'v9'",
        "org/broken": "the hub answered 500",
        "no name!": "neither a folder nor a name that the hub can have",
    }
    for name, words in expected.items():
        assert words in said[name]
        assert "\n" not in said[name]
    assert len(set(said.values())) == len(names)


def test_a_hub_out_of_reach_is_asked_once_and_the_cache_serves(tmp_path: Path) -> None:
    """Nothing listens on port 9: refused at once; later names are not asked for at all."""
    snapshot = tmp_path / "hub" / "models--org--kept" / "snapshots" / ("a1" * 20)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    said = asked(tmp_path, "http://127.0.0.1:9", "org/kept", "org/other")
    assert said["org/kept"] is None
    assert said["org/other"] == (
        "the hub cannot be reached, and org/other is neither a folder nor in the cache"
    )


def test_a_hub_that_does_not_answer_costs_its_patience_once(endpoint: str, tmp_path: Path) -> None:
    """It would say that the repository is there, after 3 s."""
    ASKED.clear()
    said = asked(tmp_path, endpoint, "org/slow", "org/there")
    assert "the hub cannot be reached" in said["org/slow"]
    assert ASKED == ["slow"]


def test_offline_by_wish_says_so(tmp_path: Path) -> None:
    said = asked(tmp_path, "http://127.0.0.1:9", "org/other", HF_HUB_OFFLINE="1")
    assert said["org/other"].startswith("HF_HUB_OFFLINE is set, and org/other is neither")
