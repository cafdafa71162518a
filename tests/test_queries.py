"""Queries: no bad line passes, none is dropped, and a query's tokens are the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_models import tokenizer

from interp.conditions import Prompt, resolve, user
from interp.errors import QueryError
from interp.queries import Encoded, Query, check_alignment, encode, read_queries

GPT2, LLAMA = tokenizer("gpt2"), tokenizer("llama")
LINES = b'{"text": "hot ->", "answer": "cold", "label": "x"}\n{"text": "up ->"}\n'
HOT, UP = Query("hot ->", "cold", "x"), Query("up ->")


def written(folder: Path, content: bytes) -> Path:
    path = folder / "queries.jsonl"
    path.write_bytes(content)
    return path


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.removesuffix(b"\n"),
        LINES.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + LINES,
        LINES + b"\n",
    ],
    ids=["plain", "no line break at the end", "CRLF", "BOM", "one blank line at the end"],
)
def test_every_spelling_of_a_good_file_gives_the_same_queries(
    tmp_path: Path, content: bytes
) -> None:
    assert read_queries(written(tmp_path, content)) == [HOT, UP]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"hot ->", "not JSON"),
        (b"", "not JSON"),
        (b"   ", "not JSON"),
        (b'{"text": "\xff\xfe"}', "UTF-8"),
        (b'["text"]', '"text"'),
        (b'"text"', '"text"'),
        (b"{}", '"text"'),
        (b'{"text": 5}', '"text"'),
        (b'{"text": null}', '"text"'),
        (b'{"Text": "a"}', '"text"'),
        (b'{"text": ""}', "blank"),
        (b'{"text": " \\t\\n"}', "blank"),
        (b'{"text": "a", "anwser": "b"}', "anwser"),
        (b'{"text": "a", "answer": 5}', "'answer' must be a string"),
        (b'{"text": "a", "label": ["b"]}', "'label' must be a string"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = written(tmp_path, b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    with pytest.raises(QueryError, match="line 2: ") as caught:
        read_queries(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_line_beyond_the_limit_is_found_too(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="line 2"):
        read_queries(written(tmp_path, b'{"text": "good"}\nbad\n'), limit=1)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(QueryError):
        read_queries(written(tmp_path, content))


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(QueryError, match="give a JSONL file") as caught:
        read_queries(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_the_limit_keeps_the_first(tmp_path: Path) -> None:
    assert read_queries(written(tmp_path, LINES), limit=1) == [HOT]


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(st.lists(TEXTS.filter(lambda text: bool(text.strip())), min_size=1, max_size=5))
def test_any_text_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path = written(tmp_path_factory.mktemp("any"), lines.encode())
    assert [query.text for query in read_queries(path)] == texts


# Encoding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_query_s_ids_are_those_of_its_text_without_special_tokens(words: Any) -> None:
    (query,) = encode([UP], words)
    assert list(query.ids) == words("up ->", add_special_tokens=False)["input_ids"]
    assert 1 not in query.ids
    assert (query.text, query.answer_ids, query.label) == ("up ->", (), None)


def test_keys_differ_between_queries_and_groups() -> None:
    keys = [q.key for group in ("matched", "heldout") for q in encode([UP, UP], GPT2, group)]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("answer", ["cold", " cold"])
@pytest.mark.parametrize("words", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_answers_follow_with_exactly_one_space(words: Any, answer: str) -> None:
    (query,) = encode([Query("hot is", answer)], words)
    joint = words("hot is cold", add_special_tokens=False)["input_ids"]
    assert list(query.ids + query.answer_ids) == joint
    assert query.answer_ids


def test_an_answer_that_brings_a_line_break_gets_no_space() -> None:
    (query,) = encode([Query("hot", "\ncold")], GPT2)
    assert GPT2.decode(list(query.answer_ids)) == "\ncold"


def test_an_answer_that_merges_with_its_query_is_refused() -> None:
    words = tokenizer("gpt2")
    words.add_tokens(["c old"])
    with pytest.raises(QueryError, match="merges with the end") as caught:
        encode([Query("hot", "cold"), Query("hot c", "old")], words)
    assert "'old'" in str(caught.value)
    assert "'c old'" in str(caught.value)


# Alignment --------------------------------------------------------------------------------------


def right_before(text: str) -> Prompt:
    return Prompt(text=text, separator="")


@pytest.mark.parametrize("words", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("text", ["hot is cold", "hot is cold.", "a\n"])
def test_a_separator_of_the_convention_keeps_prompt_and_query_apart(words: Any, text: str) -> None:
    """A line break; a space where the tokenizer begins words, and so every query, with one."""
    prompt = Prompt(text=text, separator=" " if words is LLAMA else "\n")
    queries = encode([Query("the hill"), Query("up is")], words)
    check_alignment(queries, prompt, words, "prompt")
    joined = words(f"{prompt.as_text()}the hill")["input_ids"]
    assert joined == [*resolve(prompt, words).prefix, *queries[0].ids]


@pytest.mark.parametrize("separator", ["\n", "", ";"])
def test_words_that_begin_without_their_space_are_refused(separator: str) -> None:
    """After anything but a space this convention writes a query's first word in other tokens."""
    prompt, queries = (
        Prompt(text="hot is cold", separator=separator),
        encode([Query("the hill")], LLAMA),
    )
    with pytest.raises(QueryError, match="merge across the border"):
        check_alignment(queries, prompt, LLAMA, "prompt")


