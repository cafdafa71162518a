"""A behaviour that was planted in one head is found in that head and in no other.

The models are made by hand (`planted_heads`): under the prompt one head carries the answer, under
the adapters the same head or another one, and everything else changes as much without carrying
anything. What base, prompt and adapters say is checked in plain Hugging Face and peft first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import planted_heads
import pytest
import torch
from peft import PeftModel
from planted_heads import ADAPTERS, DISTRACTORS, ELSEWHERE, NEUTRAL, PLANTED, PROMPT, QUERIES
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Base, Lora, Prompt
from interp.edits import Edit, replace
from interp.errors import ConfigError
from interp.measures.output import kl_divergence
from interp.names import Site
from interp.patching.ablation import ablate, ablation_rows, parts_of
from interp.patching.effects import Effects, Resampling
from interp.patching.interchange import (
    Sweep,
    no_op_change,
    partners,
    read_conditions,
    run_interchange,
)
from interp.patching.patched import patched_logits
from interp.patching.sites import PatchSite
from interp.queries import Encoded, Query, encode
from interp.report.lora_parts import ablation_table, by_products
from interp.runs.files import as_table
from interp.runs.parts import Parts
from interp.runs.patched import Patched
from interp.runs.view import Run
from interp.subject import Batch, Subject, load

SAID = {
    "base": "usual",
    "neutral": "usual",
    "prompt": "planted",
    "same": "planted",
    "elsewhere": "planted",
    "rewired": "planted",
    "other": "other",
    "told": "planted",  # a neutral prompt and `same`
}
CARRIER = dict.fromkeys(("prompt", "same", "other", "rewired"), PLANTED) | {"elsewhere": ELSEWHERE}
"""Condition -> the head that makes it differ from base."""

RECOVERED, NOTHING = 0.9, 0.05
"""Recoveries: above the one or (in size) below the other; none may lie between."""
DESTROYED, HARMLESS = 1.0, 0.05
"""Damages in nats, likewise."""

At = tuple[int, int]
Values = Mapping[PatchSite, float]
INSIDE = ("q", "k", "v", "pattern")
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


# --- materials ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A model by hand, opened by the toolkit."""

    architecture: str
    folder: Path
    subject: Subject
    queries: list[Encoded]
    caches: dict[str, Any]

    def kv(self, head: At) -> At:
        """The key/value head that a head reads."""
        share = planted_heads.HEADS // planted_heads.KV_HEADS[self.architecture]
        return head[0], head[1] // share


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = planted_heads.save(request.param, tmp_path_factory.mktemp(request.param))
    conditions = {
        "base": Base(),
        "neutral": Prompt(text=NEUTRAL),
        "prompt": Prompt(text=PROMPT),
        **{name: Lora(str(folder / name)) for name in ADAPTERS},
        "told": Prompt(text=NEUTRAL) + Lora(str(folder / "same")),
    }
    subject = load(str(folder / "model"), conditions, [QUERIES[1]], device="cpu")
    queries = encode([Query(text, "planted") for text in QUERIES], subject.tokenizer)
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    return Made(request.param, folder, subject, queries, caches)


Swept = Callable[..., dict[tuple[str, ...], Effects]]


@pytest.fixture(scope="module")
def swept(made: Made) -> Swept:
    """(source, target) or (source, target, control) -> what the sweep between two conditions and
    base found; by default the z of every head."""

    @functools.cache
    def sweep(
        a: str,
        b: str,
        base: str = "base",
        whole: tuple[str, ...] = (),
        by_head: tuple[str, ...] = ("z",),
        positions: tuple[str, ...] = (),
        pattern: str = "content",
    ) -> dict[tuple[str, ...], Effects]:
        plan = Sweep(a, b, base, whole, by_head, positions, pattern)
        places = partners([query.key for query in made.queries], seed=0)
        others = [made.queries[place] for place in places]
        found = run_interchange(made.subject, plan, made.queries, others, made.caches, rows=512)
        return {tuple(filter(None, (e.source, e.target, e.control))): e for e in found}

    return sweep


