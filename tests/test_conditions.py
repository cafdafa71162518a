"""Conditions become exact token ids, positions, weights and biases for one tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tokenizer

from interp.conditions import (
    CONDITION_KINDS,
    Base,
    Composed,
    Condition,
    EmptySystem,
    FineTuned,
    FittedBias,
    Frame,
    LogitBias,
    Lora,
    Neutral,
    Prefix,
    Prompt,
    RandomLora,
    Setting,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    SoftPrompt,
    Steering,
    Untrained,
    Virtual,
    leading_specials,
    place,
    prefix_body,
    prefix_length,
    resolve,
    simple_parts,
    token_id,
    user,
)
from interp.config import from_yaml, parse_condition, write_condition
from interp.errors import ConditionError, ConfigError

TOKENIZERS = {convention: tokenizer(convention) for convention in ("gpt2", "llama")}
START = {"gpt2": (), "llama": (1,)}
PROMPT = Prompt(text="hot is the opposite of cold")
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
IN_CHAT = Frame(chat=True)
each_convention = pytest.mark.parametrize("convention", TOKENIZERS)
WORDS = st.lists(
    st.sampled_from(["the", "hot", "cold", "river", "hill", "road", "people", "small"]),
    min_size=1,
    max_size=8,
)


def encode(text: str, convention: str) -> tuple[int, ...]:
    return tuple(TOKENIZERS[convention](text, add_special_tokens=False)["input_ids"])


# What a prompt is -------------------------------------------------------------------------------


@each_convention
def test_base_is_the_tokenizer_s_own_start_alone(convention: str) -> None:
    assert resolve(Base(), TOKENIZERS[convention]) == Setting(prefix=START[convention])
    assert leading_specials(TOKENIZERS[convention]) == START[convention]


@each_convention
def test_a_prompt_is_what_the_tokenizer_makes_of_its_text(convention: str) -> None:
    words = TOKENIZERS[convention]
    assert resolve(PROMPT, words).prefix == tuple(words(f"{PROMPT.text}\n")["input_ids"])


def test_the_separator_stands_between_prompt_and_query() -> None:
    assert Prompt(text="a", separator=" |").as_text() == "a |"
    assert Prompt(text="").as_text() == "\n"


@each_convention
def test_few_shot_pairs_are_rendered_one_after_the_other(convention: str) -> None:
    shots = Prompt(pairs=(("hot", "cold"), ("up", "down")), template="{query} -> {answer};\n")
    text = "hot -> cold;\nup -> down;\n"
    assert shots.as_text() == text
    assert resolve(shots, TOKENIZERS[convention]).prefix == START[convention] + encode(
        text, convention
    )


@pytest.fixture
def chatting(request: pytest.FixtureRequest) -> Any:
    words = tokenizer(request.param)
    words.chat_template = CHAT
    return words


@pytest.mark.parametrize("chatting", ["gpt2", "llama"], indirect=True)
def test_chat_messages_go_through_the_template_and_bos_stands_once(chatting: Any) -> None:
    messages = ({"role": "user", "content": "be brief"}, {"role": "assistant", "content": "yes"})
    placed = place(Prompt(messages=messages), user("hot ->"), chatting, IN_CHAT)
    whole = "<s>user\nbe brief\nassistant\nyes\nuser\nhot ->\nassistant\n"
    ids = chatting(whole, add_special_tokens=False)["input_ids"]
    assert [*placed.prefix, *placed.ids] == ids
    assert resolve(Prompt(messages=messages), chatting, IN_CHAT).prefix == placed.prefix
    assert ids.count(chatting.bos_token_id) == 1


@pytest.mark.parametrize("chatting", ["gpt2"], indirect=True)
def test_messages_are_whole_turns_and_need_the_chat_frame(chatting: Any) -> None:
    """A query is a turn of its own: it does not continue the last message."""
    messages = ({"role": "user", "content": "go"}, {"role": "assistant", "content": "hot ->"})
    with pytest.raises(ConditionError, match="--chat"):
        resolve(Prompt(messages=messages), chatting)
    with pytest.raises(ConditionError, match="end with the user's turn"):
        Prompt(messages=messages[:1])


def test_chat_messages_without_a_template_are_refused() -> None:
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    with pytest.raises(ConditionError, match="chat template"):
        resolve(Prompt(messages=messages), TOKENIZERS["gpt2"], IN_CHAT)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": "a", "pairs": (("a", "b"),)},
        {"text": "", "messages": ({"role": "assistant", "content": "a"},)},
        {"text": "a", "system": ""},
    ],
)
def test_a_prompt_takes_exactly_one_form(fields: dict[str, Any]) -> None:
    with pytest.raises(ConditionError, match="exactly one"):
        Prompt(**fields)


# Controls ---------------------------------------------------------------------------------------


@each_convention
@given(words=WORDS)
def test_neutral_has_exactly_the_prompt_s_length(convention: str, words: list[str]) -> None:
    prompt = Prompt(text=" ".join(words))
    neutral = Neutral(like=prompt, text="the weather was mild that day.")
    got = resolve(neutral, TOKENIZERS[convention]).prefix
    like = resolve(prompt, TOKENIZERS[convention]).prefix
    assert len(got) == len(like)
    assert got[: len(START[convention])] == START[convention]
    assert got != like


def test_neutral_repeats_a_passage_that_is_too_short() -> None:
    neutral = Neutral(like=Prompt(text="hot " * 40), text="day.")
    body = prefix_body(neutral, TOKENIZERS["gpt2"])
    period = len(encode("day.", "gpt2"))
    assert body[period:] == body[:-period]


def test_neutral_of_words_the_tokenizer_does_not_know_is_refused() -> None:
    words = tokenizer("llama")
    words.unk_token = "▁day"  # as if this word were unknown
    with pytest.raises(ConditionError, match="does not know"):
        resolve(Neutral(like=PROMPT, text="that day"), words)


@each_convention
@given(words=WORDS, seed=st.integers(0, 5))
def test_shuffled_tokens_are_a_permutation_that_differs(
    convention: str, words: list[str], seed: int
) -> None:
    prompt = Prompt(text=" ".join(words))
    like = resolve(prompt, TOKENIZERS[convention]).prefix
    got = resolve(ShuffledTokens(of=prompt, seed=seed), TOKENIZERS[convention]).prefix
    assert Counter(got) == Counter(like)
    assert got[: len(START[convention])] == START[convention]
    body = like[len(START[convention]) :]
    assert (got != like) == (len(set(body)) > 1)


def test_shuffling_is_repeatable_and_depends_on_the_seed() -> None:
    orders = [
        resolve(ShuffledTokens(of=PROMPT, seed=seed), TOKENIZERS["gpt2"]).prefix
        for seed in (0, 0, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3


@each_convention
def test_shifted_has_the_prompt_s_positions_and_none_of_its_tokens(convention: str) -> None:
    setting = resolve(Shifted(by=PROMPT), TOKENIZERS[convention])
    prompted = resolve(PROMPT, TOKENIZERS[convention])
    assert setting.prefix == START[convention]
    assert len(setting.prefix) + setting.shift == len(prompted.prefix)


def test_shifted_by_a_composition_counts_all_of_its_prefix() -> None:
    both = PROMPT + Lora("folder") + Prompt(text="up is down")
    assert resolve(Shifted(by=both), TOKENIZERS["gpt2"]).shift == len(
        resolve(both, TOKENIZERS["gpt2"]).prefix
    )


def test_controls_of_what_has_no_tokens_are_empty() -> None:
    words = TOKENIZERS["llama"]
    for control in (Neutral(Lora("a")), ShuffledTokens(Base()), Shifted(FineTuned("m"))):
        assert resolve(control, words) == Setting(prefix=START["llama"])


# Logit bias -------------------------------------------------------------------------------------


@each_convention
def test_a_bias_is_on_the_token_s_id(convention: str) -> None:
    words = TOKENIZERS[convention]
    token = words.convert_ids_to_tokens([300])[0]
    setting = resolve(LogitBias({token: 2, "</s>": -1.5}, positions=(-1,)), words)
    assert setting.bias == ((300, 2.0, (-1,)), (2, -1.5, (-1,)))
    assert setting.prefix == START[convention]


def test_a_text_that_is_one_token_is_found_by_its_text() -> None:
    words = TOKENIZERS["gpt2"]
    assert token_id(" the", words) == words.convert_tokens_to_ids("Ġthe")


def test_a_text_of_several_tokens_shows_them() -> None:
    with pytest.raises(ConditionError, match="not one token") as caught:
        resolve(LogitBias({"hothot": 1.0}), TOKENIZERS["gpt2"])
    pieces = TOKENIZERS["gpt2"].convert_ids_to_tokens(list(encode("hothot", "gpt2")))
    assert len(pieces) > 1
    assert str(pieces) in str(caught.value)


def test_an_empty_text_is_no_token() -> None:
    with pytest.raises(ConditionError, match="not one token"):
        token_id("", TOKENIZERS["gpt2"])


# Virtual tokens, steering, and controls with weights --------------------------------------------


def virtual_folder(folder: Path, kind: str = "PROMPT_TUNING", tokens: int = 5) -> str:
    """What resolving reads of an adapter: its configuration."""
    folder.mkdir()
    config = {"peft_type": kind, "num_virtual_tokens": tokens}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def soft(tmp_path: Path) -> SoftPrompt:
    return SoftPrompt(virtual_folder(tmp_path / "soft"))


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    return Prefix(virtual_folder(tmp_path / "prefix", "PREFIX_TUNING", 7))


@each_convention
def test_virtual_tokens_stand_before_every_id(
    convention: str, soft: SoftPrompt, prefix: Prefix
) -> None:
    words = TOKENIZERS[convention]
    assert resolve(soft, words) == Setting(
        prefix=START[convention], virtual=Virtual(soft.adapter, 5, cached=False)
    )
    prompted = resolve(PROMPT, words)
    for composed in (PROMPT + prefix, prefix + PROMPT):
        setting = resolve(composed, words)
        assert setting.prefix == prompted.prefix
        assert setting.virtual == Virtual(prefix.adapter, 7, cached=True)
        assert setting.n_prefix == prompted.n_prefix + 7 == len(prompted.prefix) + 7
        assert setting.weights == Setting().weights


@each_convention
def test_controls_are_as_long_as_virtual_tokens(
    convention: str, soft: SoftPrompt, prefix: Prefix
) -> None:
    words = TOKENIZERS[convention]
    for like in (soft, prefix, PROMPT + soft, soft + Lora("a")):
        setting = resolve(like, words)
        neutral, shifted = resolve(Neutral(like), words), resolve(Shifted(like), words)
        assert neutral.virtual is shifted.virtual is None
        assert neutral.n_prefix == setting.n_prefix
        assert shifted.n_prefix + shifted.shift == setting.n_prefix
        assert prefix_length(like, words) == setting.n_prefix - len(START[convention])


def test_virtual_tokens_cannot_be_shuffled(soft: SoftPrompt, prefix: Prefix) -> None:
    for virtual in (soft, prefix, PROMPT + soft):
        with pytest.raises(ConditionError, match=r"no tokens to shuffle: .* is virtual"):
            resolve(ShuffledTokens(virtual), TOKENIZERS["gpt2"])


def test_only_one_has_virtual_tokens_at_a_time(soft: SoftPrompt, prefix: Prefix) -> None:
    for two in (soft + prefix, soft + soft):
        with pytest.raises(ConditionError, match="only one soft prompt or prefix at a time"):
            resolve(two, TOKENIZERS["gpt2"])


def test_p_tuning_is_a_soft_prompt_as_well(tmp_path: Path) -> None:
    folder = virtual_folder(tmp_path / "p", "P_TUNING")
    assert resolve(SoftPrompt(folder), TOKENIZERS["gpt2"]).n_prefix == 5


def test_steering_touches_no_weights_and_no_tokens() -> None:
    both = Steering("a.safetensors", 1) + Steering("b.safetensors", 0, scale=-2)
    setting = resolve(both, TOKENIZERS["llama"])
    assert setting.steering == (("a.safetensors", 1, 1.0), ("b.safetensors", 0, -2))
    assert setting.prefix == START["llama"]
    assert setting.weights == Setting().weights


def test_controls_with_weights_are_states_of_their_own() -> None:
    lora = Lora("folder", scale=0.5)
    settings = [
        resolve(condition, TOKENIZERS["gpt2"])
        for condition in (Base(), lora, RandomLora(lora), RandomLora(lora, seed=1), Untrained(),
                          Untrained(1), RandomLora(lora, scale=2))
    ]  # fmt: skip
    assert len({setting.weights for setting in settings}) == len(settings)
    assert [setting.adapters[0][1] for setting in settings if setting.adapters] == [
        0.5, 0.5, 0.5, 1.0
    ]  # fmt: skip


def test_every_kind_is_read_from_yaml(tmp_path: Path) -> None:
    for name in ("s", "p"):
        (tmp_path / name).mkdir()
    (tmp_path / "v.safetensors").touch()
    (tmp_path / "e.yaml").write_text(
        """
        conditions:
          few: {prompt: {pairs: [[hot, cold], [up, down]]}}
          lora: {lora: {adapter: elsewhere}}
          soft: {soft_prompt: {adapter: s}}
          prefixed: [{prefix: {adapter: p}}, {lora: {adapter: elsewhere}}]
          steered: {steering: {vector: v.safetensors, layer: 3, scale: -1}}
          shuffled_labels: {shuffled_labels: {of: few}}
          random: {random_lora: {like: lora, seed: 2, scale: 0.5}}
          untrained: {untrained: {}}
        """
    )
    known: dict[str, Condition] = {}
    for name, spec in from_yaml(tmp_path / "e.yaml")["conditions"].items():
        known[name] = parse_condition(name, spec, known)
    lora, few = Lora("elsewhere"), Prompt(pairs=(("hot", "cold"), ("up", "down")))
    assert known == {
        "few": few,
        "lora": lora,
        "soft": SoftPrompt(str(tmp_path / "s")),
        "prefixed": Prefix(str(tmp_path / "p")) + lora,
        "steered": Steering(str(tmp_path / "v.safetensors"), 3, scale=-1),
        "shuffled_labels": ShuffledLabels(few),
        "random": RandomLora(lora, seed=2, scale=0.5),
        "untrained": Untrained(),
    }


LORA = Lora("adapter")
EVERY_KIND: dict[str, Condition] = {
    "base": Base(),
    "prompt": Prompt(text=""),
    "system": Prompt(system="x"),
    "messages": Prompt(messages=({"role": "assistant", "content": "x"},)),
    "few": Prompt(pairs=(("hot", "cold"),), template="{query}{answer}"),
    "lora": LORA,
    "soft": SoftPrompt("soft"),
    "prefix": Prefix("prefix"),
    "tuned": FineTuned("tuned"),
    "steered": Steering("v.safetensors", 2, 0.0),
    "biased": LogitBias({"a": 1.0}, (0, -1)),
    "fitted": FittedBias(like=LORA),
    "neutral": Neutral(like=Prompt(text="")),
    "empty": EmptySystem(),
    "tokens": ShuffledTokens(of=Prompt(text=""), seed=3),
    "labels": ShuffledLabels(of=Prompt(pairs=(("hot", "cold"),), template="{query}{answer}")),
    "shifted": Shifted(by=Prompt(text="")),
    "random": RandomLora(like=LORA, seed=2, scale=0.5),
    "untrained": Untrained(seed=5),
    "all": Prompt(text="a") + Lora("adapter", 0.0) + Steering("v", 0),
}


def test_every_condition_is_written_as_it_is_read() -> None:
    assert {type(one) for one in EVERY_KIND.values()} >= set(CONDITION_KINDS.values())
    known: dict[str, Condition] = {}
    for name, condition in EVERY_KIND.items():
        spec = write_condition(name, condition, EVERY_KIND)
        known[name] = parse_condition(name, spec, known)
        assert known[name] == condition


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"shuffled_labels": {"of": "text"}}, "need a few-shot prompt"),
        ({"shuffled_labels": {"of": "lora"}}, "of"),
        ({"random_lora": {"like": "text"}}, "like"),
        ({"random_lora": {"like": "nobody"}}, "names no condition above it"),
        ({"steering": {"vector": "v"}}, "layer"),
        ({"steering": {"vector": "v", "layer": "last"}}, "layer"),
        ({"soft_prompt": {}}, "adapter"),
        ({"prefix": {"adapter": "a", "scale": 2}}, "scale"),
    ],
)
def test_a_wrong_description_is_one_line(spec: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match="condition it: ") as caught:
        parse_condition("it", spec, {"text": PROMPT, "lora": Lora("a")})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (SoftPrompt("d/soft"), "soft prompt soft"),
        (Prefix("d/tuned"), "prefix tuned"),
        (Steering("d/truth.safetensors", 3), "steering by truth after layer 3"),
        (Steering("truth.safetensors", 0, -2), "steering by truth after layer 0, scale -2"),
        (ShuffledLabels(Prompt(pairs=(("hot", "cold"),))),
         "the answers in random order of: 1 demonstrations, the first: “hot cold”"),
        (RandomLora(Lora("d/a")), "a random LoRA of the size of: LoRA a"),
        (RandomLora(Lora("d/a"), scale=0.5), "a random LoRA of the size of: LoRA a, scale 0.5"),
        (Untrained(), "the same architecture, untrained"),
    ],
)  # fmt: skip
def test_how_a_condition_is_described(condition: Condition, expected: str) -> None:
    assert condition.describe() == expected


# Composition ------------------------------------------------------------------------------------


@each_convention
def test_composition_adds_everything_up_and_keeps_the_order(convention: str) -> None:
    words = TOKENIZERS[convention]
    other = Prompt(text="big is small")
    all_of_it = PROMPT + Lora("a") + other + Lora("b", scale=0.5) + FineTuned("m")
    setting = resolve(all_of_it + LogitBias({"</s>": 1.0}) + Shifted(by=other), words)
    text = PROMPT.as_text() + other.as_text()  # tokenised as one
    assert setting.prefix == START[convention] + encode(text, convention)
    assert setting.adapters == (("a", 1.0), ("b", 0.5))
    assert setting.model == "m"
    assert setting.shift == len(encode(other.as_text(), convention))
    assert setting.bias == ((2, 1.0, None),)
    assert setting.weights == ("m", setting.adapters)


def test_composition_is_flat_and_associative() -> None:
    a, b, c = PROMPT, Lora("a"), Base()
    assert (a + b) + c == a + (b + c) == Composed((a, b, c))
    assert simple_parts(a + b + c) == (a, b, c)
    assert simple_parts(a) == (a,)


@given(st.permutations([PROMPT, Lora("a"), Base()]))
def test_base_is_neutral_in_a_composition(order: list[Condition]) -> None:
    composed = order[0] + order[1] + order[2]
    assert resolve(composed, TOKENIZERS["gpt2"]) == resolve(PROMPT + Lora("a"), TOKENIZERS["gpt2"])


def test_two_sets_of_weights_are_refused_by_name() -> None:
    with pytest.raises(ConditionError, match="one and two"):
        resolve(FineTuned("one") + FineTuned("two"), TOKENIZERS["gpt2"])


def test_what_is_no_condition_is_refused() -> None:
    with pytest.raises(ConditionError, match="not a condition"):
        resolve(Condition(), TOKENIZERS["gpt2"])


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Base(), "base"),
        (PROMPT, "prompt"),
        (Lora("a"), "weights"),
        (FineTuned("m"), "weights"),
        (Neutral(PROMPT), "control"),
        (ShuffledTokens(PROMPT), "control"),
        (Shifted(PROMPT), "control"),
        (LogitBias({"a": 1.0}), "control"),
        (ShuffledLabels(Prompt(pairs=(("a", "b"),))), "control"),
        (RandomLora(Lora("a")), "control"),
        (Untrained(), "control"),
        (SoftPrompt("a"), "prompt"),
        (Prefix("a"), "prompt"),
        (Steering("a", 0), "steering"),
        (PROMPT + Lora("a"), "composed"),
        (PROMPT + RandomLora(Lora("a")), "control"),
        (Neutral(PROMPT) + Lora("a"), "control"),
        (PROMPT + LogitBias({"a": 1.0}), "composed"),
    ],
)
def test_how_a_reader_groups_conditions(condition: Condition, expected: str) -> None:
    assert condition.role == expected


def test_conditions_are_values() -> None:
    assert LogitBias({"a": 1.0}) == LogitBias({"a": 1.0})
    assert hash(LogitBias({"a": 1.0})) == hash(LogitBias({"a": 1.0}))
    assert {Lora("a"), Lora("a"), Lora("a", 0.5)} == {Lora("a"), Lora("a", 0.5)}
