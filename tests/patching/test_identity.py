"""What must hold of an interchange in every architecture, whatever the weights.

A condition's own values are no change; the source's last state is the source's output; what leaves
a block is what enters the next; and the controls move a state exactly as far as the source does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from interp.capture import capture, keep
from interp.conditions import Base, Lora, Prompt, SoftPrompt
from interp.edits import Edit, replace
from interp.names import Site
from interp.patching import attribution
from interp.patching import interchange as room
from interp.patching.effects import PATCHING_CONTROLS, Effects
from interp.patching.interchange import (
    Sweep,
    change_of,
    n_heads,
    partners,
    read_conditions,
    run_interchange,
)
from interp.patching.patched import Patch, patched_logits
from interp.queries import Encoded, Query, encode
from interp.subject import Batch, Subject, load

STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v")
TEXTS = ("the opposite of big", "up", "lily said: yes", "hot is")
ANSWERS = ("is small", None, "no? tom said", "cold; up")
PROMPT = "hot is the opposite of cold. up is the opposite of"
LAST = tiny_models.N_LAYERS - 1
STACKED = 2e-6
"""Other batch sizes may be other matrix products: the last bits of logits of size 5."""


@dataclass(frozen=True)
class Bench:
    """A model under every kind of condition; queries and answers of different lengths."""

    subject: Subject
    queries: list[Encoded]
    caches: dict[str, Any]

    @property
    def batch(self) -> Batch:
        return Batch.forced(self.queries)

    @property
    def stream(self) -> tuple[str, ...]:
        """NeoX's attention and MLP read the same state: there is none between them."""
        parallel = "NeoX" in type(self.subject.bridge.original_model).__name__
        return tuple(site for site in STREAM if not (parallel and site == "resid_mid"))

    def observe(self, names: list[str], sites: tuple[str, ...], pattern: str = "content") -> Any:
        return read_conditions(self.subject, self.batch, self.caches, names, sites, pattern)

    def patched(self, name: str, own: Any, patches: list[Patch], rows: int) -> torch.Tensor:
        """Logits `[patch, token, d_vocab]` at the answers' tokens."""
        setting = self.subject.settings[name]
        runs = patched_logits(
            self.subject, setting, self.batch, own.cache, own.entries, patches, rows=rows
        )
        found = {n: row for numbers, logits in runs for n, row in zip(numbers, logits, strict=True)}
        return torch.stack([found[n] for n in range(len(patches))])