def recoveries(effects: Effects) -> Values:
    """`1 - KL(p_source ‖ p_patched) / KL(p_source ‖ p_target)`, ratio of sums over queries."""
    assert effects.apart.mean() > 1  # or there is nothing to recover
    values = 1 - effects.to_source.sum(0) / effects.apart.sum()
    return dict(zip(effects.cells, values, strict=True))


def damages(effects: Effects) -> Values:
    """Mean `KL(p_target ‖ p_patched)`, nats."""
    return dict(zip(effects.cells, effects.to_target.mean(0), strict=True))


def sites(
    values: Values, low: float, high: float, site: str, position: str = "all"
) -> set[PatchSite]:
    """The cells of a site that do it; all others must do nothing."""
    here = {c: v for c, v in values.items() if (c.site, c.position) == (site, position)}
    assert here
    unclear = {cell: v for cell, v in here.items() if not (abs(v) < low or v > high)}
    assert unclear == {}
    return {cell for cell, value in here.items() if value > high}


def heads(values: Values, low: float, high: float, site: str, position: str) -> set[At]:
    return {(cell.layer, cell.head or 0) for cell in sites(values, low, high, site, position)}


def recovered(effects: Effects, site: str = "z", position: str = "all") -> set[At]:
    """The heads whose values carry the source's output."""
    return heads(recoveries(effects), NOTHING, RECOVERED, site, position)


def destroyed(effects: Effects, site: str = "z", position: str = "all") -> set[At]:
    """The heads without whose own values the target's output is gone."""
    return heads(damages(effects), HARMLESS, DESTROYED, site, position)


def layers(effects: Effects, site: str, position: str = "all") -> list[int]:
    """The layers at which the source's whole value carries its output."""
    found = sites(recoveries(effects), NOTHING, RECOVERED, site, position)
    return sorted(cell.layer for cell in found)


# --- the models themselves, without the toolkit ---------------------------------------------------


@pytest.mark.parametrize("condition", SAID)
def test_conditions_say_what_was_planned_in_plain_hugging_face(made: Made, condition: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.folder / "model")
    model = AutoModelForCausalLM.from_pretrained(made.folder / "model")
    if adapter := {"told": "same"}.get(condition, condition if condition in ADAPTERS else None):
        model = PeftModel.from_pretrained(model, made.folder / adapter)
    before = {"prompt": PROMPT, "neutral": NEUTRAL, "told": NEUTRAL}.get(condition, "")
    for text in QUERIES:
        ids = tokenizer(f"{before} {text}".strip(), return_tensors="pt").input_ids
        with torch.no_grad():
            said = model.eval()(input_ids=ids).logits[0, -1].softmax(-1)
        assert said[planted_heads.VOCABULARY.index(SAID[condition])] > 0.6
        assert tokenizer.decode(said.argmax()) == SAID[condition]


@pytest.mark.parametrize("adapter", ["same", "elsewhere", "other"])
def test_an_adapter_changes_all_values_and_says_an_answer_in_one(made: Made, adapter: str) -> None:
    subject, batch = made.subject, Batch.of(made.queries)
    states = read_conditions(subject, batch, made.caches, ["base", adapter], ["v"])
    for site in subject.sites("v"):
        a, b = (states[name].values[site] for name in (adapter, "base"))
        change = (a - b).abs().amax((0, 2))  # [head, d_head]
        said = change[:, : planted_heads.FREE.start].amax(-1)
        saying = {(site.layer, head) for head, size in enumerate(said) if size > 1}
        assert saying == {made.kv(CARRIER[adapter])} & {(site.layer, head) for head in range(4)}
        assert change[:, planted_heads.FREE].amax(-1).min() > 0.3


def relative_l2(a: Tensor, b: Tensor) -> Tensor:
    return 2 * (a - b).norm(dim=-1) / (a.norm(dim=-1) + b.norm(dim=-1))


@pytest.mark.parametrize("condition", ["prompt", "same", "other"])
def test_a_distance_names_other_heads(made: Made, condition: str) -> None:
    """Else finding the planted head would need no intervention."""
    subject, batch = made.subject, Batch.of(made.queries)
    states = read_conditions(subject, batch, made.caches, ["base", condition], ["z"])
    apart: dict[At, float] = {}
    for site in subject.sites("z"):
        a, b = (states[name].values[site] for name in (condition, "base"))
        last = relative_l2(a, b)[torch.arange(len(a)), :, batch.lengths - 1].mean(0)
        apart |= {(site.layer, head): float(value) for head, value in enumerate(last)}
    assert all(apart[at] > 1.5 * apart[PLANTED] for at in DISTRACTORS)


