"""Text that makes a prompt long: of which kinds, how much of it, and where it stands.

    kinds = fillers(evaluation)
    ids = placed(instruction, kinds["neutral"], 128, "around")

Filler is repeated to the length asked for and cut at its start, so that it ends as it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from interp.conditions import Prompt, ShuffledLabels, prefix_body
from interp.conditions.placing import TokenIds
from interp.design import BASE
from interp.errors import ConfigError
from interp.matching.evaluation import Evaluation
from interp.matching.settings import read_demonstrations
from interp.organism.language import NEUTRAL_PASSAGE

_Place = Literal["after", "around", "before"]
"""Where filler stands: the instruction is first, in the middle, last."""
PLACES: tuple[_Place, ...] = get_args(_Place)
NEUTRAL_FILLER = "neutral"


def fillers(evaluation: Evaluation, rival: Path | None = None) -> dict[str, TokenIds]:
    """Kinds of filler, as token ids: `neutral` prose; of the pool's demonstrations as they are
    (`relevant`) and with `wrong answers`; and the demonstrations of `another task`."""
    template, separator = evaluation.settings.template, evaluation.settings.separator
    kinds: dict[str, Prompt | ShuffledLabels] = {}
    if evaluation.settings.pool is not None:
        kinds["relevant"] = Prompt(
            pairs=tuple(evaluation.settings.demonstrations()), template=template
        )
    kinds[NEUTRAL_FILLER] = Prompt(text=NEUTRAL_PASSAGE, separator=separator)
    if (shown := kinds.get("relevant")) is not None:
        kinds["wrong answers"] = ShuffledLabels(shown)  # type: ignore[arg-type]
    if rival is not None:
        kinds["another task"] = Prompt(pairs=tuple(read_demonstrations(rival)), template=template)
    return {
        name: tuple(prefix_body(kind, evaluation.subject.tokenizer)) for name, kind in kinds.items()
    }


def lengths_that_fit(
    evaluation: Evaluation, instruction: TokenIds, lengths: Sequence[int]
) -> list[int]:
    """The lengths of filler, cut to what the model can read beside instruction and query."""
    longest = max(
        len(q.ids) + len(q.answer_ids) for some in evaluation.queries.values() for q in some
    )
    taken = len(evaluation.subject.settings[BASE].prefix) + len(instruction) + longest
    room = evaluation.subject.context - taken
    if room < 1 or not lengths or min(lengths) < 1:
        raise ConfigError(
            f"--lengths {' '.join(map(str, lengths))}: filler has at least 1 token, and the model "
            f"has room for {max(0, room)} beside the instruction and the longest query"
        )
    return sorted({min(length, room) for length in lengths})


def repeated(filler: TokenIds, length: int) -> TokenIds:
    """The last `length` tokens of filler that is repeated as often as it must."""
    times = -(-length // max(1, len(filler)))
    return (filler * times)[len(filler) * times - length :]


def placed(instruction: TokenIds, filler: TokenIds, length: int, place: _Place) -> TokenIds:
    """An instruction with so many tokens of filler after, around or before it."""
    before = {"after": 0, "around": length // 2, "before": length}[place]
    return (*repeated(filler, before), *instruction, *repeated(filler, length - before))
