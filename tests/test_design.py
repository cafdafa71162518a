"""What is compared with what, by hand for small experiments and by law for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from interp.conditions import (
    Base,
    Condition,
    FittedBias,
    Lora,
    Neutral,
    Prompt,
    RandomLora,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    Untrained,
    simple_parts,
)
from interp.config import Experiment, bundled_families, parse_condition
from interp.design import Design, families_of, headline_of
from interp.errors import ConfigError

PROMPT, LORA = Prompt(text="opposite :"), Lora("adapter")


def battery(prompts: int, loras: int) -> dict[str, Condition]:
    """Some prompts, some adapters, and a control of each kind."""
    built: dict[str, Condition] = {"base": Base()}
    built |= {f"few_{i}": Prompt(text=f"shot {i} :") for i in range(prompts)}
    built |= {f"lora_{i}": Lora(f"adapter_{i}") for i in range(loras)}
    if prompts:
        built |= {"neutral": Neutral(like=built["few_0"]), "shifted": Shifted(by=built["few_0"])}
    if loras:
        built |= {"random_lora": RandomLora(like=Lora("adapter_0"))}
        built |= {"logit_bias": FittedBias(like=built["lora_0"]), "untrained": Untrained()}
    return built


def test_families_by_hand() -> None:
    design = Design.of(battery(3, 2), {})
    assert design.families == {"few": ("few_0", "few_1", "few_2"), "lora": ("lora_0", "lora_1")}
    assert design.headline == ("few_0", "lora_0")
    assert design.floors == (("few_1", "few_0"), ("few_2", "few_1"), ("lora_1", "lora_0"))
    assert design.members == ("few_0", "few_1", "few_2", "lora_0", "lora_1")
    assert design.family("few_1") == "few"
    assert design.family("neutral") is None
    crossed = [pair for pair in design.pairs if "base" not in pair and pair not in design.floors]
    assert sorted(crossed) == [
        ("few_0", "lora_0"),
        ("few_0", "random_lora"),
        ("few_0", "untrained"),
        ("logit_bias", "lora_0"),
        ("neutral", "lora_0"),
        ("shifted", "lora_0"),
    ]
    assert {("few_2", "lora_1"), ("few_1", "lora_0")} <= set(design.certified)


def test_every_control_stands_in_the_place_of_what_it_controls() -> None:
    design = Design.of(battery(1, 1), {})
    assert design.nulls == {
        "neutral": ("neutral", "lora_0"),
        "shifted": ("shifted", "lora_0"),
        "random_lora": ("few_0", "random_lora"),
        "logit_bias": ("logit_bias", "lora_0"),
        "untrained": ("few_0", "untrained"),
    }
    assert design.null_pair == ("neutral", "lora_0")
    assert design.controls == {
        ("few_0", "lora_0"): ("neutral", "lora_0"),
        ("few_0", "base"): ("neutral", "base"),
        ("few_0", ""): ("neutral", ""),
        ("lora_0", "base"): ("random_lora", "base"),
        ("lora_0", ""): ("random_lora", ""),
    }


@given(prompts=st.integers(0, 3), loras=st.integers(0, 3))
def test_laws_of_a_design(prompts: int, loras: int) -> None:
    built = battery(prompts, loras)
    design = Design.of(built, {})
    assert len(set(design.pairs)) == len(design.pairs)
    assert set(design.pairs) <= set(design.certified)
    assert all(a != b and {a, b} <= set(built) for a, b in design.certified)
    assert {(name, "base") for name in built if name != "base"} <= set(design.pairs)
    assert set(design.nulls.values()) <= set(design.pairs)
    tested = {pair for pair in (*design.controls, *design.controls.values()) if pair[1]}
    assert tested <= set(design.pairs)
    assert design.pairs[:1] == design.certified[:1]
    assert design.headline in (None, *design.pairs[:1])
    named = {*design.floors, *design.nulls.values(), design.headline}
    for a, b in design.pairs:
        if b != "base" and (a, b) not in named:
            assert built[b].reweights
            assert not built[a].reweights
            assert "control" not in (built[a].role, built[b].role) or (
                built[a].role != built[b].role
            )
    alone = 2 in (prompts, loras) and 0 in (prompts, loras)  # two of a kind and nothing else
    assert (design.headline is None) == ((prompts == 0 or loras == 0) and not alone)


PARTS: dict[str, Any] = {
    "d": {"prompt": {"text": "default"}},
    "p": {"prompt": {"text": "opposite :"}},
    "q": {"prompt": {"text": "the same"}},
    "few": {"prompt": {"pairs": [["hot", "cold"], ["up", "down"]]}},
    "l": {"lora": {"adapter": "l"}},
    "m": {"lora": {"adapter": "m"}},
    "tuned": {"fine_tuned": {"model": "t"}},
    "bias": {"logit_bias": {"bias": {"a": 1.0}}},
    "push": {"steering": {"vector": "v", "layer": 0}},
}
D, P, Q, FEW, L, M, TUNED, BIAS, _ = (parse_condition(name, s, {}) for name, s in PARTS.items())
RANDOM_L, RANDOM_M = RandomLora(L), RandomLora(M)


def compared(a: Sequence[str], b: Sequence[str], **more: Any) -> tuple[dict[str, Any], Design]:
    """The controls and the design of an experiment about `a` and `b`, composed of these parts."""
    conditions = {
        name: [PARTS[part] for part in side] for name, side in (("a", a), ("b", b)) if side
    }
    fields = {"model": "m", "queries": "q", "out": "run", "conditions": conditions} | more
    experiment = Experiment(**{"compare": ("a" if a else "base", "b" if b else "base")} | fields)
    built = experiment.build()
    controls = {name: built[name] for name in built if name not in ("base", *conditions)}
    return controls, Design.of(built, experiment.families, experiment.compare)


@pytest.mark.parametrize(
    ("a", "b", "in_a", "in_b", "tested"),
    [
        (  # a prompt, and the same with a LoRA: the prompt stays on both sides
            "p",
            ["p", "l"],
            {},
            {"random_lora": P + RANDOM_L, "untrained": P + Untrained()},
            {"headline": "random_lora", "b": "random_lora"},
        ),
        (  # a LoRA and a prompt, the other way round than by default
            "l",
            "p",
            {"random_lora": RANDOM_L, "untrained": Untrained()},
            {"neutral": Neutral(P), "shuffled_tokens": ShuffledTokens(P), "shifted": Shifted(P)},
            {"headline": "neutral", "a": "random_lora", "b": "neutral"},
        ),
        (  # a side with both: its LoRA is controlled in it, text in the side that is text alone
            ["d", "l"],
            "p",
            {"random_lora": D + RANDOM_L, "untrained": D + Untrained()},
            {"neutral": Neutral(P), "shuffled_tokens": ShuffledTokens(P), "shifted": Shifted(P)},
            {"headline": "neutral", "a": "random_lora", "b": "neutral"},
        ),
        (  # two prompts: the first is replaced
            "p",
            "q",
            {"neutral": Neutral(P), "shuffled_tokens": ShuffledTokens(P), "shifted": Shifted(P)},
            {},
            {"headline": "neutral", "a": "neutral"},
        ),
        (  # labels can only be shuffled where there are some
            "p",
            "few",
            {"neutral": Neutral(P), "shuffled_tokens": ShuffledTokens(P), "shifted": Shifted(P)},
            {"shuffled_labels": ShuffledLabels(FEW)},
            {"headline": "neutral", "a": "neutral"},
        ),
        (  # two LoRAs
            "l",
            "m",
            {"random_lora": RANDOM_L, "untrained": Untrained()},
            {},
            {"headline": "random_lora", "a": "random_lora"},
        ),
        (  # of a fine-tune there is no random one
            ["tuned"],
            "m",
            {"untrained": Untrained()},
            {"random_lora": RANDOM_M},
            {"headline": "random_lora", "b": "random_lora"},
        ),
        (  # against base; both parts are the side's own, and each control keeps the other
            ["p", "l"],
            "",
            {
                "neutral": Neutral(P) + L,
                "shuffled_tokens": ShuffledTokens(P) + L,
                "shifted": Shifted(P) + L,
                "random_lora": P + RANDOM_L,
                "untrained": P + Untrained(),
            },
            {},
            {"headline": "neutral", "a": "neutral"},
        ),
        (  # the same weights under two prompts, in the order in which they are written
            ["l", "p"],
            ["l", "q"],
            {
                "neutral": L + Neutral(P),
                "shuffled_tokens": L + ShuffledTokens(P),
                "shifted": L + Shifted(P),
            },
            {},
            {"headline": "neutral", "a": "neutral"},
        ),
        (  # untrained weights take the place of the shared ones too
            ["tuned"],
            ["tuned", "l"],
            {},
            {"random_lora": TUNED + RANDOM_L, "untrained": Untrained()},
            {"headline": "random_lora", "b": "random_lora"},
        ),
        (  # a logit bias that both have is a part like any other
            ["p", "bias"],
            ["p", "bias", "l"],
            {},
            {"random_lora": P + BIAS + RANDOM_L, "untrained": P + BIAS + Untrained()},
            {"headline": "random_lora", "b": "random_lora"},
        ),
        ("p", ["p", "push"], {}, {}, {}),  # nothing stands for a steering vector
    ],
)
def test_controls_replace_what_a_side_has_alone(
    a: str | list[str],
    b: str | list[str],
    in_a: dict[str, Condition],
    in_b: dict[str, Condition],
    tested: dict[str, str],
) -> None:
    """Their names, what they are, where they stand, and what is tested against which."""
    sides = [[side] if isinstance(side, str) and side else list(side) for side in (a, b)]
    controls, design = compared(*sides)
    first = "a", "b" if b else "base"
    fitted = {
        "logit_bias": FittedBias(
            like=parse_condition("x", [PARTS[x] for x in sides[1] or sides[0]], {})
        )
    }
    in_a = in_a | fitted
    assert controls == in_a | in_b
    assert design.headline == first
    nulls = {n: (n, first[1]) for n in in_a} | {n: (first[0], n) for n in in_b}
    assert design.nulls == nulls
    control = tested.pop("headline", None)
    assert design.null_pair == nulls.get(str(control))
    expected = {first: nulls[control]} if control else {}
    for side, own in tested.items():
        expected |= {(side, "base"): (own, "base"), (side, ""): (own, "")}
    assert design.controls == expected


def test_two_random_loras_of_a_side_are_different() -> None:
    controls, _ = compared(["l", "m"], [], seed=4)
    assert controls["random_lora"] == RandomLora(L, seed=4) + RandomLora(M, seed=5)


SIDES = st.lists(
    st.sampled_from(["p", "q", "few", "l", "m", "bias", "push"]), unique=True, max_size=3
)


@given(a=SIDES, b=SIDES)
def test_a_null_is_the_headline_but_for_one_side(a: list[str], b: list[str]) -> None:
    """What both sides share is in every control, and no pair is there twice, turned round."""
    assume(sorted(a) != sorted(b))
    controls, design = compared(a, b)
    assert design.headline == (("b", "base") if not a else ("a", "b" if b else "base"))
    shared = [parse_condition(x, PARTS[x], {}) for x in a if x in b]
    assert set(design.nulls) == set(controls)
    for name, pair in design.nulls.items():
        assert controls[name].role == "control"
        assert sum(x == y for x, y in zip(pair, design.headline, strict=True)) == 1
        assert name in pair
        if name == "untrained":
            assert set(simple_parts(controls[name])) >= {s for s in shared if s.role == "prompt"}
        elif name != "logit_bias":
            assert set(simple_parts(controls[name])) >= set(shared)
    assert len(design.pairs) == len({frozenset(pair) for pair in design.pairs})
    assert {design.headline, *design.nulls.values()} <= set(design.pairs)
    tested = {pair for pair in (*design.controls, *design.controls.values()) if pair[1]}
    assert tested <= set(design.pairs)


def test_two_of_a_family_are_no_floor_of_themselves() -> None:
    built = battery(3, 0)
    design = Design.of(built, {}, ("few_0", "few_1"))
    assert design.headline == ("few_0", "few_1")
    assert design.floors == (("few_2", "few_1"),)
    assert ("few_1", "few_0") not in design.pairs


def test_a_control_that_one_wrote_stands_for_what_it_is_like() -> None:
    """Not where it lacks what both sides share, nor where it has more than its side."""
    own: dict[str, Condition] = {
        "of_b": RandomLora(M) + P,
        "bare": RandomLora(M),
        "more": RandomLora(M) + P + Q,
        "both": Neutral(P) + RandomLora(L),
        "text": Neutral(P) + L,
    }
    built = {"base": Base(), "a": P + L, "b": P + M, **own}
    assert Design.of(built, {}, ("a", "b")).nulls == {"of_b": ("a", "of_b")}


def test_the_demonstration_is_what_it_was(tmp_path: Path) -> None:
    experiment = Experiment(**bundled_families(tmp_path))
    built = experiment.build()
    design = Design.of(built, experiment.families, experiment.compare)
    assert design.headline == ("instruction_0", "lora_0")
    assert design.null_pair == ("neutral", "lora_0")
    of_prompt = ["neutral", "shuffled_tokens", "shuffled_labels", "shifted", "logit_bias"]
    assert design.nulls == {name: (name, "lora_0") for name in of_prompt} | {
        name: ("instruction_0", name) for name in ("random_lora", "untrained")
    }
    assert built["shuffled_labels"] == ShuffledLabels(of=built["few_shot_0"])
    assert built["logit_bias"] == FittedBias(like=built["lora_0"])
    crossed = [("instruction_0", "lora_0"), ("instruction_0", "random_lora")]
    crossed += [("instruction_0", "untrained"), ("few_shot_0", "lora_0")]
    crossed += [("few_shot_0", "random_lora"), ("few_shot_0", "untrained")]
    crossed += [(name, "lora_0") for name in of_prompt]
    others = [name for name in built if name != "base"]
    assert list(design.pairs) == [*crossed, *design.floors, *((name, "base") for name in others)]
    assert len(design.floors) == 2 + 4 + 4
    prompts, loras = others[:8], others[8:13]
    assert set(design.certified) == {*design.pairs, *((p, w) for p in prompts for w in loras)}
    assert list(design.controls) == [
        ("instruction_0", "lora_0"),
        ("instruction_0", "base"),
        ("instruction_0", ""),
        ("lora_0", "base"),
        ("lora_0", ""),
    ]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("a", "nobody"), "compare: no condition 'nobody'; there are base, a, b"),
        (("neutral", "a"), "compare: no condition 'neutral'; there are base, a, b"),
        (("a", "a"), "compare: 'a' with itself; name two of base, a, b"),
    ],
)
def test_two_conditions_that_cannot_be_compared(pair: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(["p"], ["l"], compare=pair)
    assert str(caught.value) == message


def test_base_is_always_the_reference() -> None:
    assert headline_of({"base": Base(), "a": PROMPT}, ("base", "a")) == ("a", "base")
    assert headline_of({"base": Base(), "a": PROMPT}, ("a", "base")) == ("a", "base")


def test_without_a_prompt_and_an_adapter_two_conditions_are_the_headline() -> None:
    built: dict[str, Condition] = {"base": Base(), "a": P, "b": P + L, "text": Neutral(P)}
    assert headline_of(built) == ("a", "b")
    assert headline_of(built | {"c": P + M}) is None
    assert headline_of({"base": Base(), "a": P}) is None


def test_families_as_given_take_their_members_from_the_others() -> None:
    built = {"base": Base(), "a_0": PROMPT, "a_1": PROMPT, "a_2": PROMPT, "b": PROMPT, "c": LORA}
    assert families_of(built, {"kind": ["b", "a_0"]}) == {
        "kind": ("b", "a_0"),
        "a": ("a_1", "a_2"),
    }
    assert families_of(built, {"kind": ["b", "a_0", "a_1"]}) == {"kind": ("b", "a_0", "a_1")}


@pytest.mark.parametrize(
    ("given_families", "message"),
    [
        ({"x": ["nobody", "a"]}, "no condition 'nobody'"),
        ({"x": ["base", "a"]}, "no condition 'base'"),
        ({"x": ["a"]}, "x needs two"),
        ({"x": ["a", "b"], "y": ["b", "a"]}, "a is in two"),
    ],
)
def test_families_that_cannot_be(given_families: dict[str, list[str]], message: str) -> None:
    built = {"base": Base(), "a": PROMPT, "b": PROMPT}
    with pytest.raises(ConfigError, match=message):
        families_of(built, given_families)