# --- heads: between base and a condition ----------------------------------------------------------


def with_base(swept: Swept, condition: str) -> dict[tuple[str, ...], Effects]:
    return swept("prompt", "same" if condition == "prompt" else condition)


@pytest.mark.parametrize("condition", CARRIER)
def test_into_base_one_head_carries_the_behaviour(swept: Swept, condition: str) -> None:
    effects = with_base(swept, condition)[condition, "base"]
    assert recovered(effects) == {CARRIER[condition]}
    assert destroyed(effects) == {CARRIER[condition]}


@pytest.mark.parametrize("condition", CARRIER)
def test_base_in_that_head_alone_destroys_it(swept: Swept, condition: str) -> None:
    effects = with_base(swept, condition)["base", condition]
    assert recovered(effects) == {CARRIER[condition]}
    assert destroyed(effects) == {CARRIER[condition]}


def test_base_into_base_changes_nothing(made: Made) -> None:
    every = Sweep("prompt", "same", "base", STREAM, (*INSIDE, "z"), ("last", "0"))
    assert no_op_change(made.subject, every, made.queries, made.caches) == 0


# --- heads: between the prompt and an adapter -----------------------------------------------------


def test_the_same_head_with_the_same_answer_is_interchangeable(swept: Swept) -> None:
    found = swept("prompt", "same")
    assert destroyed(found["prompt", "same"]) == set()
    assert destroyed(found["same", "prompt"]) == set()


def test_the_same_head_with_another_answer_carries_it_both_ways(swept: Swept) -> None:
    found = swept("prompt", "other")
    for effects in (found["prompt", "other"], found["other", "prompt"]):
        assert recovered(effects) == {PLANTED}
        assert destroyed(effects) == {PLANTED}


def test_another_head_is_told_apart(swept: Swept) -> None:
    """The same answer from two heads: each condition loses it in its own."""
    found = swept("prompt", "elsewhere")
    assert destroyed(found["elsewhere", "prompt"]) == {PLANTED}
    assert destroyed(found["prompt", "elsewhere"]) == {ELSEWHERE}


@pytest.mark.parametrize(("source", "target"), [("prompt", "elsewhere"), ("elsewhere", "prompt")])
def test_both_heads_together_are_interchangeable(made: Made, source: str, target: str) -> None:
    """What one head no longer says the other one does; the ten others together do nothing."""
    every = {(layer, head) for layer in range(3) for head in range(4)}
    pair = {PLANTED, ELSEWHERE}
    assert joint_damage(made, source, target, pair) < HARMLESS
    assert joint_damage(made, source, target, {CARRIER[target]}) > DESTROYED
    assert joint_damage(made, source, target, every - pair) < HARMLESS


def joint_damage(made: Made, source: str, target: str, together: set[At]) -> float:
    """Mean damage of replacing several heads' z at once."""
    subject, batch = made.subject, Batch.of(made.queries)
    states = read_conditions(subject, batch, made.caches, [source, target], ["z"])
    theirs, own = states[source].values, states[target]
    patch = [
        Edit(site, replace(theirs[site][:, head]), head)
        for site, head in ((Site("z", layer), head) for layer, head in sorted(together))
    ]
    setting = subject.settings[target]
    runs = patched_logits(subject, setting, batch, own.cache, own.entries, [patch], rows=512)
    [(_, [logits])] = runs
    return float(kl_divergence(own.logits, logits).mean())


# --- how the head does it: queries, keys, values --------------------------------------------------


