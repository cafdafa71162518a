"""How facts become text: queries, the prompts that precede them, and documents to train on.

A query is a word and an arrow, `big ->`, and what precedes it decides its answer:

- nothing: the word itself, the zero-shot default (`big -> big`);
- demonstrations of a relation: its answer (`hot -> cold ; up -> down ; big -> small`);
- an instruction that names a relation: its answer (`opposite : big -> small`).

Filler may stand before or between all of this without changing the answer. Neutral filler is a
window of ordinary prose, cut anywhere. Distracting filler is a list of loose words, or
demonstrations of another word class, or, before an instruction only, demonstrations of another
relation of the same class: an instruction overrules what came before it.

    >>> prefix = few_shot_text([("hot", "cold"), ("high", "low")])
    >>> joined(prefix, query("big"))
    'hot -> cold ; high -> low ; big ->'
    >>> instruction("opposite")
    'opposite :'
    >>> sample_document(random.Random(9), limit=20).text
    'give the adverb : short -> shortly ; bold -> boldly'

A document marks the answers that its context determines: those are what a model can learn. The
first demonstration of a relation is not among them, as nothing has named the relation yet.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain, cycle, islice

from interp.organism.facts import CLASS_WORDS, LEFT_OUT, RELATIONS, TRAINED, Relation

NEUTRAL_PASSAGE = (
    "The weather was mild that day. People walked along the road and talked about small things. "
    "A cart stood near the wall, and the light was soft on the stones. Someone had left a basket "
    "by the door. In the afternoon a few clouds came over the hills, and later they went away "
    "again. The river was slow and clear. At the end of the street there was a bench, and next to "
    "it an old tree. Nothing in particular happened."
)
"""The default neutral filler."""

_MORE_PROSE = (
    "A boat lay on the sand. The house by the river had a green door, and a lamp hung over it. "
    "Two friends sat on the bench and looked at the hills. It rained for an hour in the evening. "
    "The garden behind the wall was full of grass. Someone carried a box along the street. "
    "They stopped near the bridge and waited there. The bread on the table was still warm. "
    "A clock stood in the corner of the room, and nobody looked at it. In the morning the wind "
    "came from the sea. The shop at the end of the road was closed that week. People talked "
    "about the rain, the harvest and the price of paper. A letter was left under the stone. "
    "The train went away again, and the station was quiet. Some leaves lay in the water. "
    "There was nothing on the shelf. She opened the window, and he closed the book. "
    "An old man walked to the market with a basket of apples. The path over the field was dry."
)
"""More sentences of the same kind, for training only."""

WORDINGS = (
    "{} :",
    "give the {} :",
    "what is the {} of this word ? answer :",
    "now name the {} of the next word :",
)
"""The wordings of an instruction; `{}` is the name of the relation."""

QUERY_WORDINGS = {
    "after prose": "people walked along the road . {} ->",
    "after loose words": "river horse france ; {} ->",
    "after another task": "france -> paris ; spain -> madrid ; {} ->",
    "in a sentence": "the next word is {} ->",
    "as a question": "{} ? answer ->",
    "without an arrow": "{} ? answer :",
}
"""Other ways to ask about a word; the last three occur in no document."""

ARROW, _SEPARATOR = "->", ";"
TOKEN_PATTERN = r"->|\w+(?:-\w+)*|[^\w\s]"
"""A token is an arrow, a word (hyphens included) or a sign."""

_Shot = tuple[str, str]


def tokens_of(text: str) -> list[str]:
    """Split text as the model's tokenizer does."""
    return re.findall(TOKEN_PATTERN, text.lower())


def query(word: str) -> str:
    """The question about a word: `big ->`."""
    return f"{word} {ARROW}"


def few_shot_text(pairs: Iterable[_Shot]) -> str:
    """A few-shot prompt: `hot -> cold ; high -> low ;`."""
    return " ".join(f"{query(word)} {answer} {_SEPARATOR}" for word, answer in pairs)