def test_a_merge_across_the_border_shows_the_tokens() -> None:
    queries = encode([Query("e weather")], GPT2)
    with pytest.raises(QueryError, match="merge across the border") as caught:
        check_alignment(queries, right_before("people th"), GPT2, "few")
    message = str(caught.value)
    became = GPT2.convert_ids_to_tokens(GPT2("people the weather")["input_ids"])
    assert "condition few" in message
    assert "'e weather'" in message
    assert repr(became[-1]) in message
    assert "separator" in message


def test_one_merging_query_among_many_is_the_one_named() -> None:
    queries = encode([Query(" hill"), Query("e weather"), Query(" road")], GPT2)
    with pytest.raises(QueryError, match="'e weather'"):
        check_alignment(queries, right_before("people th"), GPT2, "few")


def test_the_llama_prefix_space_is_aligned() -> None:
    queries = encode([Query("the hill"), Query("up")], LLAMA)
    assert LLAMA.convert_ids_to_tokens(list(queries[0].ids))[0].startswith("▁")
    check_alignment(queries, right_before("hot is cold. "), LLAMA, "prompt")
    queries[1] = Encoded("x", "up", tuple(LLAMA("p")["input_ids"][1:]))
    with pytest.raises(QueryError, match="'up'"):
        check_alignment(queries, right_before("hot is cold. "), LLAMA, "prompt")


def test_an_empty_prompt_is_aligned_with_everything() -> None:
    assert check_alignment(encode([UP], GPT2), right_before(""), GPT2, "prompt") is None


PIECES = st.sampled_from(["the", "e", " hill", "\n", "th", " the", ".", "hot", " ", "5"])


@pytest.mark.parametrize("words", [GPT2, LLAMA], ids=["gpt2", "llama"])
@given(st.lists(PIECES, min_size=1, max_size=4), st.lists(PIECES, min_size=1, max_size=3))
def test_aligned_exactly_where_the_joined_text_is_the_prefix_and_the_query_s_ids(
    words: Any, prompt: list[str], query: list[str]
) -> None:
    text, asked = "".join(prompt), "".join(query)
    assume(asked.strip())
    queries = encode([Query(asked)], words)
    joint, own = words(text + asked)["input_ids"], list(queries[0].ids)
    if joint[-len(own) :] == own:
        check_alignment(queries, right_before(text), words, "prompt")
        assert [*resolve(right_before(text), words, query=user(asked)).prefix, *own] == joint
        return
    with pytest.raises(QueryError, match="merge"):
        check_alignment(queries, right_before(text), words, "prompt")