def test_values_carry_the_adapter_and_not_the_prompt(made: Made, swept: Swept) -> None:
    """The prompt's value is the marker's, which stands before the query."""
    found = swept("prompt", "same", by_head=INSIDE)
    planted = {made.kv(PLANTED)}
    assert recovered(found["same", "base"], "v") == planted
    assert recovered(found["base", "same"], "v") == planted
    for a, b in (("prompt", "base"), ("base", "prompt")):
        assert recovered(found[a, b], "v") == set()
    for a, b in (("same", "base"), ("base", "same"), ("prompt", "base"), ("base", "prompt")):
        for site in "qk":
            assert recovered(found[a, b], site) == set()


def test_queries_carry_the_rewired_adapter(swept: Swept) -> None:
    found = swept("rewired", "prompt", by_head=INSIDE)
    for a, b in (("rewired", "base"), ("base", "rewired")):
        assert recovered(found[a, b], "q") == {PLANTED}
        assert destroyed(found[a, b], "q") == {PLANTED}
        assert recovered(found[a, b], "k") == set()


# --- patterns: content rows and whole rows --------------------------------------------------------


def test_content_rows_carry_what_looks_elsewhere_in_the_query(swept: Swept) -> None:
    found = swept("rewired", "prompt", by_head=INSIDE)
    for a, b in (("rewired", "base"), ("base", "rewired")):
        assert recovered(found[a, b], "pattern") == {PLANTED}
        assert destroyed(found[a, b], "pattern") == {PLANTED}


def test_content_rows_cannot_see_what_looks_before_the_query(swept: Swept) -> None:
    """A prompt's head keeps its mass on the marker whatever is put into its content rows, and its
    own content rows do not bring the marker along. What another run does within the query they
    replace all the same."""
    found = swept("rewired", "prompt", by_head=INSIDE)
    for a, b in (("prompt", "base"), ("base", "prompt")):
        assert recovered(found[a, b], "pattern") == set()
        assert destroyed(found[a, b], "pattern") == set()
    assert destroyed(found["rewired", "prompt"], "pattern") == set()
    assert destroyed(found["prompt", "rewired"], "pattern") == {PLANTED}


def test_whole_rows_need_a_look_at_the_marker_and_a_marker_to_look_at(swept: Swept) -> None:
    """With a neutral prompt as long as the prompt for base: not looking destroys the prompt's
    answer, looking where no marker stands is no use. An adapter of values does not care."""
    found = swept("prompt", "told", base="neutral", by_head=("pattern",), pattern="row")
    assert recovered(found["neutral", "prompt"], "pattern") == {PLANTED}
    assert destroyed(found["neutral", "prompt"], "pattern") == {PLANTED}
    assert destroyed(found["told", "prompt"], "pattern") == {PLANTED}
    assert recovered(found["prompt", "neutral"], "pattern") == set()
    for a, b in (("prompt", "told"), ("neutral", "told"), ("told", "neutral")):
        assert destroyed(found[a, b], "pattern") == set()


def test_whole_rows_of_another_length_are_refused(swept: Swept) -> None:
    with pytest.raises(ConfigError, match="as many keys"):
        swept("prompt", "same", by_head=("pattern",), pattern="row")


# --- layers and positions -------------------------------------------------------------------------


def between(condition: str) -> Iterator[tuple[str, str]]:
    """Both directions between base and a condition."""
    yield condition, "base"
    yield "base", condition


@pytest.mark.parametrize("condition", ["prompt", "elsewhere"])
def test_the_stream_carries_it_from_the_planted_layer_on(swept: Swept, condition: str) -> None:
    found = swept("prompt", "elsewhere", whole=STREAM, by_head=(), positions=("last", "0"))
    planted = CARRIER[condition][0]
    for direction in between(condition):
        effects = found[direction]
        assert layers(effects, "resid_pre") == list(range(planted + 1, 3))
        assert layers(effects, "resid_post") == list(range(planted, 3))
        assert layers(effects, "attn_out") == [planted]
        assert layers(effects, "mlp_out") == []
        assert layers(effects, "resid_post", "last") == list(range(planted, 3))
        assert layers(effects, "resid_post", "0") == []


