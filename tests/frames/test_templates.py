"""A chat's token ids are those that transformers writes for the conversation, or it is refused.

The reference of every sequence is `apply_chat_template` of messages written out by hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
from frames.styles import STYLES, Messages, assistant, reference, system, tokenizer_of, user
from hypothesis import example, given
from hypothesis import strategies as st

from interp.conditions import (
    Base,
    Condition,
    EmptySystem,
    Frame,
    Neutral,
    Prompt,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    SoftPrompt,
    place,
    resolve,
)
from interp.errors import ConditionError, QueryError
from interp.queries import Encoded, Query, check_alignment, encode

SYSTEM = "people walked along the road."
TEXT = "up is the opposite of"
SHOTS = (("hot is", "cold"), ("the road", "a"))
QUERIES = ("the hill is high", "river", "up is\nthe opposite: of small?", "tom said", "Hej 5 åå 日")
TALK = [user("tom said: no?"), assistant("the weather was mild"), user("lily said")]

CONDITIONS: dict[str, Condition] = {
    "base": Base(),
    "system": Prompt(system=SYSTEM),
    "text": Prompt(text=TEXT),
    "pairs": Prompt(pairs=SHOTS),
    "messages": Prompt(messages=(user("a hill"), assistant("is high"))),
    "whole": Prompt(messages=(system(SYSTEM), user("a hill"), assistant("is high"))),
    "composed": Prompt(text=TEXT) + Prompt(pairs=SHOTS) + Prompt(system=SYSTEM),
}
TURNS = [user("hot is"), assistant("cold"), user("the road"), assistant("a")]


def written(name: str, query: Messages) -> Messages:
    """The conversation of a condition, by hand."""
    behind = [user(f"{TEXT}\n{query[0]['content']}"), *query[1:]]
    return {
        "base": query,
        "system": [system(SYSTEM), *query],
        "text": behind,
        "pairs": [*TURNS, *query],
        "messages": [user("a hill"), assistant("is high"), *query],
        "whole": [system(SYSTEM), user("a hill"), assistant("is high"), *query],
        "composed": [system(SYSTEM), *TURNS, *behind],
    }[name]


SPEAKING = ("system", "whole", "composed")
"""Conditions with a system message."""
MERGED = ("system", "text", "whole", "composed")
"""Conditions that put words right before the query's where the template merges the two."""
REFUSED = {
    **{("gemma_strict", name): "no system role here" for name in SPEAKING},
    **{("dropping", name): "leaves out" for name in SPEAKING},
    **{("mistral_spaced", name): "merge" for name in MERGED},
}


def queries_of(style: str) -> tuple[str, ...]:
    """Where a space before the query is the template's, the first token must take it in."""
    return QUERIES[:1] + QUERIES[2:3] if style == "mistral_spaced" else QUERIES


def framed(style: str) -> Frame:
    return Frame(chat=True, template_options=STYLES[style].options)


def aligned(style: str, name: str, texts: tuple[str, ...]) -> tuple[list[Encoded], tuple[int, ...]]:
    """Queries and the prefix of a condition, as a study makes them."""
    words, frame = tokenizer_of(style), framed(style)
    queries = encode([Query(text) for text in texts], words, frame=frame)
    prefix = resolve(CONDITIONS[name], words, frame, queries[0].turns).prefix
    check_alignment(queries, CONDITIONS[name], words, name, frame, prefix)
    return queries, prefix


# The tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("style", STYLES)
def test_every_sequence_is_what_transformers_writes(style: str, name: str) -> None:
    words, options = tokenizer_of(style), STYLES[style].options
    if (style, name) in REFUSED:
        with pytest.raises((ConditionError, QueryError), match=REFUSED[style, name]) as caught:
            aligned(style, name, queries_of(style))
        assert "\n" not in str(caught.value)
        return
    queries, prefix = aligned(style, name, queries_of(style))
    for query, text in zip(queries, queries_of(style), strict=True):
        expected = reference(words, written(name, [user(text)]), **options)
        assert [*prefix, *query.ids] == expected


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("style", STYLES)
def test_a_conversation_is_what_transformers_writes(style: str, name: str) -> None:
    if (style, name) in REFUSED or (style == "mistral" and name in SPEAKING):
        return  # system words stand before the last message: in the middle of a conversation
    words, frame = tokenizer_of(style), framed(style)
    queries = encode([Query("lily said", messages=tuple(TALK))], words, frame=frame)
    check_alignment(queries, CONDITIONS[name], words, name, frame)
    placed = place(CONDITIONS[name], TALK, words, frame)
    expected = reference(words, written(name, TALK), **STYLES[style].options)
    assert [*placed.prefix, *placed.ids] == expected
    assert placed.ids == queries[0].ids
    assert "tom" in words.decode(placed.ids)


