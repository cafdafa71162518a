"""The tiny models of `interp validate`, which the tests share; how their tokenizers join texts."""

from typing import Any

from interp.validation.tiny import *  # noqa: F403


def separator_of(tokenizer: Any) -> str:
    """What keeps a prompt apart from a query: a space where every text begins with a space sign."""
    return " " if tokenizer.tokenize("a")[0].startswith("▁") else "\n"


def preceding(text: str, query: str, tokenizer: Any) -> tuple[int, ...]:
    """What stands before a query's own ids where it is tokenised together with what precedes it,
    no special tokens added."""
    joint, own = (
        tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text + query, query)
    )
    assert joint[-len(own) :] == own, f"{text!r} and {query!r} merge"
    return tuple(joint[: -len(own)])
