"""Raw text as tokens: a sequence is tokenised as written, begins once, and is cut in one place.

Three conventions: byte-level (GPT-2), byte-level with a BOS (Llama 3), and words that begin with a
space sign, with a BOS (Llama 2). What is written is asked of the tokenizer itself, whole.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_models import tokenizer
from tokenizers import processors

from interp.conditions import (
    Base,
    Condition,
    LogitBias,
    Neutral,
    Prompt,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    place,
    resolve,
    user,
)
from interp.errors import ConditionError, QueryError
from interp.queries import Encoded, Query, check_alignment, encode

BOS = "<s>"
RENDERS = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


def with_bos() -> Any:
    """Byte-level, every text begun by a BOS."""
    words = tokenizer("gpt2")
    start = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, words.bos_token_id)])
    words.backend_tokenizer.post_processor = start
    return words


WORDS = {"gpt2": tokenizer("gpt2"), "llama3": with_bos(), "llama2": tokenizer("llama")}
for words in WORDS.values():
    words.chat_template = RENDERS
SEPARATOR = {"gpt2": "\n", "llama3": "\n", "llama2": " "}
START = {"gpt2": [], "llama3": [1], "llama2": [1]}
each = pytest.mark.parametrize("convention", WORDS)
begun = pytest.mark.parametrize("convention", ["llama3", "llama2"])
PIECES = ["the", "e", " hill", "\n", "th", " the", ".", "hot", " ", "  ", "5", "é", "</s>"]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)


def ids_of(text: str, convention: str) -> list[int]:
    """A text whole, with what the tokenizer itself puts before it."""
    return list(WORDS[convention](text)["input_ids"])


def sequence(condition: Condition, text: str, convention: str) -> list[int]:
    """What a query's model reads under a condition, refused where the library refuses it."""
    words = WORDS[convention]
    queries = encode([Query(text)], words)
    prefix = resolve(condition, words, query=user(text)).prefix
    check_alignment(queries, condition, words, "it", prefix=prefix)
    return [*prefix, *queries[0].ids]


# One tokenisation -------------------------------------------------------------------------------


@each
@given(first=TEXTS, second=TEXTS, query=TEXTS)
def test_what_is_read_is_what_is_written_or_it_is_refused(
    convention: str, first: str, second: str, query: str
) -> None:
    """Also of composed prompts and demonstrations, whose parts may merge with each other."""
    assume(query.strip())
    shown = Prompt(pairs=((first, second),), template="{query} {answer}")
    written: dict[Condition, str] = {
        Prompt(text=first, separator=second): first + second,
        Prompt(text=first, separator="") + Prompt(text=second, separator=""): first + second,
        shown + Prompt(text="up", separator=second): f"{first} {second}up{second}",
    }
    for condition, text in written.items():
        whole = ids_of(text + query, convention)
        own = encode([Query(query)], WORDS[convention])[0].ids
        if tuple(whole[-len(own) :]) == own:
            assert sequence(condition, query, convention) == whole
            continue
        with pytest.raises(QueryError, match="merge across the border"):
            sequence(condition, query, convention)


@each
def test_ordinary_prompts_are_not_refused(convention: str) -> None:
    """Nor are queries that begin with a digit, whose space sign is a token of its own."""
    end = SEPARATOR[convention]
    shots = Prompt(pairs=(("hot", "cold"), ("up", "down")), template="{query} -> {answer}" + end)
    prompts = (Prompt(text="hot is cold.", separator=end), shots, ShuffledLabels(shots))
    for query in ("the hill", "5 people", "5", "Yes!"):
        for prompt in prompts:
            text = (prompt.prompt if isinstance(prompt, ShuffledLabels) else prompt).as_text()
            assert sequence(prompt, query, convention) == ids_of(text + query, convention)
        assert sequence(Base(), query, convention) == ids_of(query, convention)


# One beginning ----------------------------------------------------------------------------------


@begun
def test_a_rendered_query_begins_once_in_base_and_after_a_prompt(convention: str) -> None:
    words = WORDS[convention]
    rendered = words.apply_chat_template(
        list(user("hot is")), tokenize=False, add_generation_prompt=True
    )
    assert rendered.startswith(BOS)
    own = rendered.removeprefix(BOS)
    assert sequence(Base(), rendered, convention) == ids_of(own, convention)
    prompt = Prompt(text="a river", separator=SEPARATOR[convention])
    whole = ids_of(f"{prompt.as_text()}{own}", convention)
    assert sequence(prompt, rendered, convention) == whole
    assert whole.count(1) == 1
    if convention == "llama3":  # as the rendered text is tokenised elsewhere
        plain = words(rendered, add_special_tokens=False)["input_ids"]
        assert sequence(Base(), rendered, convention) == plain


