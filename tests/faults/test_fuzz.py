"""Thousands of inputs that are almost right: no traceback, no silent success, no write elsewhere.

`make faults` reads 3,000 of them and prints how many were refused; the suite reads a few of each.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fuzzing import Fuzzed, Trespass, fuzz, watched
from tiny_models import MODULES, save_adapter, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.cli.early import refuse_early
from interp.config import Experiment, from_yaml
from interp.measures.tally import Key, Tally
from interp.queries import encode, read_queries
from interp.runs.files import ARRAYS, MANIFEST, TABLE
from interp.runs.view import load_run
from interp.statistics import PerQuery
from interp.store import FOLDER, Store
from interp.study import run_study
from interp.subject.adapters import mount
from interp.untrusted import read_json

EXAMPLES = int(os.environ.get("INTERP_FAULTS", "0"))
"""Inputs in all, shared out over the kinds (0: a few of each)."""

SHARES = {
    "queries": 4, "experiment": 5, "adapter config": 3, "adapter tensors": 2, "manifest": 4,
    "parquet": 2, "arrays": 2, "unfinished settings": 2, "unfinished shards": 2,
}  # fmt: skip
FEW = 8
"""Of each share, in the suite."""

counted: dict[str, Counter[str]] = {}


@pytest.fixture(scope="module", autouse=True)
def figures() -> Iterator[None]:
    """What was counted, printed at the end."""
    yield
    for name, counts in counted.items():
        print(f"\n{name:<20} {counts.total():>6} inputs: {dict(counts)}", end="")
    print(f"\n{'in all':<20} {sum(c.total() for c in counted.values()):>6} inputs")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, an adapter, queries, a finished run and an unfinished one."""
    root = tmp_path_factory.mktemp("fuzz")
    model = save_model("gpt2", root / "model")
    save_adapter(model, root / "lora", MODULES["gpt2"]["qkv"])
    (root / "prompt.txt").write_text("the weather was mild")
    lines = [
        {"text": "hot is", "answer": "cold"},
        {"text": "big is the", "label": "size"},
        {"text": "up", "answer": "down"},
    ]
    (root / "q.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run_study(experiment(root, root / "run"))
    with Store.open(root / "unfinished", SETTINGS) as store:
        store.put("matched-00000", some_tally())
    return root


def experiment(root: Path, out: Path) -> Experiment:
    return Experiment(
        model=str(root / "model"), adapter=(str(root / "lora"),), queries=root / "q.jsonl",
        prompt_file=(root / "prompt.txt",), out=out, controls=(), bootstrap=4, permutations=4,
        device="cpu",
    )  # fmt: skip


SETTINGS = {"model": "m", "seed": 0, "conditions": {"few": {"prompt": {"pairs": [["a", "b"]]}}}}


def some_tally() -> Tally:
    return {
        Key("certificate", "a", "b", "output"): PerQuery.of([0, 1], np.arange(4.0).reshape(2, 2))
    }


def reads(place: Path, file: Path, read: Callable[[], str]) -> Fuzzed:
    """A file that is put in place of the right one, read, and put back."""
    right = file.read_bytes()

    def once(content: bytes) -> str:
        file.write_bytes(content)
        try:
            return "unchanged" if content == right else read()
        finally:
            file.write_bytes(right)

    return Fuzzed(file.name, right, once)


def queries(place: Path) -> Fuzzed:
    file, tokenizer = place / "q.jsonl", AutoTokenizer.from_pretrained(place / "model")

    def read() -> str:
        found = read_queries(file)
        lines = file.read_bytes().splitlines()
        assert len(found) >= len([line for line in lines if line.strip()]), "a line was dropped"
        encode(found, tokenizer)
        return "read"

    return reads(place, file, read)


def experiments(place: Path) -> Fuzzed:
    file = place / "e.yaml"
    fields = {
        "model": "model", "queries": "q.jsonl", "out": str(place / "new"), "adapter": ["lora"],
        "prompt_file": ["prompt.txt"], "seed": 3, "memory": 0.5, "compare": ["few", "lora"],
        "conditions": {
            "few": {"prompt": {"pairs": [["hot", "cold"]], "template": "{query} {answer} ; "}},
            "half": [{"prompt": {"text": "a"}}, {"lora": {"adapter": "lora", "scale": 0.5}}],
            "bias": {"logit_bias": {"bias": {"cold": 1.5}, "positions": [-1]}},
            "short": {"neutral": {"like": "few"}},
        },
    }  # fmt: skip
    file.write_text(json.dumps(fields, indent=1))

    def read() -> str:
        found = from_yaml(file)
        assert set(found) == set(yaml.safe_load(file.read_bytes().decode("utf-8-sig")))
        given = {"model": "m", "queries": place / "q.jsonl", "out": place / "new"}
        refuse_early(Experiment(**given | found))
        return "read"

    return reads(place, file, read)


def adapters(place: Path, name: str) -> Fuzzed:
    hf = AutoModelForCausalLM.from_pretrained(place / "model")
    before = {key: value.clone() for key, value in hf.state_dict().items()}

    def read() -> str:
        fresh = AutoModelForCausalLM.from_config(hf.config)
        fresh.load_state_dict(before)
        mount(fresh, [(str(place / "lora"), 1.0)], str(place / "model"))
        return "read"

    return reads(place, place / "lora" / name, read)


def runs(place: Path, name: str) -> Fuzzed:
    """A run vouches for every byte: what is read of it must be what was written."""
    file = place / "run" / name
    right = read_json(file.read_bytes()) if name == MANIFEST else None

    def read() -> str:
        run = load_run(place / "run")
        assert name == MANIFEST, "other bytes were taken for the run's"
        assert run.manifest == right, "another manifest was taken for the run's"
        return "read"

    return reads(place, file, read)


def unfinished(place: Path, name: str) -> Fuzzed:
    """What is damaged is done again, and other settings are refused."""
    out = place / "unfinished"
    ((file, *_),) = (sorted((out / FOLDER).glob(name)),)

    def read() -> str:
        with Store.open(out, SETTINGS, resume=True) as store:
            kept = store.get("matched-00000")
        if name == "settings.json":
            assert kept is not None
            return "read"
        assert kept is None, "a damaged shard was taken"
        assert not file.exists()
        return "done again"

    return reads(place, file, read)


KINDS: dict[str, Callable[[Path], Fuzzed]] = {
    "queries": queries,
    "experiment": experiments,
    "adapter config": lambda place: adapters(place, "adapter_config.json"),
    "adapter tensors": lambda place: adapters(place, "adapter_model.safetensors"),
    "manifest": lambda place: runs(place, MANIFEST),
    "parquet": lambda place: runs(place, TABLE),
    "arrays": lambda place: runs(place, ARRAYS),
    "unfinished settings": lambda place: unfinished(place, "settings.json"),
    "unfinished shards": lambda place: unfinished(place, "*.safetensors"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_mutation_of_an_input_is_a_traceback_or_taken_silently(kind: str, place: Path) -> None:
    share = SHARES[kind] / sum(SHARES.values())
    torch.manual_seed(0)
    with watched(place):
        counts = fuzz(KINDS[kind](place), round(EXAMPLES * share) or FEW * SHARES[kind])
    counted[kind] = counts
    assert counts.total() > counts["unchanged"]


def test_the_watch_sees_writes_elsewhere_and_sockets(tmp_path: Path) -> None:
    """Without it the tests above could not fail."""
    import socket
    import urllib.request

    (tmp_path / "in").mkdir()
    with watched(tmp_path / "in"):
        (tmp_path / "in" / "a").write_text("")
        for trespass in (
            lambda: (tmp_path / "out").write_text(""),
            lambda: (tmp_path / "out").mkdir(),
            lambda: (tmp_path / "in" / "a").rename(tmp_path / "out"),
            lambda: (tmp_path / "in" / ".." / "out").touch(),
            lambda: socket.create_connection(("127.0.0.1", 9)),
            lambda: urllib.request.urlopen("http://example.invalid"),
        ):
            with pytest.raises(Trespass):
                trespass()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_run_of_local_inputs_opens_no_socket_and_writes_nowhere_else(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with watched(place):
        run_study(experiment(place, place / "watched"))
    assert load_run(place / "watched").table.equals(load_run(place / "run").table)