def test_system_words_in_the_middle_of_a_conversation_are_refused() -> None:
    words, frame = tokenizer_of("mistral"), framed("mistral")
    queries = encode([Query("lily said", messages=tuple(TALK))], words, frame=frame)
    for name in SPEAKING:
        with pytest.raises((ConditionError, QueryError)) as caught:
            check_alignment(queries, CONDITIONS[name], words, name, frame)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_aligned_is_refused_with_its_tokens() -> None:
    with pytest.raises(QueryError) as caught:
        aligned("mistral_spaced", "system", ("hot is",))
    shown = str(caught.value)
    assert "'\\n', '\\n', '▁hot', '▁is', '▁', '[/INST]'] became" in shown
    assert "'\\n', '\\n', 'h', 'ot', '▁is', '▁', '[/INST]']" in shown


def test_options_are_the_templates_variables() -> None:
    on, off = (place(Base(), [user("a")], tokenizer_of(s), framed(s)).ids for s in THINKING)
    assert tokenizer_of("thinking").decode(off[len(on) :]) == "<think>\n\n</think>\n\n"
    assert off[: len(on)] == on
    dates = [place(Base(), [user("a")], tokenizer_of(s), framed(s)).prefix for s in LLAMA3]
    assert "1 Dec 2024" in tokenizer_of("llama3").decode(dates[1])
    assert "1 Dec 2024" not in tokenizer_of("llama3").decode(dates[0])


THINKING = ("thinking", "not_thinking")
LLAMA3 = ("llama3", "llama3_dated")


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(ConditionError, match="no chat template"):
        place(Base(), [user("a")], tiny_models.tokenizer("gpt2"), Frame(chat=True))


def test_two_system_messages_are_refused() -> None:
    both = CONDITIONS["system"] + CONDITIONS["whole"]
    with pytest.raises(ConditionError, match="two system messages"):
        place(both, [user("a")], tokenizer_of("chatml"), framed("chatml"))


@pytest.mark.parametrize("content", ["s", "user", "im", "system", "a"])
def test_words_of_the_template_itself_do_not_hide_that_a_message_is_dropped(content: str) -> None:
    with pytest.raises(ConditionError, match="leaves out"):
        place(Prompt(system=content), [user("no")], tokenizer_of("dropping"), framed("dropping"))


def test_a_thought_that_the_template_takes_out_is_refused() -> None:
    said = Prompt(messages=(user("a"), assistant("<think>\nhill\n</think>\n\nis")))
    with pytest.raises(ConditionError, match="leaves out or alters"):
        place(said, [user("no")], tokenizer_of("thinking"), framed("thinking"))


def test_words_of_a_template_that_merge_with_the_query_are_refused() -> None:
    """`:` and a line break may become one token, and so may `:` and `?`."""
    words, frame = tokenizer_of("plain"), framed("plain")
    assert words.tokenize(":.") == [":."]
    placed = place(Base(), [user("the hill")], words, frame)
    assert [*placed.prefix, *placed.ids] == reference(words, [user("the hill")])
    with pytest.raises(ConditionError, match="merge with the query") as caught:
        place(Base(), [user(". hill")], words, frame)
    assert "':.'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spaces_that_a_special_token_takes_in_are_not_the_querys() -> None:
    words, frame = tokenizer_of("phi"), framed("phi")
    for text in ("the hill", "  the hill", "\nthe hill"):
        placed = place(Base(), [user(text)], words, frame)
        assert [*placed.prefix, *placed.ids] == reference(words, [user(text)])
        assert exactly(words, placed.ids[: placed.n_text]) == "the hill"


# Segments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_segments_are_the_text_and_what_the_template_writes_after_it(style: str) -> None:
    words = tokenizer_of(style)
    texts = queries_of(style)[: 4 if STYLES[style].words == "llama" else None]
    queries = encode([Query(text) for text in texts], words, frame=framed(style))
    for query, text in zip(queries, texts, strict=True):
        count = query.n_text
        spaced = " " * (style == "mistral_spaced")
        assert exactly(words, query.ids[:count]) == spaced + text
        assert exactly(words, query.ids[count:]) == swallowed(style, STYLES[style].ends)
        last = len(query.ids) - 1
        parts = query.segments
        assert [*parts["query"], *parts["template"], *parts["answer"]] == [*range(last + 1)]
        assert parts["query"] == range(min(count, last))
        assert parts["answer"] == range(last, last + 1)


