"""What can differ between runs: prompts, weights, steering and biases.

    Prompt(text="opposite :") + Lora("adapters/opposite", scale=0.5)
    Steering("truth.safetensors", layer=3).describe()

A description holds no weights and no token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, ClassVar

from interp.conditions.condition import Condition
from interp.conditions.folders import adapter_name, read_config, type_of
from interp.conditions.frames import Frame, Message, Stretch
from interp.conditions.placing import token_id
from interp.conditions.setting import Added, Setting, Virtual
from interp.errors import ConditionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Base(Condition):
    """The model as it is: nothing but the tokenizer's own special tokens precedes the query."""

    role = "base"

    def describe(self) -> str:
        return "the model as it is"


@dataclass(frozen=True)
class Prompt(Condition):
    """Words before the query: exactly one of `text`, `pairs`, `system` and `messages`.

    `text` stands right before the query, in a chat at the beginning of the user's message;
    `separator` is written between the two. `pairs`: few-shot (query, answer) pairs, each rendered
    by `template`; in a chat they are earlier turns. `system`: the chat's system message.
    `messages`: chat messages (`{"role": ..., "content": ...}`) before the user's, whole turns.
    """

    text: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    template: str = "{query} {answer}\n"
    separator: str = "\n"
    system: str | None = None

    role = "prompt"

    def __post_init__(self) -> None:
        given = [self.text is not None, bool(self.messages), bool(self.pairs)]
        if sum([*given, self.system is not None]) != 1:
            raise ConditionError("a prompt takes exactly one of text, messages, pairs and system")
        check_template(self.template)
        for message in self.messages:
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise ConditionError(
                    f"a chat message needs a role and a content, both text: {dict(message)!r}"
                )
        if self.messages and self.messages[-1]["role"] == "user":
            raise ConditionError(
                "the messages end with the user's turn, and the query is one: end them with the "
                "assistant's, or use text to put words before the query's own"
            )

    def as_text(self) -> str:
        """A prompt of text or pairs as the text that precedes a query without a chat frame."""
        shots = (self.template.format(query=query, answer=answer) for query, answer in self.pairs)
        return "".join(shots) if self.pairs else f"{self.text}{self.separator}"

    def describe(self) -> str:
        if self.messages:
            last = _short(self.messages[-1]["content"])
            return f"{len(self.messages)} chat messages, the last: {last}"
        if self.pairs:
            first = _short(" ".join(self.pairs[0]))
            return f"{len(self.pairs)} demonstrations, the first: {first}"
        if self.system is not None:
            return f"system message {_short(self.system)}"
        return _short(str(self.text))

    def stretches(self, frame: Frame, tokenizer: PreTrainedTokenizerBase) -> Iterable[Stretch]:
        if self.system is not None:
            yield Stretch("system", self.system)
        elif self.messages:
            yield from (Stretch(m["role"], m["content"]) for m in self.messages)
        elif self.pairs and frame.chat:
            for query, answer in self.pairs:
                yield from (Stretch("user", query), Stretch("assistant", answer))
        else:
            yield Stretch("", self.as_text())


@dataclass(frozen=True)
class _VirtualPrompt(Condition, tagged=False):
    """Virtual tokens of a peft folder, which stand before everything."""

    adapter: str

    role = "prompt"
    peft_types: ClassVar[tuple[str, ...]]

    @property
    def _virtual(self) -> Virtual:
        """The folder's virtual tokens, from its configuration alone."""
        config = read_config(self.adapter)
        if (found := config.get("peft_type")) not in self.peft_types:
            wanted = " or ".join(self.peft_types)
            raise ConditionError(f"adapter {self.adapter} is of type {found}, not {wanted}")
        length = config.get("num_virtual_tokens")
        if type(length) is not int or length < 1:
            raise ConditionError(
                f"adapter {self.adapter}: num_virtual_tokens is {length!r}, not a positive number"
            )
        return Virtual(self.adapter, length, isinstance(self, Prefix))

    @property
    def n_virtual(self) -> int:
        return self._virtual.length

    def files(self) -> Iterable[tuple[str, str]]:
        return [("adapter", self.adapter)]

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        return Setting(virtual=self._virtual)


