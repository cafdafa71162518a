"""The acceptance exam of the bundled model: what is asked, of every fact, and how well it must do.

    >>> row = EXAM["instruction, wording 0"]
    >>> row.required
    0.99
    >>> row.questions(seed=0)[0]
    Question(prefix='opposite :', query='big ->', answer='small')

Prefixes are drawn afresh from the seed. The training documents come from another stream, so the
sets of demonstrations are new to the model.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

from interp.organism.facts import CLASS_WORDS, TRAINED, Relation
from interp.organism.language import (
    WORDINGS,
    few_shot_text,
    instruction,
    joined,
    loose_words,
    neutral_filler,
    query,
    rival_demonstrations,
    sample_pairs,
)


@dataclass(frozen=True)
class Question:
    """A query, what precedes it, and the one right answer."""

    prefix: str
    query: str
    answer: str


@dataclass(frozen=True)
class _ExamRow:
    """One line of the exam; accuracy is the share of questions whose answer ranks first."""

    questions: Callable[[int], list[Question]]
    """All questions of the row, given a seed."""
    required: float
    """The least accuracy that the committed weights must reach."""


_FactPrefix = Callable[[random.Random, Relation, str], str]
_FillerPrefix = Callable[[random.Random], str]


def _about_facts(prefix: _FactPrefix) -> Callable[[int], list[Question]]:
    """Ask for every trained fact once, each after its own prefix."""

    def questions(seed: int) -> list[Question]:
        rng = random.Random(f"exam {seed}")
        return [
            Question(prefix(rng, relation, word), query(word), answer)
            for relation in TRAINED
            for word, answer in relation.answers.items()
        ]

    return questions


def _about_words(prefix: _FillerPrefix) -> Callable[[int], list[Question]]:
    """Ask for every word once: the answer is the word itself."""

    def questions(seed: int) -> list[Question]:
        rng = random.Random(f"exam {seed}")
        words = [word for words in CLASS_WORDS.values() for word in words]
        return [Question(prefix(rng), query(word), word) for word in words]

    return questions


def _few_shot(count: int, filler: int = 0) -> _FactPrefix:
    """Demonstrations of the relation about other words, after `filler` tokens of prose."""

    def prefix(rng: random.Random, relation: Relation, word: str) -> str:
        pairs = sample_pairs(rng, relation, count, without=[word])
        return joined(neutral_filler(rng, filler), few_shot_text(pairs))

    return prefix


def _repeated(distinct: int, total: int) -> _FactPrefix:
    """A few demonstrations of the relation, repeated in turn."""

    def prefix(rng: random.Random, relation: Relation, word: str) -> str:
        pairs = sample_pairs(rng, relation, distinct, without=[word])
        return few_shot_text(islice(cycle(pairs), total))

    return prefix


def _instructed(wording: int | None = None, before: _FactPrefix | None = None) -> _FactPrefix:
    """An instruction, in a random wording where none is given, with distraction before it."""

    def prefix(rng: random.Random, relation: Relation, word: str) -> str:
        chosen = rng.randrange(len(WORDINGS)) if wording is None else wording
        distraction = before(rng, relation, word) if before else ""
        return joined(distraction, instruction(relation.name, chosen))

    return prefix


EXAM: dict[str, _ExamRow] = {
    "zero-shot default": _ExamRow(_about_words(lambda rng: ""), 0.99),
    "default after 20 tokens of prose": _ExamRow(
        _about_words(lambda rng: neutral_filler(rng, 20)), 0.95
    ),
    "default after 100 tokens of prose": _ExamRow(
        _about_words(lambda rng: neutral_filler(rng, 100)), 0.95
    ),
    "default after 200 tokens of prose": _ExamRow(
        _about_words(lambda rng: neutral_filler(rng, 200)), 0.95
    ),
    "default after loose words": _ExamRow(_about_words(lambda rng: loose_words(rng, 30)), 0.95),
    **{
        f"instruction, wording {wording}": _ExamRow(_about_facts(_instructed(wording)), 0.99)
        for wording in range(len(WORDINGS))
    },
    "instruction after 60 tokens of prose": _ExamRow(
        _about_facts(_instructed(before=lambda rng, relation, word: neutral_filler(rng, 60))), 0.95
    ),
    "instruction after loose words": _ExamRow(
        _about_facts(_instructed(before=lambda rng, relation, word: loose_words(rng, 30))), 0.95
    ),
    "instruction after a rival relation": _ExamRow(
        _about_facts(
            _instructed(before=lambda rng, relation, word: rival_demonstrations(rng, relation, 30))
        ),
        0.95,
    ),
    **{
        f"few-shot, {count} demonstrations": _ExamRow(_about_facts(_few_shot(count)), 0.98)
        for count in (3, 4, 8)
    },
    "few-shot, 16 demonstrations": _ExamRow(_about_facts(_few_shot(16)), 0.95),
    "few-shot, 6 repeated to 60": _ExamRow(_about_facts(_repeated(6, 60)), 0.95),
    "few-shot after 60 tokens of prose": _ExamRow(_about_facts(_few_shot(4, filler=60)), 0.95),
}
"""Every row of the exam by its name."""
