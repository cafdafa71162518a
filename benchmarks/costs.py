"""What a study costs, in bare passes of the same conditions on the same queries.

Both sides are timed by turns, in one process or, the whole command, in processes of their own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from bare import Bare, BareChat
from reference import CACHE, Reference, bundled, chatting
from timing import (
    PRINTED,
    Row,
    Setup,
    at_least,
    at_most,
    by_turns,
    child,
    diverge,
    figure,
    interp,
    ratio,
)
from transformers import AutoModelForCausalLM

from interp.batch import Batch
from interp.engines import InProcess
from interp.measures.tally import Tally
from interp.preparing import inputs_of, open_subject, prepare, read_groups
from interp.store import Store
from interp.subject import Subject
from interp.subject.loading import threads_for
from interp.sweep import sweep

PINNED = ("pinned inputs", "change decomposition", "score split")
READOUT = ("lens", "influence")
UNASKED = ("score split",)
"""What nobody asks for by default."""


class Study:
    """A study up to its sweep, which is run again and again."""

    def __init__(self, found: Reference, folder: Path) -> None:
        self.asked = found.experiment(folder / "run")
        built, queries, _ = inputs_of(self.asked)
        self.subject: Subject = open_subject(self.asked, built, queries["matched"])
        with Store.open(folder / "kept", {}, overwrite=True) as store:
            self.prepared = prepare(
                self.asked, self.subject, InProcess(self.subject), built, queries, store
            )
        self.folder = folder

    def sweep(self, *unasked: str) -> Tally:
        """All measures but these groups."""
        plan = replace(self.prepared.plan, unasked=frozenset(unasked))
        queries = self.prepared.groups["matched"]
        with Store.open(self.folder / "kept", {}, overwrite=True) as store:
            return sweep(InProcess(self.subject), plan, queries, store, "matched", lambda *_: None)

    def outputs_states_attention(self) -> Tally:
        """Neither runs at pinned inputs nor the readout."""
        return self.sweep(*PINNED, *READOUT)

    def everything(self) -> Tally:
        """All default measures."""
        return self.sweep(*UNASKED)


def sweeps(setup: Setup) -> Iterator[Row]:
    """The sweep, with and without runs at pinned inputs and the readout, over the bare pass."""
    found = setup.reference()
    bare, study = Bare.of(found), Study(found, setup.folder)
    basic, everything = study.outputs_states_attention, study.everything
    seconds = by_turns(setup, bare=bare, basic=basic, all=everything)
    for way, what, most in (
        ("basic", "sweep of outputs, states, attention", 1.3),
        ("all", "sweep of all default measures", 2),
    ):
        yield ratio(what, seconds[way], seconds["bare"], at_most(most))


def small(setup: Setup) -> Iterator[Row]:
    """The bundled model, where Python's own time counts: the sweep over the bare pass, by query."""
    found = bundled()
    bare, study = Bare.of(found), Study(found, setup.folder)
    with threads_for(study.subject.n_parameters):
        seconds = by_turns(setup, bare=bare, ours=study.everything)
    by_query = 1e3 / len(study.prepared.groups["matched"])
    note = f"{by_query * statistics.median(seconds['ours']):.2g} ms per query"
    words = "bundled model: sweep of all default measures"
    yield ratio(words, seconds["ours"], seconds["bare"], at_most(8), note)


def whole(setup: Setup) -> Iterator[Row]:
    """The command with everything, from its start to its report, over the bare pass; and how long
    its help takes, in seconds."""
    found = setup.reference()
    seconds = by_turns(
        setup,
        bare=Bare.of(found),
        whole=lambda: diverge(found, setup.folder / "whole"),
        help=lambda: interp("diverge", "--help"),
    )
    yield ratio(
        "whole `interp diverge`, with report", seconds["whole"], seconds["bare"], at_most(4)
    )
    yield figure("`interp diverge --help`, seconds", seconds["help"], at_most(0.4))


def chat(setup: Setup) -> Iterator[Row]:
    """The whole command on a real chat model, over plain passes that write and read as much."""
    found = chatting(CACHE, setup.smoke)
    size = "a tiny chat" if setup.smoke else "SmolLM2-135M, 64 chat queries, 16 answer tokens"
    words = f"whole `interp diverge`, {size}"
    if found is None:
        yield Row.skipped(words, at_most(3), "not measured: run `make smollm2` first")
        return
    bare = BareChat(found)
    written: list[float] = []

    def passes() -> None:
        start = time.perf_counter()
        answers = bare.write()["prompt"]
        written.append(time.perf_counter() - start)
        bare.read(answers)

    whole = partial(diverge, found, setup.folder / "chat")
    no_lens = replace(found, fields=found.fields | {"lens": False})
    without = partial(diverge, no_lens, setup.folder / "chat")
    once = replace(setup, rounds=1)
    lens = bare.lens_products
    seconds = by_turns(once, warm=False, bare=passes, lens=lens, whole=whole, without=without)
    note = f"one turn; of the bare passes, {statistics.median(written):.3g} s write the answers"
    yield ratio(words, seconds["whole"], seconds["bare"], at_most(3), note)
    words = "the same without the logit lens (`--no-lens`)"
    yield ratio(words, seconds["without"], seconds["bare"], PRINTED, "one turn")
    words = "the logit lens's matrix products alone, of every layer, answer token and condition"
    yield ratio(words, seconds["lens"], seconds["bare"], PRINTED, "one turn")


def loading(setup: Setup) -> Iterator[Row]:
    """Loading with parity of every condition over loading the model in plain transformers."""
    found = setup.reference()
    asked = found.experiment(setup.folder / "run")
    built, queries = asked.build(), read_groups(asked)["matched"]
    seconds = by_turns(
        setup,
        plain=lambda: AutoModelForCausalLM.from_pretrained(found.model),
        ours=lambda: open_subject(asked, built, queries),
    )
    yield ratio("load and parity over a plain load", seconds["ours"], seconds["plain"], at_most(3))


def engines(setup: Setup) -> Iterator[Row]:
    """Two workers of Ray, of one thread each, over one; their results are the same bytes."""
    found = child("engines.py", *(["--smoke"] if setup.smoke else []))
    for part, words, target in (
        ("whole", "two workers of Ray over one, whole study", at_least(1.6)),
        ("shards", "two workers of Ray over one, shards alone", PRINTED),
    ):
        one, two = zip(*found[part], strict=True)
        yield ratio(words, one, two, target, "the same bytes")


def long_prompt(setup: Setup) -> Iterator[Row]:
    """The hooked model behind a cached prompt against recomputing the prompt for every query. The
    recomputing is timed on an eighth of the queries, and counts eight times."""
    length = 50 if setup.smoke else 1000
    found = setup.reference(prompt=length)
    bare, study = Bare.of(found), Study(found, setup.folder)
    subject = study.subject
    setting = subject.settings["prompt"]
    cache = subject.prefill(setting)
    batch = Batch.of(study.prepared.groups["matched"])
    some = len(batch.ids) // 8
    ours = partial(subject.run, setting, batch, cache)
    seconds = by_turns(setup, again=partial(bare.again, some), ours=ours)
    again = [8 * value for value in seconds["again"]]
    words = f"prompt of {length} tokens: recomputed over reused"
    yield ratio(words, again, seconds["ours"], at_least(25))
