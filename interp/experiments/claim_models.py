"""The two models on which claims are tested, each opened once and read by all claims.

    model = CLAIM_MODELS["organism"](chat, smollm2, made, limit)
    model.shift("prompt")                       # [layer, token, d_model], what the prompt moves
    value, low, high = model.resampled(lambda tokens: ...)

Each has a `prompt`, a `lora` distilled from it, `shots` (demonstrations of the same), a `rival`
prompt of another task, and controls: `neutral` text as long as the prompt, a `random_lora` of the
LoRA's shape and size. The prompted model writes every query's answer, which is forced on all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp import organism
from interp.capture import Reader, capture, chunks
from interp.conditions import Condition, Lora, Neutral, Prompt, RandomLora
from interp.config import read_prompt
from interp.design import BASE
from interp.edits import Edit
from interp.errors import ConfigError
from interp.generating import generate
from interp.lab import Lab
from interp.lab import load as load_lab
from interp.measures import wide
from interp.measures.output import kl_divergence
from interp.names import Site
from interp.organism.language import NEUTRAL_PASSAGE
from interp.queries import Encoded, read_queries
from interp.statistics import generator_of, percentile_interval
from interp.subject import Batch, Subject
from interp.subject.loading import pretrained

_ROWS = 16
"""Queries per batch."""
_REPLICATES = 200

_KNIGHT = (
    ("How do I boil an egg?", "Set thy egg in boiling water for seven minutes, my lord."),
    ("What is the capital of Spain?", "It is Madrid, my lord, a fair city that thou shouldst see."),
    ("Can you name a good book?", "Thou shouldst read the tales of King Arthur, my lord."),
)  # fmt: skip
"""A persona shown, not told."""


@dataclass
class ClaimModel:
    """A model's folder, its conditions beside base, and what is asked. `tokens`: length of the
    answers; `every`: heads are patched in every n-th layer; `made`: folder of what is trained."""

    name: str
    folder: Path
    conditions: Mapping[str, Condition]
    asked: Path
    limit: int
    tokens: int
    every: int
    made: Path
    chat: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    known: dict[str, Float[ndarray, "layer token d_model"]] = field(default_factory=dict)
    spoken: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, init=False)

    @cached_property
    def lab(self) -> Lab:
        """The model under all conditions, compared with plain Hugging Face + peft."""
        if not (self.folder / "config.json").is_file():
            raise ConfigError(f"{self.folder} has no model: make it (`make smollm2`), or name it")
        return load_lab(str(self.folder), conditions=self.conditions, chat=self.chat, device="cpu")

    @property
    def subject(self) -> Subject:
        """The hooked model."""
        return self.lab.subject

    @property
    def n_parameters(self) -> int:
        return self.subject.n_parameters

    @cached_property
    def plain(self) -> Any:
        """Plain Hugging Face of the same weights."""
        return pretrained(str(self.folder), "float32", {}, self.subject.device)

    @cached_property
    def unanswered(self) -> list[Encoded]:
        """All queries of the file, without answers."""
        whole = self.lab.encode(read_queries(self.asked))
        return [replace(query, answer_ids=()) for query in whole]

    @cached_property
    def queries(self) -> list[Encoded]:
        """The first queries, with the answers that the prompted model writes."""
        some = self.unanswered[: self.limit]
        answers = generate(self.subject, self.subject.settings["prompt"], some, self.tokens)
        return [replace(q, answer_ids=a) for q, a in zip(some, answers, strict=True)]

    @cached_property
    def unrelated(self) -> list[Encoded]:
        """Sentences that ask for nothing and have to do with no task."""
        sentences = [f"{text.strip(' .')}." for text in NEUTRAL_PASSAGE.split(". ")]
        return self.lab.encode(sentences)

    @cached_property
    def owner(self) -> Int[ndarray, " token"]:
        """The query of every token at which an answer's tokens are predicted."""
        counts = [len(query.segments["answer"]) for query in self.queries]
        return np.repeat(np.arange(len(counts)), counts)

    def states(self, condition: str) -> Float[ndarray, "layer token d_model"]:
        """`resid_post` of every layer where the answers' tokens are predicted, float64."""
        if condition not in self.known:
            self.known[condition] = self.read(condition, self.queries, "resid_post")
        return self.known[condition]

    def read(
        self, condition: str, queries: list[Encoded], site: str
    ) -> Float[ndarray, "layer token d"]:
        """A site of every layer at these queries' answer tokens (last ones, if unanswered)."""
        setting, parts = self.subject.settings[condition], []
        cache, sites = self.subject.prefill(setting), self.subject.sites(site)
        for some in chunks(queries, _ROWS):
            batch = Batch.forced(some, self.subject.device)
            tokens = batch.answer

            def pick(value: Any, tokens: Any = tokens) -> ndarray:
                return np.asarray(wide(tokens.pick(value.detach())))

            read: dict[Site, Reader] = dict.fromkeys(sites, pick)
            values = capture(self.subject, setting, batch, cache, read, last=True).values
            parts.append(np.stack([values[site] for site in sites]))
        return np.concatenate(parts, axis=1)

    def said(self, condition: str, numbers: Sequence[int], edits: Sequence[Edit] = ()) -> Tensor:
        """The logits that predict the answers of these queries, with states edited."""
        key = (condition, *numbers)
        if not edits and key in self.spoken:
            return self.spoken[key]
        setting, batch = self.subject.settings[condition], self._forced(numbers)
        cache, columns = self.subject.prefill(setting), batch.answer.columns
        got = capture(self.subject, setting, batch, cache, {}, edits, columns=columns)
        logits = batch.answer.pick_rows(got.logits)
        if not edits:
            self.spoken[key] = logits
        return logits

    def kl(
        self,
        target: str,
        condition: str,
        numbers: Sequence[int],
        edits: Sequence[Edit] = (),
    ) -> Float[ndarray, " query"]:
        """`KL(target ‖ condition with edited states)` of these queries, nats per answer."""
        pair = self.said(target, numbers), self.said(condition, numbers, edits)
        total = self._forced(numbers).answer.total(kl_divergence(*pair))
        return total.cpu().numpy()

    def _forced(self, numbers: Sequence[int]) -> Batch:
        return Batch.forced([self.queries[number] for number in numbers], self.subject.device)

    def put_in(
        self, layer: int, states: Float[ndarray, "token d_model"], numbers: Sequence[int]
    ) -> Edit:
        """These states behind a block, where the answers of these queries (in their order) are
        predicted; `states` has the tokens of all queries."""
        tokens = self._forced(numbers).answer
        kept = torch.from_numpy(states[np.isin(self.owner, numbers)])

        def change(own: Tensor) -> Tensor:
            new = own.clone()
            new[tokens.query, tokens.column] = kept.to(own)
            return new

        return Edit(Site("resid_post", layer), change)

    def shift(self, condition: str) -> Float[ndarray, "layer token d_model"]:
        """What a condition moves: its states minus base's."""
        return self.states(condition) - self.states(BASE)

    def resampled(
        self, measure: Callable[[Int[ndarray, " token"]], float]
    ) -> tuple[float, float, float]:
        """A measure of all tokens, given by their numbers, and its 95 % interval: percentiles over
        queries drawn with replacement, all tokens of a query together."""
        by_query = [np.flatnonzero(self.owner == query) for query in range(len(self.queries))]
        generator, n = generator_of(f"claim:{self.name}"), len(by_query)
        drawn = [
            measure(np.concatenate([by_query[q] for q in generator.integers(0, n, n)]))
            for _ in range(_REPLICATES)
        ]
        low, high = percentile_interval(np.array(drawn))
        return measure(np.concatenate(by_query)), float(low), float(high)