def exactly(words: object, ids: tuple[int, ...]) -> str:
    """What tokens say, character by character: behind another, which keeps a space before them."""
    behind = words.convert_tokens_to_ids("</s>")
    return words.decode([behind, *ids]).removeprefix("</s>")


def swallowed(style: str, text: str) -> str:
    """Without the line breaks that special tokens take in."""
    return text.replace("\n", "") if STYLES[style].swallows else text


@pytest.mark.parametrize(
    ("style", "text", "query", "template"),
    [
        ("chatml", "hot is", "h ot Ġis", "<|im_end|> Ċ <|im_start|> as s is t a n t Ċ"),
        (
            "llama3",
            "the hill",
            "the Ġhill",
            "<|eot_id|> <|start_header_id|> as s is t a n t <|end_header_id|> ĊĊ",
        ),
        ("gemma", "peo a", "peo ▁a", "<end_of_turn> \n <start_of_turn> m o d e l \n"),
        ("mistral", "the hill.", "the Ġhill .", "[/INST]"),
        ("mistral_spaced", "hot is", "▁hot ▁is", "▁ [/INST]"),
        ("phi", "the hill", "the Ġhill", "<|end|> <|assistant|>"),
    ],
)
def test_segments_token_by_token(style: str, text: str, query: str, template: str) -> None:
    words = tokenizer_of(style)
    [found] = encode([Query(text)], words, frame=framed(style))
    tokens = words.convert_ids_to_tokens(list(found.ids))
    assert tokens[: found.n_text] == query.split(" ")
    assert tokens[found.n_text :] == template.split(" ")


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_follows_as_it_would_be_written(style: str) -> None:
    words, options = tokenizer_of(style), STYLES[style].options
    [query] = encode([Query("the hill", "is high")], words, frame=framed(style))
    rendered = words.apply_chat_template(
        [user("the hill")], add_generation_prompt=True, tokenize=False, **options
    )
    whole = words(rendered + "is high", add_special_tokens=False)["input_ids"]
    prefix = place(Base(), [user("the hill")], words, framed(style)).prefix
    assert [*prefix, *query.ids, *query.answer_ids] == whole
    assert exactly(words, query.answer_ids) == "is high"
    assert [*prefix, *query.forced] == whole[:-1]
    last, count = len(query.ids) - 1, len(query.answer_ids)
    assert count >= 2
    assert query.segments["answer"] == range(last, last + count)
    assert len(query.forced) == last + count


# Controls ----------------------------------------------------------------------------------------

CONTROLLED = ("system", "text", "pairs", "messages", "whole", "composed")
SHOT_WORDS = [turn["content"] for turn in TURNS]
CONTENTS = {
    "system": [SYSTEM],
    "text": [f"{TEXT}\n"],
    "pairs": SHOT_WORDS,
    "messages": ["a hill", "is high"],
    "whole": [SYSTEM, "a hill", "is high"],
    "composed": [SYSTEM, *SHOT_WORDS, f"{TEXT}\n"],
}
CHATML_HEADS = ("<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n")
LLAMA3_HEADS = ("user<|end_header_id|>\n\n", "assistant<|end_header_id|>\n\n")
GEMMA_HEADS = ("<start_of_turn>user\n", "<start_of_turn>model\n", "\n\n")
HEADS = {
    **dict.fromkeys(STYLES, CHATML_HEADS),
    **dict.fromkeys(("llama3", "llama3_dated"), LLAMA3_HEADS),
    **dict.fromkeys(("gemma", "gemma_lines", "gemma_strict"), GEMMA_HEADS),
    **dict.fromkeys(("mistral", "mistral_spaced"), ("[INST]", "[/INST]", "\n\n")),
    "phi": ("<|system|>\n", "<|user|>\n", "<|assistant|>\n"),
    "plain": ("system:", "user:", "assistant:"),
}
"""What a template writes before a message's own words."""


def places_of(style: str, messages: Messages, contents: list[str]) -> list[list[int]]:
    """For every content (in the order of the text) the places of the tokens that say its words and
    nothing of the template's. It is looked for behind what opens its message."""
    words = tokenizer_of(style)
    rendered = words.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **STYLES[style].options
    )
    offsets = words(rendered, add_special_tokens=False, return_offsets_mapping=True)
    found, place_ = [], 0
    for content in contents:
        opened = [rendered.find(h, place_) + len(h) for h in HEADS[style] if h in rendered[place_:]]
        start = rendered.find(content, 0 if content == SYSTEM else min(opened))
        place_ = start + len(content)
        assert start >= 0
        found.append([
            i
            for i, (begin, end) in enumerate(offsets["offset_mapping"])
            if end > start and begin < place_ and end <= place_
        ])  # fmt: skip
    return found


