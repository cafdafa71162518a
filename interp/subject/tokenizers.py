"""One tokenizer for all conditions, and a refusal where an adapter or a fine-tune brings another.

    tokenizer = open_tokenizer("gpt2", conditions.values())            # the model's
    tokenizer = open_tokenizer("gpt2", conditions.values(), "adapter") # the one in this folder

Folders are compared by what they do to text, not by their files: who saved one again, with other
padding or under another class, has not changed it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from interp.conditions import Condition
from interp.errors import SubjectError
from interp.organism.language import NEUTRAL_PASSAGE
from interp.subject.kinds import check_kind
from interp.subject.loading import check_name, load_tokenizer
from interp.untrusted import is_there

_FILES = ("tokenizer.json", "tokenizer_config.json")
_TEMPLATE = "chat_template.jinja"

_SAMPLES = (
    "", " ", "Hello, world! It's 12345.", "  two  spaces", "\n\n\tdef f(x):\n    return x",
    "ÀÉ日本🙂", NEUTRAL_PASSAGE,
)  # fmt: skip
"""Texts on which tokenizers of one vocabulary are compared, beside every token's own text."""


def open_tokenizer(
    model: str, conditions: Iterable[Condition] = (), chosen: str | None = None, **hub: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of `chosen`, or else the model's; a `SubjectError` where a folder of the
    conditions brings one with other tokens, special tokens, splits or another chat template, and
    for a model that is no decoder of text: this is the first that is read of it."""
    check_name(model, hub.get("revision"))
    check_kind(model, **hub)
    name = chosen or model
    theirs = hub | {"gguf_file": None}
    tokenizer = load_tokenizer(name, **(hub if name == model else theirs | {"revision": None}))
    check_brought(tokenizer, name, conditions, **theirs)
    return tokenizer


def check_brought(
    tokenizer: PreTrainedTokenizerBase, name: str, conditions: Iterable[Condition], **hub: Any
) -> None:
    """A `SubjectError` where a folder of the conditions brings another tokenizer than that of
    `name`."""
    for folder in dict.fromkeys(_folders(conditions)):
        found = _brought(folder, **hub)
        if found is not None and (what := difference(tokenizer, found)):
            raise SubjectError(
                f"{folder} brings a tokenizer ({_size(found)}) other than that of {name} "
                f"({_size(tokenizer)}): {what}; pass --tokenizer {folder} to read every condition "
                f"with it, or take its tokenizer files away to go on with that of {name}"
            )


def _folders(conditions: Iterable[Condition]) -> Iterator[str]:
    """The adapters and fine-tuned models of conditions."""
    for condition in conditions:
        yield from (folder for what, folder in condition.files() if what != "vector")


def _brought(folder: str, **hub: Any) -> PreTrainedTokenizerBase | str | None:
    """The tokenizer in a folder, or of a hub id; the chat template where that is all it has; None
    without any."""
    root = Path(folder)
    if any((root / name).is_file() for name in _FILES):
        return load_tokenizer(folder, **hub)
    if (root / _TEMPLATE).is_file():
        return (root / _TEMPLATE).read_text(encoding="utf-8")
    if is_there(root):
        return None
    with contextlib.suppress(SubjectError):  # what else is wrong with it, its weights will say
        return load_tokenizer(folder, **hub)
    return None


def difference(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase | str) -> str | None:
    """The first thing that `other` would do otherwise, in a few words; None where there is none.

    A padding token, and what `other` leaves unsaid (special tokens, chat template), do not count.
    """
    if isinstance(other, str):
        return _other_template(own, other)
    ours, theirs = _vocabulary(own, other), _vocabulary(other, own)
    if ours != theirs:
        ids = {token: theirs.get(token, ours.get(token)) for token in ours.keys() | theirs.keys()}
        odd = (token for token in ids if ours.get(token) != theirs.get(token))
        token = min(odd, key=lambda token: (ids[token], token))
        return f"token {token!r} has {_id(theirs, token)}, not {_id(ours, token)}"
    for role in ("bos_token", "eos_token"):
        mine, its = getattr(own, role), getattr(other, role)
        if its is not None and its != mine:
            return f"its {role} is {its!r}, not {mine!r}"
    return _other_template(own, other.chat_template) or _other_split(own, other)


def _vocabulary(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> dict[str, int]:
    """Token -> id, without a padding token that only `own` has."""
    known = other.get_vocab()
    extra = {own.pad_token} - known.keys()
    return {token: number for token, number in own.get_vocab().items() if token not in extra}


def _id(vocabulary: dict[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "no id"


def _size(found: PreTrainedTokenizerBase | str) -> str:
    return "a chat template alone" if isinstance(found, str) else f"{len(found)} tokens"


def _other_template(own: PreTrainedTokenizerBase, template: Any) -> str | None:
    if template is None or _stripped(template) == _stripped(own.chat_template):
        return None
    return "it has its own chat template"


def _stripped(template: Any) -> Any:
    """A template without the line break that an editor, or a file, puts at its end."""
    return template.removesuffix("\n") if isinstance(template, str) else template


def _other_split(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """The first text that tokenizers of one vocabulary split in different ways."""
    if _rules(own) == _rules(other):
        return None
    known = other.get_vocab()
    shared = (token for token in own.get_vocab() if token in known)
    texts = [*_SAMPLES, *(own.convert_tokens_to_string([token]) for token in shared)]
    ours, theirs = (one(texts)["input_ids"] for one in (own, other))
    unlike = (text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b)
    text = next(unlike, None)
    return None if text is None else f"it splits {text[:40]!r} in another way"


def _rules(tokenizer: Any) -> dict[str, Any]:
    """All that decides how a text is split, but for the vocabulary."""
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = {step: saved[step] for step in ("normalizer", "pre_tokenizer", "post_processor")}
    model = {name: value for name, value in saved["model"].items() if name != "vocab"}
    return {**steps, "model": model, "added": saved["added_tokens"]}


def check_rows(tokenizer: PreTrainedTokenizerBase, name: str, rows: int, model: str) -> None:
    """Every token of a tokenizer that was chosen has one of the model's `rows` embeddings."""
    vocabulary = tokenizer.get_vocab()
    beyond = {i: t for t, i in vocabulary.items() if i >= rows and t != tokenizer.pad_token}
    if beyond:
        raise SubjectError(
            f"the tokenizer of {name} has {len(vocabulary)} tokens, {model} embeds {rows}: "
            f"{beyond[min(beyond)]!r} has no embedding; give a model that has one for every token"
        )