def organism_model(chat: Path, smollm2: Path, made: Path, limit: int | None) -> ClaimModel:
    """The bundled model: an instruction to give the opposite, and a LoRA distilled from it."""
    lora = Lora(str(organism.ADAPTERS / "lora_0"))
    prompt = Prompt(text=read_prompt(organism.PROMPTS / "instruction_0.txt"))
    shots = organism.demonstrations(organism.PROMPTS / "few_shot_0.txt")
    rival = [(q.text, str(q.answer)) for q in read_queries(organism.QUERIES / "rival.jsonl")]
    template = "{query} {answer} ; "
    conditions = _with_controls(prompt, lora) | {
        "shots": Prompt(pairs=tuple(shots), template=template),
        "rival": Prompt(pairs=tuple(rival[:6]), template=template),
        "seed": Lora(str(organism.ADAPTERS / "lora_1")),
    }
    training = {"prompt_file": organism.PROMPTS / "instruction_0.txt", "epochs": 40}
    return ClaimModel(
        "organism", organism.MODEL, conditions, organism.QUERIES / "matched.jsonl",
        limit or 24, 4, 1, made, training=training,
    )  # fmt: skip


def smollm2_model(chat: Path, smollm2: Path, made: Path, limit: int | None) -> ClaimModel:
    """SmolLM2: a persona as system message, and the chat study's LoRA distilled from it."""
    system = {name: read_prompt(chat / "prompts" / f"{name}_0.txt") for name in _SYSTEMS}
    lora = Lora(str(chat / "adapters" / "persona"))
    conditions = _with_controls(Prompt(system=system["persona"]), lora) | {
        "shots": Prompt(pairs=_KNIGHT),
        "rival": Prompt(system=system["language"]),
    }
    training = {
        "system_file": chat / "prompts" / "persona_0.txt", "chat": True, "answer_tokens": 12,
        "epochs": 6, "batch_size": 4,
    }  # fmt: skip
    return ClaimModel(
        "smollm2", smollm2, conditions, chat / "fit.jsonl", limit or 12, 12, 5, made,
        chat=True, training=training,
    )  # fmt: skip


_SYSTEMS = ("persona", "language")

CLAIM_MODELS = {"organism": organism_model, "smollm2": smollm2_model}
"""Name -> how a model is put together."""


def _with_controls(prompt: Prompt, lora: Lora) -> dict[str, Condition]:
    return {
        "prompt": prompt,
        "lora": lora,
        "neutral": Neutral(like=prompt),
        "random_lora": RandomLora(like=lora),
    }
