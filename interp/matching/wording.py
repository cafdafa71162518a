"""What a text prompt of one model may be made of, so that it is read back as it was found.

tail = tail_of(subject, "\\n")                      # the separator's tokens
found = search(scorer(bench, wanted, tail), words(bench, "\\n"), Budget(tokens=4))
"""

from __future__ import annotations

from dataclasses import replace

from interp.capture import chunk_size
from interp.conditions import Prompt, leading_specials, prefix_body
from interp.errors import QueryError
from interp.matching.bench import BASE, Bench
from interp.matching.coordinate import Words
from interp.matching.examples import Examples
from interp.matching.prefixes import Ids, Scorer
from interp.queries import check_alignment
from interp.subject import Subject

ROWS, MEMORY = 4096, 2e9
"""Prefix-query pairs in one forward pass of a search, and the bytes that they may take."""


def scorer(bench: Bench, wanted: Examples, tail: Ids = (), fluency: float = 0.0) -> Scorer:
    """Scores token ids that stand between base's own and `tail`."""
    own = bench.subject.settings[BASE]
    alone = replace(bench.subject, settings={BASE: own})
    rows = min(ROWS, chunk_size(alone, wanted.batch.ids.shape[1], MEMORY))
    return Scorer(bench.subject, own, wanted, rows, tail, fluency)


def words(bench: Bench, separator: str) -> Words:
    """No special token, and only what is read back as it was written, before the separator and
    before every query."""
    asked = [query for group in bench.queries.values() for query in group]
    subject, tokenizer = bench.subject, bench.subject.tokenizer
    tail, special = tail_of(subject, separator), set(tokenizer.all_special_ids)
    start = leading_specials(tokenizer)

    def written(ids: Ids) -> Prompt:
        return Prompt(text=str(tokenizer.decode(list(ids))), separator=separator)

    def readable(ids: Ids) -> bool:
        return prefix_body(written(ids), tokenizer) == [*ids, *tail]

    def apart(ids: Ids) -> bool:
        try:
            check_alignment(asked, written(ids), tokenizer, "text", prefix=(*start, *ids, *tail))
        except QueryError:
            return False
        return True

    return Words([i for i in range(subject.n_words) if i not in special], readable, apart)


def tail_of(subject: Subject, separator: str) -> Ids:
    """A separator's tokens as they stand between a word and a query; a space that begins the
    query's first word is none of them."""
    alone, joint = (
        tuple(prefix_body(Prompt(text="a", separator=end), subject.tokenizer))
        for end in ("", separator)
    )
    return joint[len(alone) :] if joint[: len(alone)] == alone else ids_of(subject, separator)


def ids_of(subject: Subject, text: str) -> Ids:
    """The token ids of a text by itself."""
    return tuple(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
