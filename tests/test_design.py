"""What is compared with what, by hand for small experiments and by law for all."""

from __future__ import annotations

import pytest
from hypothesis import given
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
    Untrained,
    kind,
)
from interp.design import Design, families_of, reweighted
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
    for a, b in design.pairs:
        if b != "base" and (a, b) not in design.floors:
            assert reweighted(built[b])
            assert not reweighted(built[a])
            assert "control" not in (kind(built[a]), kind(built[b])) or (
                kind(built[a]) != kind(built[b])
            )
    assert (design.headline is None) == (prompts == 0 or loras == 0)


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