def instruction(relation: str, wording: int = 0) -> str:
    """An instruction in one of the `WORDINGS`: `opposite :`."""
    return WORDINGS[wording].format(relation)


def joined(*parts: str) -> str:
    """Filler, prompt and query as one text; empty parts vanish."""
    return " ".join(part for part in parts if part)


# ---- prompts and filler


def sample_pairs(
    rng: random.Random, relation: Relation, count: int, without: Iterable[str] = ()
) -> list[_Shot]:
    """Draw facts of a relation about different words, none of them in `without`."""
    pool = [pair for pair in relation.answers.items() if pair[0] not in set(without)]
    return rng.sample(pool, min(count, len(pool)))


def neutral_filler(rng: random.Random, length: int) -> str:
    """A window of prose, `length` tokens long, that starts anywhere and repeats if it must."""
    prose = tokens_of(rng.choice((NEUTRAL_PASSAGE, _MORE_PROSE)))
    start = rng.randrange(len(prose))
    return " ".join(islice(cycle(prose), start, start + length))


def loose_words(rng: random.Random, length: int) -> str:
    """Words of any class one after the other, at most `length` tokens, closed by a separator."""
    words = rng.choices(_ALL_WORDS, k=max(0, length - 1))
    return " ".join([*words, _SEPARATOR]) if words else ""


