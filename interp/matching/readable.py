"""Where a text prompt stands, and what it may be made of, so that it is read back as it was found.

slot = slot_of(evaluation, "\\n")                        # the ids on both sides of it
words = readable_words(evaluation, slot)
    found = search_prompt(scorer(evaluation, target, slot), words, SearchBudget(tokens=4))

Without a chat the text stands right before the query, in a chat in the system message, or at the
beginning of the user's where the template takes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from interp.capture import chunk_size
from interp.conditions import Prompt, prefix_ids
from interp.conditions.placing import TokenIds
from interp.design import BASE
from interp.errors import ConditionError, QueryError
from interp.matching.coordinate import Words
from interp.matching.evaluation import Evaluation
from interp.matching.examples import Examples
from interp.matching.prefixes import Scorer
from interp.queries import check_alignment
from interp.subject import Subject

_ROWS, _MEMORY = 4096, 2e9
"""Prefix-query pairs in one forward pass of a search, and the bytes that they may take."""

_PROBES = 16
"""Words by which the ids around a slot are found."""


@dataclass(frozen=True)
class Slot:
    """Where a text stands: token ids `before` it, and `after` it up to the query. `system`: it is
    the system message; otherwise `separator` is written between it and the query."""

    before: TokenIds
    after: TokenIds = ()
    system: bool = False
    separator: str = ""

    def prompt(self, text: str) -> Prompt:
        """The condition that such a text is."""
        return Prompt(system=text) if self.system else Prompt(text=text, separator=self.separator)


def slot_of(evaluation: Evaluation, separator: str) -> Slot:
    """Where the frame of an evaluation has its text prompt."""
    text, frame = Slot((), separator=separator), evaluation.subject.frame
    if not frame.chat:
        return replace(_between(evaluation, text), before=evaluation.subject.settings[BASE].prefix)
    try:
        return _between(evaluation, Slot((), system=True))
    except ConditionError:  # the template takes no system message, or leaves it out
        return _between(evaluation, text)


def _between(evaluation: Evaluation, slot: Slot) -> Slot:
    """The slot with the ids that stand before and after every one of some words."""
    found = [prefix_of(evaluation, slot.prompt(word)) for word in _some_words(evaluation.subject)]
    before = shared(found)
    after = shared([ids[len(before) :][::-1] for ids in found])[::-1]
    return replace(slot, before=before, after=after)


def _some_words(subject: Subject) -> list[str]:
    """Words of the vocabulary, far apart in it: what stands around all of them is not theirs."""
    decoded = (str(subject.tokenizer.decode([i])).strip() for i in range(subject.n_words))
    found = [word for word in decoded if word.isascii() and word.isalnum()]
    return found[:: max(1, len(found) // _PROBES)][:_PROBES]


def shared(sequences: Sequence[TokenIds]) -> TokenIds:
    """The ids that all of some sequences begin with."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return tuple(column[0] for column in same)


def prefix_of(evaluation: Evaluation, prompt: Prompt) -> TokenIds:
    """The token ids that stand before an evaluation's queries under a prompt."""
    tokenizer, frame = evaluation.subject.tokenizer, evaluation.subject.frame
    turns = next(iter(evaluation.queries.values()))[0].turns if frame.chat else None
    return prefix_ids(prompt, tokenizer, frame, turns)


def scorer(
    evaluation: Evaluation, target: Examples, slot: Slot | None = None, fluency: float = 0.0
) -> Scorer:
    """Scores token ids that stand in a slot (none: between base's own and the query)."""
    own = evaluation.subject.settings[BASE]
    slot = slot or Slot(own.prefix)
    alone = replace(evaluation.subject, settings={BASE: own})
    rows = min(_ROWS, chunk_size(alone, target.batch.ids.shape[1], _MEMORY))
    setting = replace(own, prefix=slot.before)
    return Scorer(evaluation.subject, setting, target, rows, slot.after, fluency)


def readable_words(evaluation: Evaluation, slot: Slot) -> Words:
    """No special token, and only what is read back as it was written, in its place and before
    every query."""
    asked = [query for group in evaluation.queries.values() for query in group]
    subject, tokenizer = evaluation.subject, evaluation.subject.tokenizer
    special = set(tokenizer.all_special_ids)

    def written(ids: TokenIds) -> Prompt:
        return slot.prompt(str(tokenizer.decode(list(ids))))

    def readable(ids: TokenIds) -> bool:
        try:
            return prefix_of(evaluation, written(ids)) == (*slot.before, *ids, *slot.after)
        except ConditionError:
            return False

    def apart(ids: TokenIds) -> bool:
        own = (*slot.before, *ids, *slot.after)
        try:
            check_alignment(asked, written(ids), tokenizer, "text", subject.frame, own)
        except (QueryError, ConditionError):
            return False
        return True

    return Words([i for i in range(subject.n_words) if i not in special], readable, apart)
