"""What does a study cost, in bare forward passes of the same conditions on the same queries?

The bare pass is plain Hugging Face (eager attention) and peft: base, a prompt, neutral text of its
length and two LoRAs, what precedes the query computed once, all queries in one batch. Both sides
are timed in this one run by turns, with the same threads; a cost is the ratio of their medians, and
its spread that of the single turns.

    python benchmarks/speed.py             # prints the table, writes benchmarks/RESULTS.md
    python benchmarks/speed.py --smoke     # tiny sizes: does everything run?
"""

from __future__ import annotations

import copy
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import tyro
from peft import PeftModel
from reference import SMOKE, Reference, Size, made
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.batch import Batch
from interp.engines import InProcess
from interp.preparing import applicable, open_subject, prepare, read_groups
from interp.store import Store
from interp.subject import Subject
from interp.subject.loading import quiet
from interp.subject.tokenizers import open_tokenizer
from interp.sweep import sweep

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "bench"

PINNED = ("pinned inputs", "change decomposition", "score split")
READOUT = ("lens", "influence")


class Row(NamedTuple):
    """A line of the table: what is measured, its ratio with the ends of its turns, the target."""

    what: str
    ratio: float
    low: float
    high: float
    target: str
    note: str = ""


def by_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round; a first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(what: str, own: Sequence[float], other: Sequence[float], target: str) -> Row:
    """The ratio of two medians, and that of the turns."""
    turns = [a / b for a, b in zip(own, other, strict=True)]
    middle = statistics.median(own) / statistics.median(other)
    seconds = f"{statistics.median(own):.3g} s over {statistics.median(other):.3g} s"
    return Row(what, middle, min(turns), max(turns), target, seconds)


# --- the bare passes -----------------------------------------------------------------------------


class Bare:
    """Plain Hugging Face and peft under the five conditions."""

    def __init__(self, found: Reference) -> None:
        tokenizer = AutoTokenizer.from_pretrained(found.model)
        plain = AutoModelForCausalLM.from_pretrained(found.model, attn_implementation="eager")
        self.model = PeftModel.from_pretrained(plain, found.loras[0], adapter_name="0").eval()
        for number, lora in enumerate(found.loras[1:], 1):
            self.model.load_adapter(lora, adapter_name=str(number))
        self.ids = tokenizer(found.texts, return_tensors="pt", add_special_tokens=False).input_ids
        prompt = tokenizer(found.prompt, return_tensors="pt", add_special_tokens=False).input_ids
        self.prefixes = {"prompt": prompt, "neutral": prompt.flip(1)}
        with torch.no_grad(), self.model.disable_adapter():
            self.caches = {
                name: self.model(prefix, use_cache=True).past_key_values
                for name, prefix in self.prefixes.items()
            }

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        """Logits of all queries under every condition."""
        with self.model.disable_adapter():
            found = [self.model(self.ids).logits]
            for cache in self.caches.values():
                own = copy.deepcopy(cache)
                own.batch_repeat_interleave(len(self.ids))
                found.append(self.model(self.ids, past_key_values=own).logits)
        for name in self.model.peft_config:
            self.model.set_adapter(name)
            found.append(self.model(self.ids).logits)
        return found

    @torch.no_grad()
    def recomputed(self) -> Tensor:
        """The prompt before every query, computed again for each."""
        prefix = self.prefixes["prompt"].expand(len(self.ids), -1)
        with self.model.disable_adapter():
            return self.model(torch.cat([prefix, self.ids], 1)).logits


# --- ours ----------------------------------------------------------------------------------------


class Study:
    """A study up to its sweep, which is run again and again."""

    def __init__(self, found: Reference, folder: Path) -> None:
        self.asked = found.experiment(folder / "run")
        built, queries = self.asked.build(), read_groups(self.asked)
        hub = self.asked.hub
        tokenizer = open_tokenizer(self.asked.model, built.values(), self.asked.tokenizer, **hub)
        self.built = applicable(self.asked, built, tokenizer)
        self.subject: Subject = open_subject(self.asked, self.built, queries["matched"])
        with Store.open(folder / "kept", {}, overwrite=True) as store:
            self.engine = InProcess(self.subject)
            self.prepared = prepare(
                self.asked, self.subject, self.engine, self.built, queries, store
            )
        self.folder = folder

    def sweep(self, *unasked: str) -> None:
        """All measures but these groups."""
        plan = replace(self.prepared.plan, unasked=frozenset(unasked))
        queries = self.prepared.groups["matched"]
        with Store.open(self.folder / "kept", {}, overwrite=True) as store:
            sweep(self.engine, plan, queries, store, "matched", lambda *_: None)