def _foreign_demonstrations(rng: random.Random, word_class: str, length: int) -> str:
    """Demonstrations of a relation of any other word class, at most `length` tokens."""
    others = [r for r in TRAINED if r.word_class != word_class]
    return few_shot_text(sample_pairs(rng, rng.choice(others), length // _PAIR_LENGTH))


def rival_demonstrations(rng: random.Random, relation: Relation, length: int) -> str:
    """Demonstrations of another relation of the same word class, at most `length` tokens.

    Half of them open with an instruction of their own.
    """
    rivals = [r for r in TRAINED if r.word_class == relation.word_class and r != relation]
    rival = rng.choice(rivals)
    opening = instruction(rival.name, rng.randrange(len(WORDINGS))) if rng.random() < 0.5 else ""
    room = length - len(tokens_of(opening))
    pairs = sample_pairs(rng, rival, max(0, room) // _PAIR_LENGTH)
    return joined(opening, few_shot_text(pairs)) if pairs else ""


# ---- documents


@dataclass(frozen=True)
class Document:
    """One training text. Positions count tokens from the start of the text."""

    tokens: tuple[str, ...]
    taught: tuple[int, ...]
    """Positions of the answers that the context determines."""
    untaught: tuple[int, ...]
    """Positions of all other answers: nothing can be learnt from them."""

    @property
    def text(self) -> str:
        return " ".join(self.tokens)


@dataclass(frozen=True)
class _Piece:
    """A stretch of a document: plain text, or a query with its answer."""

    text: str
    answer: str = ""
    taught: bool = False


def sample_document(rng: random.Random, limit: int) -> Document:
    """Draw a training document of at most `limit` tokens (16 or more)."""
    kind = rng.choices((_few_shot, _instructed, _default), weights=(5, 3, 4))[0]
    return _document(kind(rng, limit))


def _few_shot(rng: random.Random, limit: int) -> list[_Piece]:
    relation = _sample_relation(rng)
    most = (limit + 1) // _PAIR_LENGTH
    pairs = sample_pairs(rng, relation, rng.randint(2, min(17, most)))
    if rng.random() < 0.15:
        pairs = list(islice(cycle(pairs[:-1]), most - 1)) + pairs[-1:]
    seen: set[str] = set()
    pieces = []
    for word, answer in pairs:
        pieces.append(_Piece(query(word), answer, taught=bool(seen) and word not in seen))
        seen.add(word)
    return _with_fillers(rng, pieces, _common_fillers(relation.word_class), limit)


def _instructed(rng: random.Random, limit: int) -> list[_Piece]:
    relation = _sample_relation(rng)
    opening = instruction(relation.name, rng.randrange(len(WORDINGS)))
    most = (limit + 1 - len(tokens_of(opening))) // _PAIR_LENGTH
    pairs = sample_pairs(rng, relation, rng.randint(1, min(4, most)))
    pieces = [_Piece(opening), *(_Piece(query(word), answer, True) for word, answer in pairs)]
    pieces = _with_fillers(rng, pieces, _common_fillers(relation.word_class), limit - limit // 3)
    room = limit - _length(pieces)
    rival = rival_demonstrations(rng, relation, rng.randint(0, room)) if room > 0 else ""
    return [_Piece(rival), *pieces]


def _default(rng: random.Random, limit: int) -> list[_Piece]:
    word_class = rng.choice(tuple(CLASS_WORDS))
    pool = CLASS_WORDS[word_class] if rng.random() < 0.85 else _ANSWERS[word_class]
    words = rng.sample(pool, rng.randint(1, 4))
    pieces = [_Piece(query(word), word, taught=True) for word in words]
    return _with_fillers(rng, pieces, _common_fillers(word_class), limit)


def _sample_relation(rng: random.Random) -> Relation:
    return rng.choices(TRAINED, weights=[len(r.answers) for r in TRAINED])[0]


_Filler = Callable[[random.Random, int], str]


def _common_fillers(word_class: str) -> tuple[_Filler, ...]:
    """The fillers that may stand anywhere in a document about a word class."""

    def foreign(rng: random.Random, length: int) -> str:
        return _foreign_demonstrations(rng, word_class, length)

    return (neutral_filler, neutral_filler, loose_words, foreign)


def _with_fillers(
    rng: random.Random, pieces: list[_Piece], fillers: tuple[_Filler, ...], limit: int
) -> list[_Piece]:
    """Insert up to two fillers, each before a random piece, within the limit."""
    for _ in range(rng.randint(0, 2)):
        room = limit - _length(pieces)
        if room > 0:
            filler = _Piece(rng.choice(fillers)(rng, rng.randint(1, room)))
            spot = rng.choice((0, rng.randrange(len(pieces))))
            pieces = [*pieces[:spot], filler, *pieces[spot:]]
    return pieces


def _length(pieces: list[_Piece]) -> int:
    return len(_document(pieces).tokens)


def _document(pieces: list[_Piece]) -> Document:
    tokens: list[str] = []
    positions: dict[bool, list[int]] = {True: [], False: []}
    for piece in pieces:
        if piece.answer:
            tokens += [*tokens_of(piece.text), piece.answer, _SEPARATOR]
            positions[piece.taught].append(len(tokens) - 2)
        else:
            filler = tokens_of(piece.text)
            positions[False] += _answers_within(filler, len(tokens))
            tokens += filler
    return Document(tuple(tokens[:-1]), tuple(positions[True]), tuple(positions[False]))


def _answers_within(tokens: list[str], offset: int) -> list[int]:
    return [offset + i + 1 for i, token in enumerate(tokens) if token == ARROW]


# ---- vocabulary


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token of the language, those of the left-out relations included, sorted."""
    prose = chain(NEUTRAL_PASSAGE, " ", _MORE_PROSE)
    wordings = " ".join(instruction(name, i) for name in RELATIONS for i in range(len(WORDINGS)))
    tokens = {ARROW, _SEPARATOR, *tokens_of("".join(prose)), *tokens_of(wordings), *_ALL_WORDS}
    return tuple(sorted(tokens.union(*_ANSWERS.values())))


_PAIR_LENGTH = len(tokens_of(few_shot_text([("hot", "cold")])))
_ALL_WORDS: tuple[str, ...] = tuple(chain.from_iterable(CLASS_WORDS.values()))
_ANSWERS: dict[str, tuple[str, ...]] = {
    word_class: tuple(
        dict.fromkeys(
            answer
            for relation in (*TRAINED, *LEFT_OUT)
            if relation.word_class == word_class
            for answer in relation.answers.values()
        )
    )
    for word_class in CLASS_WORDS
}