@begun
def test_prompts_that_bring_their_beginning_are_those_without(convention: str) -> None:
    end = SEPARATOR[convention]
    own = Prompt(text=f"{BOS}hot is cold", separator=end)
    bare = Prompt(text="hot is cold", separator=end)
    more = Prompt(text=f"{BOS}up is down", separator=end)
    shots = Prompt(pairs=((f"{BOS}hot", "cold"),), template="{query} {answer}" + end)
    written = {
        own: bare.as_text(),
        own + more: f"{bare.as_text()}up is down{end}",
        own + LogitBias({"</s>": 1.0}): bare.as_text(),
        shots: f"hot cold{end}",
    }
    for condition, text in written.items():
        for query in ("the hill", f"{BOS}the hill"):
            found = sequence(condition, query, convention)
            assert found == ids_of(f"{text}the hill", convention)
            assert found.count(1) == 1


@begun
def test_controls_of_a_prompt_that_brings_its_beginning_have_its_length(convention: str) -> None:
    words = WORDS[convention]
    own = Prompt(text=f"{BOS}hot is the opposite of cold", separator=SEPARATOR[convention])
    prefix = resolve(own, words).prefix
    neutral, shuffled, shifted = (
        resolve(control, words) for control in (Neutral(own), ShuffledTokens(own), Shifted(own))
    )
    for control in (neutral, shuffled):
        assert len(control.prefix) == len(prefix)
        assert control.prefix[0] == prefix[0] == 1
        assert control.prefix.count(1) == 1
        assert control.prefix != prefix
    assert sorted(shuffled.prefix) == sorted(prefix)
    assert (shifted.prefix, shifted.shift) == ((1,), len(prefix) - 1)


@begun
@pytest.mark.parametrize("text", ["hot <s> cold", "hot<s>", "<s><s>hot", " <s>hot"])
def test_a_beginning_in_the_middle_is_refused(convention: str, text: str) -> None:
    words = WORDS[convention]
    with pytest.raises(ConditionError, match="stands in the middle") as caught:
        resolve(Prompt(text=text, separator=SEPARATOR[convention]), words)
    assert "\n" not in str(caught.value)
    with pytest.raises(QueryError, match=r"query 1 .*stands in the middle"):
        encode([Query("up"), Query(text)], words)


def test_where_no_text_is_begun_the_token_is_a_word_like_others() -> None:
    for text in ("<s>hot", "hot <s> cold", "<s><s>hot"):
        assert sequence(Base(), text, "gpt2") == ids_of(text, "gpt2")
        prompt = Prompt(text=text)
        assert sequence(prompt, "<s>up", "gpt2") == ids_of(f"{text}\n<s>up", "gpt2")


# Answers ----------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("text", "answer", "written"),
    [
        ("hot is", "cold", "hot is cold"),
        ("hot is", " cold", "hot is cold"),
        ("hot is", "\ncold", "hot is\ncold"),
        ("user\nhot\nassistant\n", "cold", "user\nhot\nassistant\ncold"),
        ("user\nhot\nassistant\n", " cold", "user\nhot\nassistant\n cold"),
        ("hot</s>", "cold", "hot</s>cold"),
        ("hot</s>", " cold", "hot</s> cold"),
    ],
)
def test_an_answer_follows_as_it_would_be_written(
    convention: str, text: str, answer: str, written: str
) -> None:
    """A space stands between two words, and nowhere else."""
    (query,) = encode([Query(text, answer)], WORDS[convention])
    assert [*START[convention], *query.ids, *query.answer_ids] == ids_of(written, convention)
    assert [*START[convention], *query.ids] == ids_of(text, convention)


@each
@given(text=TEXTS, answer=TEXTS)
def test_answers_and_queries_are_tokenised_together_or_refused(
    convention: str, text: str, answer: str
) -> None:
    assume(text.strip())
    between = text.endswith("</s>") or text[-1].isspace() or answer[0].isspace()
    own = ids_of(text, convention)
    whole = ids_of(f"{text}{'' if between else ' '}{answer}", convention)
    if whole[: len(own)] == own != whole:
        (query,) = encode([Query(text, answer)], WORDS[convention])
        assert [*START[convention], *query.ids, *query.answer_ids] == whole
        assert list(query.forced) == whole[len(START[convention]) : -1]
        return
    with pytest.raises(QueryError, match="merges with the end"):
        encode([Query(text, answer)], WORDS[convention])


# Rows -------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 6))
def test_segments_share_out_every_row_once(length: int, answer: int, text: int) -> None:
    """The answer's first row is the last token before it, whosever that is."""
    n_text = min(text, length) or None
    query = Encoded("q:0", "it", tuple(range(length)), tuple(range(answer)), n_text=n_text)
    segments = query.segments
    assert list(segments) == ["query", "template", "answer"]
    rows = [row for own in segments.values() for row in own]
    assert rows == list(range(len(query.forced)))
    assert segments["answer"] == range(length - 1, length - 1 + max(1, answer))
    assert segments["query"] == range(min(n_text or length, length - 1))


@each
def test_a_raw_query_has_no_template(convention: str) -> None:
    for text in ("the hill", "up"):
        placed = place(Base(), user(text), WORDS[convention])
        assert placed.n_text == len(placed.ids)
        (query,) = encode([Query(text, "cold")], WORDS[convention])
        assert not query.segments["template"]
