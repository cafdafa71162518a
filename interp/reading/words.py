"""Task words: as given, or those that answers under a condition have and base's have not.

    given_words(tokenizer, ["cold", "small"])           # {"cold": 311, "small": 87}
    said_words(tokenizer, {"base": [...], "prompt": [...], "lora": [...]}, ("prompt", "lora"))

A word is one token: the first that the tokenizer makes of it behind a space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from interp.design import BASE
from interp.errors import ConfigError

_LEAST = 0.1
"""Share of the queries whose answers must have a word that base's have not, where any has that."""


def token_text(tokenizer: Any, token: int) -> str:
    """A token as it stands in a text; whatever is no character is shown as one."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    return text.encode("utf-8", "replace").decode("utf-8")


def given_words(tokenizer: Any, words: Sequence[str]) -> dict[str, int]:
    """Word -> its first token; a ConfigError names a word that the tokenizer does not know."""
    found: dict[str, int] = {}
    for word in words:
        ids = [
            token
            for token in tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"]
            if token_text(tokenizer, token).strip()
        ]
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise ConfigError(f"--words: the model's tokenizer has no token for {word!r}")
        found[word] = ids[0]
    return found


def said_words(
    tokenizer: Any, answers: Mapping[str, Sequence[Sequence[int]]], sides: Sequence[str]
) -> dict[str, int]:
    """Text -> token of those that more queries are answered with under every one of `sides` than
    under base, most first.

    A token counts once per query: by how many more answers have it than base's. Where answers
    share tokens, only those count that at least a tenth of the queries (and two) have more often;
    where every query has its own answer, all. Special tokens and white space never do.
    """
    of = {name: Counter(t for ids in own for t in set(ids)) for name, own in answers.items()}
    special = set(tokenizer.all_special_ids)
    more = {
        token: min(of[side][token] for side in sides) - of[BASE][token]
        for token in of[sides[0]]
        if token not in special and token_text(tokenizer, token).strip()
    }
    least = max(2, round(_LEAST * len(answers[BASE])))
    often = [token for token in more if more[token] >= least]
    chosen = often or [token for token in more if more[token] > 0]
    ordered = sorted(chosen, key=lambda token: (-more[token], token))
    return {token_text(tokenizer, token): token for token in ordered}