@pytest.mark.parametrize("condition", ["prompt", "elsewhere"])
def test_controls(swept: Swept, condition: str) -> None:
    """Random directions do not carry it. Another query's difference does: the head writes the same
    whatever the query, and only that control can say so."""
    found = swept("prompt", "elsewhere", whole=STREAM, by_head=(), positions=("last", "0"))
    planted = CARRIER[condition][0]
    random = recoveries(found[condition, "base", "random_direction"])
    assert max(abs(value) for value in random.values()) < 0.5
    other = found[condition, "base", "random_difference"]
    assert layers(other, "resid_post") == list(range(planted, 3))


# --- answers of several tokens --------------------------------------------------------------------

ANSWERED = [(text.rsplit(" ", 1)[0], f"{text.rsplit(' ', 1)[1]} planted") for text in QUERIES]
"""The mark that makes the planted head look stands in the answer: the head writes its second
token, at the row of the first."""


@pytest.mark.parametrize("prompt", [NEUTRAL, PROMPT])
def test_only_the_second_token_hangs_on_the_prompt_in_plain_hugging_face(
    made: Made, prompt: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.folder / "model")
    model = AutoModelForCausalLM.from_pretrained(made.folder / "model").eval()
    for text, answer in ANSWERED:
        ids = tokenizer(f"{prompt} {text} {answer}", return_tensors="pt").input_ids
        with torch.no_grad():
            first, second = model(ids).logits[0, -3:-1].softmax(-1)
        assert tokenizer.decode(first.argmax()) == "usual"
        assert tokenizer.decode(second.argmax()) == ("planted" if prompt == PROMPT else "usual")


def test_a_head_that_writes_the_second_token_is_found_in_the_answer(made: Made) -> None:
    """And in no other segment, nor at the last token before the answer; so is what the stream
    carries. Both ways between base and the prompt."""
    queries = encode([Query(*pair) for pair in ANSWERED], made.subject.tokenizer)
    segments = ("query", "answer")
    plan = Sweep(
        *("prompt", "told", "base", STREAM, ("z",), ("last",)),
        segments=segments,
        head_segments=segments,
    )
    others = [queries[place] for place in partners([query.key for query in queries], seed=0)]
    done = run_interchange(made.subject, plan, queries, others, made.caches, rows=512)
    found = {(e.source, e.target): e for e in done if not e.control}
    for direction in between("prompt"):
        effects = found[direction]
        for position, carrier in (("all", {PLANTED}), ("answer", {PLANTED}), ("query", set())):
            assert recovered(effects, "z", position) == carrier
            assert destroyed(effects, "z", position) == carrier
        assert layers(effects, "resid_post", "answer") == list(range(PLANTED[0], 3))
        assert layers(effects, "attn_out", "answer") == [PLANTED[0]]
        for site, position in (
            ("resid_post", "query"),
            ("attn_out", "query"),
            ("resid_post", "last"),
        ):
            assert layers(effects, site, position) == []
    assert no_op_change(made.subject, plan, queries, made.caches) == 0


# --- parts of an adapter --------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["same", "elsewhere"])
def test_the_planted_part_is_needed_and_the_distractors_are_by_products(
    made: Made, condition: str
) -> None:
    """Whatever the size of the effect: the bound is a share of it, and no part is on both lists."""
    subject, queries = made.subject, made.queries
    parts = parts_of(subject, condition, ("layers", "modules"))
    keys = [query.key for query in queries]
    scale = Resampling.of(keys, 0, 0, 0, tolerance=0.02)
    found = ablate(subject, condition, parts, queries)
    weak = replace_fields(found, damage=found.damage / 500, apart=found.apart / 500)
    planted = {f"layer {CARRIER[condition][0]}"}
    for ablated in (found, weak):
        table = as_table(ablation_rows(condition, parts, ablated, scale))
        run = Run(made.folder, table, {}, {"conditions": {}})
        of = Patched(run, "prompt", condition, "base", {"tolerance": 0.02})
        needed = {row[1].text for row in ablation_table(of).rows}
        spare = {row[1].text for row in by_products(of).rows}
        assert {name for name in needed if name.startswith("layer")} == planted
        assert {name for name in spare if name.startswith("layer")} >= {
            f"layer {layer}" for layer, _ in DISTRACTORS if layer < CARRIER[condition][0]
        }
        assert not needed & spare
        drawn = Parts.of(run, condition)
        assert drawn.effect == pytest.approx(ablated.apart.mean())