def own_places(style: str, name: str) -> list[int]:
    """The same for a condition, in the order of the condition: Mistral writes system words last."""
    contents = CONTENTS[name]
    if style == "mistral" and contents[0] == SYSTEM:
        inner = contents[1:-1] if name == "composed" else contents[1:]
        late = [*inner, SYSTEM, *contents[1 + len(inner) :]]
        places = places_of(style, written(name, [user("QQ")]), late)
        places.insert(0, places.pop(len(inner)))
    else:
        places = places_of(style, written(name, [user("QQ")]), contents)
    return [i for some in places for i in some]


@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.parametrize("style", STYLES)
def test_controls_change_the_words_of_their_prompt_and_nothing_else(style: str, name: str) -> None:
    if (style, name) in REFUSED:
        return
    words, frame, prompt = tokenizer_of(style), framed(style), CONDITIONS[name]
    own = place(prompt, [user("QQ")], words, frame)
    places = own_places(style, name)
    passage = words("a hill is high;", add_special_tokens=False)["input_ids"]
    neutral = place(Neutral(like=prompt, text="a hill is high;"), [user("QQ")], words, frame)
    assert neutral.ids == own.ids
    expected = list(own.prefix)
    for i, token in zip(places, passage * len(own.prefix), strict=False):
        expected[i] = token
    assert list(neutral.prefix) == expected
    shuffled = place(ShuffledTokens(of=prompt, seed=3), [user("QQ")], words, frame)
    assert shuffled.ids == own.ids
    kept = [i for i in range(len(own.prefix)) if i not in places]
    assert [shuffled.prefix[i] for i in kept] == [own.prefix[i] for i in kept]
    assert sorted(shuffled.prefix) == sorted(own.prefix)
    assert shuffled.prefix != own.prefix
    base = place(Base(), [user("QQ")], words, frame)
    shifted = resolve(Shifted(by=prompt), words, frame)
    assert shifted.prefix == base.prefix
    assert shifted.shift == len(own.prefix) - len(base.prefix)


@pytest.mark.parametrize("style", ["chatml", "llama3", "gemma", "mistral", "phi", "plain"])
@pytest.mark.parametrize("answer", ["a", "s", "I", "us", "er", "m", "S"])
def test_a_word_that_the_template_writes_too_is_not_taken_for_it(style: str, answer: str) -> None:
    words, frame = tokenizer_of(style), framed(style)
    prompt = Prompt(pairs=(("er", answer), ("s", "tom")))
    own = place(prompt, [user("QQ")], words, frame).prefix
    messages = [user("er"), assistant(answer), user("s"), assistant("tom"), user("QQ")]
    assert list(own) == reference(words, messages, **STYLES[style].options)[: len(own)]
    expected, [filler] = list(own), words("ill", add_special_tokens=False)["input_ids"][-1:]
    text = words.decode([filler]).strip()
    for some in places_of(style, messages, ["er", answer, "s", "tom"]):
        assert some
        for i in some:
            expected[i] = filler
    found = place(Neutral(like=prompt, text=text), [user("QQ")], words, frame).prefix
    assert set(found) - set(own) <= {filler, *words(text, add_special_tokens=False)["input_ids"]}
    assert [a == b for a, b in zip(found, own, strict=True)] == [
        a == b for a, b in zip(expected, own, strict=True)
    ]


def test_shuffled_labels_are_other_turns() -> None:
    words, frame = tokenizer_of("chatml"), framed("chatml")
    control = ShuffledLabels(of=Prompt(pairs=SHOTS), seed=1)
    placed = place(control, [user("tom")], words, frame)
    messages = [user("hot is"), assistant("a"), user("the road"), assistant("cold"), user("tom")]
    assert [*placed.prefix, *placed.ids] == reference(words, messages)


def test_an_empty_system_message_takes_the_place_of_the_templates_own() -> None:
    words, frame = tokenizer_of("default"), framed("default")
    placed = place(EmptySystem(), [user("tom")], words, frame)
    expected = reference(words, [system(""), user("tom")])
    assert [*placed.prefix, *placed.ids] == expected
    assert "hill" in words.decode(place(Base(), [user("tom")], words, frame).prefix)
    assert "hill" not in words.decode(placed.prefix)


@pytest.mark.parametrize("style", STYLES)
def test_a_default_system_message_is_found(style: str) -> None:
    assert framed(style).writes_default(tokenizer_of(style)) == (style == "default")