def sweeps(found: Reference, folder: Path, rounds: int) -> list[Row]:
    """The sweep, with and without runs at pinned inputs and the readout, over the bare pass."""
    bare, study = Bare(found), Study(found, folder)
    seconds = by_turns(
        {
            "bare": bare,
            "outputs, states, attention": lambda: study.sweep(*PINNED, *READOUT),
            "all default measures": lambda: study.sweep("score split"),
        },
        rounds,
    )
    basic, whole = (seconds[name] for name in list(seconds)[1:])
    return [
        ratio("sweep of outputs, states and attention", basic, seconds["bare"], "≤ 1.3"),
        ratio("sweep of all default measures", whole, seconds["bare"], "≤ 2"),
    ]


def long_prompt(found: Reference, folder: Path, rounds: int) -> list[Row]:
    """The hooked model behind a cached prompt against recomputing the prompt for every query."""
    bare, study = Bare(found), Study(found, folder)
    subject = study.subject
    setting = subject.settings["prompt"]
    cache = subject.prefill(setting)
    batch = Batch.of(study.prepared.groups["matched"])
    seconds = by_turns(
        {"again": bare.recomputed, "ours": lambda: subject.run(setting, batch, cache)}, rounds
    )
    words = f"prompt of {found.size.prompt} tokens: recomputed over reused"
    return [ratio(words, seconds["again"], seconds["ours"], "≥ 25")]


def loading(found: Reference, folder: Path, rounds: int) -> list[Row]:
    """Loading with parity of every condition over loading the model in plain transformers."""
    asked = found.experiment(folder / "run")
    built, queries = asked.build(), read_groups(asked)["matched"]
    seconds = by_turns(
        {
            "plain": lambda: AutoModelForCausalLM.from_pretrained(found.model),
            "ours": lambda: open_subject(asked, built, queries),
        },
        rounds,
    )
    return [ratio("load and parity over a plain load", seconds["ours"], seconds["plain"], "≤ 3")]


def whole(found: Reference, folder: Path, rounds: int) -> list[Row]:
    """The command with everything, from its start to its report, over the bare pass; and how long
    its help takes, in seconds."""
    interp = [sys.executable, "-m", "interp"]
    words = ["--model", found.model, "--adapter", *found.loras]
    words += ["--prompt-file", str(found.folder / "prompt.txt")]
    words += ["--queries", str(found.folder / "queries.jsonl"), "--controls", "neutral"]
    words += ["--out", str(folder / "whole"), "--overwrite", "--device", "cpu"]
    bare = Bare(found)
    seconds = by_turns(
        {
            "bare": bare,
            "whole": lambda: subprocess.run(
                [*interp, "diverge", *words], check=True, capture_output=True
            ),
            "help": lambda: subprocess.run(
                [*interp, "diverge", "--help"], check=True, capture_output=True
            ),
        },
        rounds,
    )
    middle = statistics.median(seconds["help"])
    return [
        ratio("whole `interp diverge`, with report", seconds["whole"], seconds["bare"], "≤ 4"),
        Row(
            "`interp diverge --help`, seconds",
            middle,
            min(seconds["help"]),
            max(seconds["help"]),
            "< 0.4",
        ),
    ]


# --- the table -----------------------------------------------------------------------------------


def table(rows: Sequence[Row], size: Size) -> str:
    """The results as Markdown."""
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )
    shape = (
        f"{size.layers} layers of {size.d_model}, {size.queries} queries of {size.length} tokens, "
        f"prompt of {size.prompt}, base, prompt, neutral text, {size.loras} LoRAs"
    )
    lines = [
        f"| {row.what} | {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f}) | {row.target} | "
        f"{row.note} |"
        for row in rows
    ]
    return "\n".join(
        [
            "# What a study costs",
            "",
            "Written by `make bench` (`benchmarks/speed.py`): ratios of medians, in brackets the",
            f"turns. Reference: {shape}. Machine: {machine}.",
            "",
            "| what | ratio (turns) | target | seconds |",
            "| --- | --- | --- | --- |",
            *lines,
            "",
        ]
    )


def main(smoke: bool = False, rounds: int = 3) -> None:
    """Time everything by turns.

    Args:
        smoke: Tiny sizes and one round; RESULTS.md stays as it is.
        rounds: Turns that count.
    """
    size, rounds = (SMOKE, 1) if smoke else (Size(), rounds)
    found = made(CACHE, size)
    far = made(CACHE, Size(**vars(size) | {"prompt": 50 if smoke else 1000}))
    with tempfile.TemporaryDirectory() as folder, quiet():
        rows = [
            *sweeps(found, Path(folder), rounds),
            *whole(found, Path(folder), rounds),
            *loading(found, Path(folder), rounds),
            *long_prompt(far, Path(folder), rounds),
        ]
    text = table(rows, size)
    print(text)
    if not smoke:
        (HERE / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    tyro.cli(main)