@dataclass(frozen=True)
class SoftPrompt(_VirtualPrompt):
    """A peft prompt-tuning folder (PROMPT_TUNING or P_TUNING): virtual token embeddings.

    As in peft they stand before everything, the tokenizer's BOS included, wherever the soft prompt
    is written in a composition. At most one `SoftPrompt` or `Prefix` per condition.
    """

    peft_types = ("PROMPT_TUNING", "P_TUNING")

    def describe(self) -> str:
        return f"soft prompt {adapter_name(self.adapter)}"


@dataclass(frozen=True)
class Prefix(_VirtualPrompt):
    """A peft prefix folder (PREFIX_TUNING or CARTRIDGE): keys and values of virtual tokens, per
    layer.

    They stand before everything, as those of a `SoftPrompt`; no block computes them, so they are
    the same under any weights.
    """

    peft_types = ("PREFIX_TUNING", "CARTRIDGE")

    def describe(self) -> str:
        return f"prefix {adapter_name(self.adapter)}"


@dataclass(frozen=True)
class Lora(Condition):
    """A peft adapter folder: LoRA, or any other type that peft mounts on a model's modules. `scale`
    multiplies its effect, where its type has a scale."""

    adapter: str
    scale: float = 1.0

    role = "weights"
    reweights = True

    def describe(self) -> str:
        return f"{type_of(self.adapter)} {adapter_name(self.adapter)}{scaled(self.scale)}"

    def files(self) -> Iterable[tuple[str, str]]:
        return [("adapter", self.adapter)]

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        return Setting(adapters=((self.adapter, self.scale),))


@dataclass(frozen=True)
class FineTuned(Condition):
    """Other weights of the same architecture (full fine-tune, RLHF, DPO): a model folder or id."""

    model: str

    role = "weights"
    reweights = True

    def describe(self) -> str:
        return f"the weights of {Path(self.model).name}"

    def files(self) -> Iterable[tuple[str, str]]:
        return [("model", self.model)]

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        return Setting(model=self.model)


@dataclass(frozen=True)
class Steering(Condition):
    """Adds `scale * vector` to the residual stream after block `layer` (0-based: `resid_post`).

    At the query positions only: the prefix and its cache stay as they are. `vector` is a
    .safetensors file with one tensor, `vector`, of shape `[d_model]`.
    """

    vector: str
    layer: int
    scale: float = 1.0

    role = "steering"

    def describe(self) -> str:
        after = f"after layer {self.layer}{scaled(self.scale)}"
        return f"steering by {Path(self.vector).stem} {after}"

    def files(self) -> Iterable[tuple[str, str]]:
        return [("vector", self.vector)]

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        return Setting(steering=(Added(self.vector, self.layer, self.scale),))


@dataclass(frozen=True)
class LogitBias(Condition):
    """Adds `bias[token]` to the logits, at all query positions or at `positions` (negative: from
    the query's end). Moves the output and no state: the negative control."""

    bias: Mapping[str, float]
    positions: tuple[int, ...] | None = None

    role = "control"
    only_logits = True

    def __hash__(self) -> int:
        return hash((tuple(self.bias.items()), self.positions))

    def describe(self) -> str:
        where = "" if self.positions is None else f" at positions {list(self.positions)}"
        return f"logit bias on {len(self.bias)} token{'s' * (len(self.bias) != 1)}{where}"

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        bias = ((token_id(t, tokenizer), float(v), self.positions) for t, v in self.bias.items())
        return Setting(bias=tuple(bias))


def check_template(template: str) -> None:
    """A `ConditionError` where a demonstration cannot be written by a template."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ConditionError(f"the template {template!r} is none: {error}") from error
    for _, field, form, conversion in parts:
        if field is not None and (field not in ("query", "answer") or form or conversion):
            raise ConditionError(
                f"the template {template!r} has {{{field}}}: it takes {{query}} and {{answer}} as "
                "they are (a brace of its own is written twice)"
            )


def scaled(scale: float) -> str:
    """A scale in a description; nothing where it is 1."""
    return "" if scale == 1 else f", scale {scale:g}"


def _short(text: str, width: int = 70) -> str:
    flat = " ".join(text.split())
    return f"“{flat}”" if len(flat) <= width else f"“{flat[: width - 1]}…”"