@pytest.fixture(scope="module", params=tiny_models.CONFIGS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder: Path = tmp_path_factory.mktemp(request.param)
    model = tiny_models.save_model(request.param, folder / "model")
    targets = tiny_models.all_targets(request.param)
    lora = Lora(tiny_models.save_adapter(model, folder / "lora", targets))
    prompt = Prompt(text=PROMPT)
    conditions = {
        "base": Base(),
        "prompt": prompt,
        "lora": lora,
        "both": Prompt(text="people talked") + lora,
        "soft": SoftPrompt(tiny_models.save_soft_prompt(model, folder / "soft")),
    }
    subject = load(model, conditions, TEXTS[:1], device="cpu")
    queries = encode(map(Query, TEXTS, ANSWERS), subject.tokenizer)
    assert len({len(query.ids) for query in queries}) > 2
    assert len({len(query.answer_ids) for query in queries}) > 2
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    return Bench(subject, queries, caches)


# --- a condition's own values --------------------------------------------------------------------


def own_patches(bench: Bench, own: Any, pattern: str) -> Iterator[Edit]:
    """Every site of every layer as a whole, in one layer also one head of each, single tokens."""
    where = torch.zeros_like(bench.batch.ids, dtype=torch.bool)
    where[:, 0] = True
    for site, value in own.values.items():
        change = change_of(site.name, pattern, value)
        yield Edit(site, change)
        if site.layer != 1:
            continue
        if site.name == "resid_post":
            yield Edit(site, change, where=where)
        if site.name in (*HEADS, "pattern"):
            head = n_heads(bench.subject, site.name) - 1
            yield Edit(site, change_of(site.name, pattern, value[:, head]), head)


@pytest.mark.parametrize("name", ["base", "prompt", "lora", "both", "soft"])
def test_own_values_change_nothing(bench: Bench, name: str) -> None:
    """Not a bit in a forward pass alone; stacked with others, no more than its batch size does."""
    patches: list[Patch] = []
    for pattern, sites in (("content", (*bench.stream, *HEADS, "pattern")), ("row", ("pattern",))):
        own = bench.observe([name], sites, pattern)[name]
        patches += [[edit] for edit in own_patches(bench, own, pattern)]
    alone = bench.patched(name, own, patches, rows=len(bench.queries))
    for patch, logits in zip(patches, alone, strict=True):
        assert torch.equal(logits, own.logits), f"{patch[0].site} head {patch[0].head}"
    stacked = bench.patched(name, own, patches, rows=10_000)
    difference = (stacked - own.logits).abs().max()
    print(f"{bench.subject.name} {name}: {len(patches)} patches, stacked {difference:.2g}")
    assert difference <= STACKED


# --- the last state is the output ----------------------------------------------------------------


def test_the_sources_last_state_says_what_the_source_says(bench: Bench) -> None:
    """All ordered pairs: no prefix, short and long ones, virtual tokens, adapters on and off."""
    states = bench.observe(list(bench.caches), ("resid_post",))
    site, largest = Site("resid_post", LAST), 0.0
    for target, own in states.items():
        sources = {name: source for name, source in states.items() if name != target}
        patches: list[Patch] = [[Edit(site, replace(s.values[site]))] for s in sources.values()]
        found = bench.patched(target, own, patches, rows=len(bench.queries))
        for (name, source), logits in zip(sources.items(), found, strict=True):
            assert (source.logits - own.logits).abs().max() > 0.1, f"{name} is like {target}"
            largest = max(largest, float((logits - source.logits).abs().max()))
    print(f"{bench.subject.name}: last state {largest:.2g}")
    assert largest <= 1e-5


def test_resid_mid_is_all_of_the_stream(bench: Bench) -> None:
    """Under the same weights, what stands before the last MLP is the output too; and a change of
    it is a change of what attention writes, to first order as well."""
    if "resid_mid" not in bench.stream:
        pytest.skip("parallel blocks")
    mid = Site("resid_mid", LAST)
    for source, target in (("prompt", "base"), ("base", "soft"), ("both", "lora")):
        states = bench.observe([source, target], ("resid_mid",))
        change = [Edit(mid, replace(states[source].values[mid]))]
        [found] = bench.patched(target, states[target], [change], rows=len(bench.queries))
        torch.testing.assert_close(found, states[source].logits, atol=1e-5, rtol=0)
    sites = [Site(name, layer) for layer in range(LAST + 1) for name in ("resid_mid", "attn_out")]
    answers = torch.tensor([token for query in bench.queries for token in query.answer_ids or (5,)])
    cache = bench.subject.prefill(bench.subject.settings["prompt"])
    run = attribution.run(bench.subject, "prompt", bench.batch, cache, sites, answers)
    for layer in range(LAST + 1):
        here, written = (run.gradients[Site(n, layer)] for n in ("resid_mid", "attn_out"))
        torch.testing.assert_close(here, written, atol=1e-6, rtol=1e-5)


def test_what_leaves_a_block_enters_the_next(bench: Bench) -> None:
    states = bench.observe(["prompt", "lora"], ("resid_post",))
    source, own = states["prompt"], states["lora"]
    patches: list[Patch] = []
    for layer in range(LAST):
        value = source.values[Site("resid_post", layer)]
        torch.testing.assert_close(value, source.values[Site("resid_pre", layer + 1)])
        sites = (Site("resid_post", layer), Site("resid_pre", layer + 1))
        patches += [[Edit(site, replace(value))] for site in sites]
    found = bench.patched("lora", own, patches, rows=len(bench.queries))
    assert torch.equal(found[::2], found[1::2])
    for patch, logits in zip(patches, found, strict=True):  # against a run that begins at block 0
        setting, cache = bench.subject.settings["lora"], bench.caches["lora"]
        whole = capture(bench.subject, setting, bench.batch, cache, {}, patch)
        said = bench.batch.answer.pick(whole.logits)
        torch.testing.assert_close(logits, said, atol=1e-5, rtol=0)


# --- an interchange and its controls -------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """What an interchange did, and every edit by (source, target, control), site and layer."""

    plan: Sweep
    effects: list[Effects]
    edits: dict[tuple[str, str, str], dict[Site, Edit]]


def recorded(bench: Bench, plan: Sweep, chunk: list[Encoded], others: list[Encoded]) -> Recorded:
    seen: list[Patch] = []

    def spy(subject: Any, setting: Any, batch: Any, cache: Any, own: Any, patches: Any, rows: int):
        seen.extend(patches)
        return patched_logits(subject, setting, batch, cache, own, patches, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "patched_logits", spy)
        effects = run_interchange(bench.subject, plan, chunk, others, bench.caches, rows=10_000)
    edits: dict[tuple[str, str, str], dict[Site, Edit]] = {}
    taken = iter(seen)
    for own in effects:
        here = edits.setdefault((own.source, own.target, own.control), {})
        for cell in own.cells:
            [edit] = next(taken)
            if cell.head is None and cell.position == "all":
                here[edit.site] = edit
    assert next(taken, None) is None
    return Recorded(plan, effects, edits)


@pytest.fixture(scope="module")
def done(bench: Bench) -> Recorded:
    segments = ("query", "answer")
    plan = Sweep(
        *("prompt", "lora", "base", bench.stream, ("z", "pattern"), ("last", "0")),
        segments=segments,
        head_segments=segments,
    )
    numbers = partners([query.key for query in bench.queries], plan.seed)
    assert sorted(numbers) == list(range(len(numbers)))
    assert all(number != i for i, number in enumerate(numbers))
    return recorded(bench, plan, bench.queries, [bench.queries[n] for n in numbers])


def test_an_interchange_of_the_last_state_is_full_transfer(done: Recorded) -> None:
    for own in (e for e in done.effects if not e.control):
        last = own.at("resid_post").of(np.arange(LAST + 1) == LAST)
        assert np.abs(last.to_source).max() < 1e-9
        np.testing.assert_allclose(last.log_odds[:, 0], own.source_odds, atol=1e-4)
        read = own.at("resid_post", position="answer").of(np.arange(LAST + 1) == LAST)
        np.testing.assert_allclose(read.to_target, last.to_target, atol=1e-6)  # all that is read


def test_what_the_last_block_leaves_before_the_answer_is_read_by_nobody(done: Recorded) -> None:
    for own in (e for e in done.effects if not e.control):
        last = own.at("resid_post", position="query").of(np.arange(LAST + 1) == LAST)
        assert np.nanmax(np.abs(last.to_target)) < 1e-9
        np.testing.assert_array_equal(np.isnan(last.to_target[:, 0]), [False, True, False, False])


def test_one_token_of_the_answer_is_as_likely_as_it_is_alone(bench: Bench, done: Recorded) -> None:
    """The answer's log-odds and the sequence KL, from the conditions' logits token by token."""
    said = {name: bench.observe([name], ())[name].logits for name in ("prompt", "lora")}
    p, q = (logits.double().log_softmax(-1) for logits in said.values())
    kl = (p.exp() * (p - q)).sum(-1)
    top = iter(q.argmax(-1).tolist())
    own = next(e for e in done.effects if (e.source, e.target, e.control) == ("prompt", "lora", ""))
    start = 0
    for number, query in enumerate(bench.queries):
        rows = range(start, start + max(1, len(query.answer_ids)))
        said_here = [next(top) for _ in rows]
        assert own.apart[number] == pytest.approx(float(kl[rows].sum()), abs=1e-9)
        odds = 0.0
        for row, token in zip(rows, query.answer_ids or said_here, strict=True):
            chance = float(q[row, token].exp())
            odds += np.log(chance) - np.log1p(-chance)
        assert own.target_odds[number] == pytest.approx(odds, abs=1e-6)
        start = rows.stop
    assert start == len(q)


def counterparts(query: Encoded, other: Encoded) -> list[int]:
    """Rows before the answer from the right, those that predict it from the left."""
    last, theirs = len(query.ids) - 1, len(other.ids) - 1
    before = [max(0, theirs - last + row) for row in range(last)]
    n, most = (max(1, len(one.answer_ids)) for one in (query, other))
    return before + [theirs + min(row, most - 1) for row in range(n)]


def alone(bench: Bench, name: str, query: Encoded) -> dict[Site, torch.Tensor]:
    """One query's states `[query_pos, d_model]`, in a batch of its own."""
    read = {site: keep for kind in bench.stream for site in bench.subject.sites(kind)}
    setting, cache = bench.subject.settings[name], bench.caches[name]
    got = capture(bench.subject, setting, Batch.forced([query]), cache, read, last=True)
    return {site: value[0] for site, value in got.values.items()}


def test_controls_move_as_far_as_the_source_and_elsewhere(bench: Bench, done: Recorded) -> None:
    """Token by token, against runs of single queries: as far as the source lies away, for a random
    difference along what the same two conditions show at the partner's token of the same segment;
    for a random direction anywhere."""
    queries, names = bench.queries, done.plan.conditions
    numbers = partners([query.key for query in queries], done.plan.seed)
    single = {name: [alone(bench, name, query) for query in queries] for name in names}
    own = bench.observe([*names], bench.stream)
    controls = [move for move in done.edits if move[2]]
    assert {control for *_, control in controls} == set(PATCHING_CONTROLS)
    towards = []
    for source, target, control in controls:
        for site, edit in done.edits[source, target, control].items():
            start = own[target].values[site]
            steps = edit.change(start) - start
            change = [
                a[site] - b[site] for a, b in zip(single[source], single[target], strict=True)
            ]
            for i, here in enumerate(change):
                step = steps[i, : len(here)]
                if here.norm() < 1e-4 * start[i].norm():  # embeddings: the same in all conditions
                    assert step.norm() < 1e-4 * start[i].norm()
                    continue
                lengths = step.norm(dim=-1), here.norm(dim=-1)
                torch.testing.assert_close(*lengths, rtol=1e-3, atol=1e-4)
                if control == "random_difference":
                    places = counterparts(queries[i], queries[numbers[i]])
                    along = torch.cosine_similarity(step, change[numbers[i]][places], dim=-1)
                    assert along.min() > 0.999, f"{source} into {target} at {site}"
                else:
                    towards += torch.cosine_similarity(step, here, dim=-1).abs().tolist()
    assert np.mean(towards) < 2 * tiny_models.D_MODEL**-0.5


def test_a_random_direction_is_the_querys_own(bench: Bench, done: Recorded) -> None:
    """The same at every site and layer and in every batch; another one for every query."""
    again = recorded(bench, done.plan, bench.queries[:0:-1], bench.queries[1:])
    directions = []
    for result, queries in ((done, bench.queries), (again, bench.queries[:0:-1])):
        rows = {}
        batch = Batch.forced(queries)
        for layer in (0, LAST):
            site = Site("attn_out", layer)
            start = read_conditions(bench.subject, batch, bench.caches, ["base"], ("attn_out",))
            value = start["base"].values[site]
            edit = result.edits["prompt", "base", PATCHING_CONTROLS[0]][site]
            steps = torch.nn.functional.normalize(edit.change(value) - value, dim=-1)
            rows[layer] = {query.key: steps[i, 0] for i, query in enumerate(queries)}
        for key in rows[0]:
            torch.testing.assert_close(rows[0][key], rows[LAST][key], atol=1e-3, rtol=0)
        directions.append(rows[0])
    first, second = directions
    for key, direction in second.items():
        torch.testing.assert_close(direction, first[key], atol=1e-3, rtol=0)
    stack = torch.stack(list(first.values()))
    assert (stack @ stack.T).fill_diagonal_(0).abs().max() < 0.8