def test_a_message_without_content_is_refused_where_the_template_does() -> None:
    with pytest.raises(ConditionError, match="a message without content") as caught:
        place(EmptySystem(), [user("tom")], tokenizer_of("raising"), framed("raising"))
    assert "\n" not in str(caught.value)


# Virtual tokens ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> SoftPrompt:
    folder = tmp_path_factory.mktemp("soft")
    model = tiny_models.save_model("gpt2", folder / "gpt2")
    return SoftPrompt(tiny_models.save_soft_prompt(model, Path(folder / "soft"), tokens=5))


@pytest.mark.parametrize("style", ["chatml", "default", "llama3", "gemma_strict", "mistral"])
def test_a_soft_prompt_stands_before_the_frame(style: str, soft: SoftPrompt) -> None:
    words, frame, query = tokenizer_of(style), framed(style), [user("tom")]
    alone = resolve(soft, words, frame)
    base = resolve(Base(), words, frame)
    assert alone.prefix == base.prefix
    assert alone.n_prefix == len(base.prefix) + 5
    both = resolve(soft + CONDITIONS["pairs"], words, frame)
    assert [*both.prefix, *place(Base(), query, words, frame).ids] == reference(
        words, [*TURNS, *query], **STYLES[style].options
    )
    assert resolve(Shifted(by=soft), words, frame).shift == 5
    neutral = resolve(Neutral(like=soft, text="a hill is high;"), words, frame).prefix
    passage = (words("a hill is high;", add_special_tokens=False)["input_ids"] * 5)[:5]
    if style == "gemma_strict":  # there is no other place for it than the user's message
        assert list(neutral) == [*base.prefix, *passage]
    else:
        wanted = [system("\0"), *query]
        rendered = reference(words, wanted, **STYLES[style].options)
        zero = words("\0", add_special_tokens=False)["input_ids"]
        start = next(i for i in range(len(rendered)) if rendered[i : i + len(zero)] == zero)
        assert list(neutral[start : start + 5]) == passage
        assert list(neutral[:start]) == rendered[:start]
        rest = rendered[start + len(zero) :]
        assert list(neutral[start + 5 :]) == rest[: len(neutral) - start - 5]
    with pytest.raises(ConditionError, match="virtual"):
        place(ShuffledTokens(of=soft), query, words, frame)


# Any text ----------------------------------------------------------------------------------------

PIECES = st.sampled_from([
    "the hill", " ", "  ", "\n", "\n\n", "\t", ".", ":", "?", "é", "e\u0301", "日本", "🙂",
    "\u200b", "\r\n", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "[/INST]", "<think>", "</think>",
    "<|user|>", "<|end|>", "</s>", "<unk>", "<0x41>", "user", "assistant", "▁", "Ġ", "{{ x }}",
    "{% if %}", "INTERP0WORDS",
])  # fmt: skip
TEXTS = st.one_of(
    st.lists(PIECES, min_size=1, max_size=6).map("".join),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
).filter(str.strip)


@pytest.mark.parametrize("style", STYLES)
@given(text=TEXTS, name=st.sampled_from(list(CONDITIONS)))
@example(text="  the hill", name="text")
@example(text="the hill\n", name="base")
@example(text="\nthe hill", name="system")
@example(text="🙂", name="pairs")
@example(text=":the", name="base")
@example(text="\u0301e", name="text")
def test_any_text_is_what_transformers_writes_or_is_refused(
    style: str, text: str, name: str
) -> None:
    words, options = tokenizer_of(style), STYLES[style].options
    queries, prefix, refusal = [], (), ""
    try:
        queries, prefix = aligned(style, name, ("the hill", text))
    except (ConditionError, QueryError) as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 1000
    for query, own in zip(queries, ("the hill", text), strict=not refusal):
        assert [*prefix, *query.ids] == reference(words, written(name, [user(own)]), **options)
        assert 0 < query.n_text <= len(query.ids)


WORDS = st.lists(st.sampled_from(["the", "hill", "é", "日本", "🙂", "Hi", "42"]), min_size=1)


@pytest.mark.parametrize("style", STYLES)
@given(text=WORDS.map(" ".join), name=st.sampled_from(list(CONDITIONS)))
def test_ordinary_words_are_never_refused(style: str, text: str, name: str) -> None:
    if (style, name) in REFUSED or (style == "mistral_spaced" and text[:2] not in ("th", "hi")):
        return
    queries, prefix = aligned(style, name, ("the hill", text))
    expected = reference(tokenizer_of(style), written(name, [user(text)]), **STYLES[style].options)
    assert [*prefix, *queries[1].ids] == expected
