"""Task words: given ones are tokens, said ones are those of both sides and not of base."""

from __future__ import annotations

import pytest
import tiny_models

from interp.errors import ConfigError
from interp.reading.words import given_words, said_words, token_text

WORDS = tiny_models.tokenizer("gpt2")


def ids(text: str) -> list[int]:
    return list(WORDS(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("convention", ["gpt2", "llama"])
def test_a_given_word_is_its_first_token_behind_a_space(convention: str) -> None:
    words = tiny_models.tokenizer(convention)
    found = given_words(words, ["cold", " small ", "weatherman"])
    assert list(found) == ["cold", " small ", "weatherman"]
    for word, token in found.items():
        assert word.strip().startswith(token_text(words, token).strip())


@pytest.mark.parametrize("word", ["", "  "])
def test_what_is_no_word_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="no token for"):
        given_words(WORDS, [word])


def test_said_words_are_those_of_both_sides_that_base_has_less() -> None:
    base = [ids("big"), ids("up"), ids("up"), ids("hot")]
    prompt = [ids("small"), ids("small"), ids("small"), ids("cold")]
    lora = [ids("small"), ids("small"), ids("small cold"), ids("up")]
    answers = {"base": base, "prompt": prompt, "lora": lora}
    of_both = said_words(WORDS, answers, ("prompt", "lora"))
    often = {t for t in ids("small") if token_text(WORDS, t).strip()}
    assert set(of_both.values()) == often  # "cold" once: not at two queries
    assert said_words(WORDS, {**answers, "lora": base}, ("prompt", "lora")) == {}


def test_where_every_query_has_its_own_answer_all_of_them_count() -> None:
    base, own = [ids("big"), ids("up")], [ids("small"), ids("down")]
    found = said_words(WORDS, {"base": base, "prompt": own}, ("prompt",))
    assert set(found.values()) == {*own[0], *own[1]} - {*base[0], *base[1]}


def test_special_tokens_and_white_space_are_no_words() -> None:
    own = [[WORDS.eos_token_id, *ids(" \n small")]] * 2
    found = said_words(WORDS, {"base": [[], []], "prompt": own}, ("prompt",))
    assert WORDS.eos_token_id not in found.values()
    assert all(text.strip() for text in found)
