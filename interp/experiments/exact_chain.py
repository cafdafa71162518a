"""Is a prompt an exact chain of weight patches, and is it one chain for all queries and tokens?

    interp experiment exact_chain                       # the bundled model
    interp experiment exact_chain --queries-used 8 --tokens 2

At every token that the prompted model writes, the patches are made anew, written into the weights
of a plain Hugging Face model, and that model is asked without the prompt (`interp.weights.chain`).
That it then says the same, and writes the same tokens, is an identity: it checks the instrument and
holds of any text before a query, a neutral one too. The finding is how far the chain depends on the
token: what another query's chain, or the first token's chain kept for the next ones, gives of the
prompt's effect, and how far chains lie apart. A LoRA is one patch for all tokens, 0 from itself.

Supported: another query's chain gives the prompt's output as well, so that the prompt is one update
of the weights. Not supported: the chain is a description of one token, and no update that a prompt
stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from interp import organism
from interp.conditions import Condition, Lora, Neutral
from interp.design import BASE
from interp.errors import ConfigError
from interp.experiments.trial import Measurement, Trial, estimate_row
from interp.finding import DecidingEstimate
from interp.matching.evaluation import TARGET, Evaluation
from interp.measures import wide
from interp.measures.output import kl_divergence
from interp.plots.curves import Curves, curves
from interp.progress import Progress
from interp.queries import Encoded
from interp.statistics import Estimate, pooled
from interp.subject import Batch, Subject
from interp.subject.loading import pretrained
from interp.weights.chain import (
    PatchChain,
    longer,
    patch_chain,
    patched_weights,
    plain_logits,
    relative_distances,
    shown,
)

_OWN, _OTHER, _KEPT = "its own chain", "another query's chain", "the first token's chain, kept"
_LORA, _NEUTRAL, _NEXT = "LoRA", "a neutral text's, same query", "the same query's first token"
_QUERIES = "another query's, same token"
_OUTPUT, _APART = "KL from the prompted model (nats)", "relative distance of chains"
_TARGET, _ERROR, _SAME = "target", "error", "same"
_LOOKS = {
    "exact_chain": (
        _OUTPUT,
        Curves(
            "Does the chain of one token or query serve another?",
            "token written",
            _OUTPUT,
            grey=[BASE, _LORA],
        ),
    ),
    "chain_distances": (
        _APART,
        Curves(
            "How far from a query's chain lie others?",
            "token written",
            _APART,
            levels={"orthogonal, as large": 2**0.5, "a LoRA from itself": 0.0},
            grey=[_NEUTRAL],
            y_range=(-0.08, 2.0),
        ),
    ),
}
"""Figure -> its rows of the table, and how it looks."""


class ExactChain(Trial):
    """Write a prompt into the weights, token by token; see whether one chain serves all tokens."""

    point = 0
    claim = (
        "A prompt is one chain of weight patches, whatever the query: the chain of one query gives "
        "the prompt's output on another."
    )
    unit = "tokens"
    bundled: ClassVar = {"prompt_file": organism.PROMPTS / "instruction_0.txt"}

    queries_used: int = Field(default=24, ge=3)
    """Number of queries."""
    tokens: int = Field(default=4, ge=1)
    """Number of tokens that are written after every query."""
    threshold: float = 0.95
    """Strength above which another query's chain counts as the prompt."""

    def measure(self, progress: Progress) -> Measurement:
        """Chains at every token, what they give in plain Hugging Face, and the verdict."""
        if self.prompt_file is None:
            raise ConfigError("a prompt is written into the weights: give --prompt-file")
        seen = self._seen(progress)
        table = pd.DataFrame(seen.rows(self.bootstrap, self.seed))
        caption = (
            f"Model: {self.model_name}. Prompt: {self.prompt_file.name}. n = {len(seen.keys)} "
            f"queries. 95 % interval, Poisson bootstrap over queries, {self.bootstrap} replicates."
        )
        figures = {
            name: curves(table[table["panel"] == panel], look, caption)
            for name, (panel, look) in _LOOKS.items()
        }
        strength = seen.strength(_OTHER, 0, self.bootstrap, self.seed)
        value, low, high, _ = (float(x) for x in strength)
        what = "strength of another query's chain"
        contrast = DecidingEstimate(what, value, low, high, self.threshold)
        return Measurement(seen.sentence(contrast), contrast, len(seen.keys), table, figures)

    def _seen(self, progress: Progress) -> Seen:
        settings = self._of_prompt()
        conditions: dict[str, Condition] = {"neutral": Neutral(like=settings.target)}
        if self.adapter is not None:
            conditions["lora"] = Lora(self.adapter)
        evaluation = Evaluation.open(settings, conditions)
        plain = pretrained(self.model, self.dtype, self.hub, evaluation.subject.device)
        queries = evaluation.queries["matched"][: self.queries_used]
        return follow_chain(evaluation.subject, TARGET, plain, queries, self.tokens, progress)

    def _of_prompt(self) -> Any:
        """The same settings with the prompt for their target."""
        return self.model_copy(update={"adapter": None, "fine_tuned": None, "floor": ()})


class Seen(NamedTuple):
    """By name, nats by token and query: `kl` from the prompted model. By name, by token and query:
    `apart`, relative distance from the query's own chain. `errors`: largest difference of a logit
    from the prompted model's, relative to the larger of 1 and their root mean square. `same`:
    whether the token written is the prompted model's. `keys` of the queries."""

    kl: dict[str, np.ndarray]
    apart: dict[str, np.ndarray]
    errors: np.ndarray
    same: np.ndarray
    keys: list[str]

    def strength(self, name: str, token: int, replicates: int, seed: int) -> Estimate:
        """`1 - KL / KL of base` of all queries together, at one token."""
        base = self.kl[BASE][token]
        return pooled(base - self.kl[name][token], base, self.keys, replicates, seed)

    def effect(self, name: str, token: int) -> float:
        """The strength alone."""
        return float(1 - self.kl[name][token].sum() / self.kl[BASE][token].sum())

    def rows(self, replicates: int, seed: int) -> list[dict[str, Any]]:
        """The experiment's table; a distance from a token of its own is left out."""
        tokens = range(len(self.errors))
        found = [
            estimate_row(
                _OUTPUT, name, str(token + 1), pooled(kl[token], 1.0, self.keys, replicates, seed)
            )
            for name, kl in self.kl.items()
            for token in tokens
            if token or name != _KEPT
        ]
        return found + [
            estimate_row(
                _APART, name, str(token + 1), pooled(v[token], 1.0, self.keys, replicates, seed)
            )
            for name, v in self.apart.items()
            for token in tokens
            if token or name != _NEXT
        ]

    def sentence(self, contrast: DecidingEstimate) -> str:
        """What was seen."""
        between, neutral = (self.apart[name][0].mean() for name in (_QUERIES, _NEUTRAL))
        return (
            f"With a chain made anew for every token, plain Hugging Face without the prompt writes "
            f"{self.same.sum()} of {self.same.size} tokens as with it; logits differ by at most "
            f"{self.errors.max():.1g}. Another query's chain gives {contrast.estimate} of the "
            f"prompt's effect.{self._kept()} Chains of two queries lie {between:.2f} apart, those "
            f"of the prompt and of a neutral text on one query {neutral:.2f} (orthogonal ones: "
            "1.41; a LoRA from itself: 0). The identity holds of any text before a query and says "
            "nothing of how a prompt works."
        )

    def _kept(self) -> str:
        if _KEPT not in self.kl:
            return ""
        kept, base = (self.kl[name][1].mean() for name in (_KEPT, BASE))
        return (
            f" The first token's chain, kept for the next, leaves {kept:.2g} nats of the prompt's "
            f"output ({base:.2g} without any)."
        )


def follow_chain(
    subject: Subject,
    prompt: str,
    plain: Any,
    queries: Sequence[Encoded],
    tokens: int,
    progress: Progress,
) -> Seen:
    """Write `tokens` tokens after every query under a `prompt`, with and without it.

    The subject has settings `base` and `neutral`, and may have a `lora` to compare with. `plain`: a
    plain Hugging Face model of the same weights, into which the patches are written.
    """
    asked, steps = list(queries), []
    first: list[PatchChain] | None = None
    for _ in range(tokens):
        chains = [patch_chain(subject, BASE, prompt, query) for query in asked]
        step = _Step(subject, prompt, plain, asked, chains, first)
        said = []
        for number in range(len(asked)):
            said.append(step.said(number))
            progress("tokens", 1, tokens * len(asked))
        steps.append((step.apart(), [step.compared(own) for own in said]))
        asked = [
            longer(query, [int(own[_TARGET].argmax())])
            for query, own in zip(asked, said, strict=True)
        ]
        first = first or chains
    return _gathered(steps, [query.key for query in queries])


class _Step(NamedTuple):
    """One token of all queries: their chains, and those of the first token (none: this is it)."""

    subject: Subject
    prompt: str
    plain: Any
    asked: Sequence[Encoded]
    chains: Sequence[PatchChain]
    first: Sequence[PatchChain] | None

    def said(self, number: int) -> dict[str, Tensor]:
        """Name -> logits after one query, of plain Hugging Face wherever no adapter acts."""
        settings, query = self.subject.settings, self.asked[number]
        without = shown(settings[BASE], query)
        others = {_OWN: self.chains[number], _OTHER: self.chains[(number + 1) % len(self.chains)]}
        if self.first:
            others[_KEPT] = self.first[number]
        found = {
            _TARGET: plain_logits(self.plain, shown(settings[self.prompt], query)),
            BASE: plain_logits(self.plain, without),
        }
        for name, chain in others.items():
            with patched_weights(self.plain, chain):
                found[name] = plain_logits(self.plain, without)
        if "lora" in settings:
            found[_LORA] = self._hooked("lora", query)
        return found

    def _hooked(self, name: str, query: Encoded) -> Tensor:
        subject = self.subject
        setting = subject.settings[name]
        batch = Batch.of([query], subject.device)
        with torch.no_grad():
            return wide(subject.run(setting, batch, subject.prefill(setting), last=True)[0])

    def compared(self, said: dict[str, Tensor]) -> dict[str, float]:
        """KL of the target to each, nats; the largest difference of a logit; the same token?"""
        wanted = said[_TARGET]
        found = {
            name: float(kl_divergence(wanted[None], logits[None]))
            for name, logits in said.items()
            if name != _TARGET
        }
        scale = max(1.0, float(wanted.square().mean().sqrt()))
        found[_ERROR] = float((said[_OWN] - wanted).abs().max()) / scale
        found[_SAME] = float(said[_OWN].argmax() == wanted.argmax())
        return found

    def apart(self) -> dict[str, np.ndarray]:
        """Relative distances of every query's chain from others."""
        n = len(self.asked)
        neutral = [patch_chain(self.subject, BASE, "neutral", query) for query in self.asked]
        each = relative_distances(self.chains).fill_diagonal_(0)
        found = {
            _QUERIES: each.sum(1) / (n - 1),
            _NEUTRAL: relative_distances(self.chains, neutral).diagonal(),
        }
        if self.first:
            found[_NEXT] = relative_distances(self.chains, self.first).diagonal()
        return {name: value.cpu().numpy() for name, value in found.items()}


def _gathered(
    steps: Sequence[tuple[dict[str, np.ndarray], list[dict[str, float]]]], keys: list[str]
) -> Seen:
    """By name and token; what the first token has not is NaN there."""
    names = steps[-1][1][0]
    unknown = np.full(len(keys), np.nan)
    by_name = {
        name: np.array([[own.get(name, np.nan) for own in said] for _, said in steps])
        for name in names
    }
    apart = {
        name: np.array([step.get(name, unknown) for step, _ in steps]) for name in steps[-1][0]
    }
    errors, same = by_name.pop(_ERROR), by_name.pop(_SAME)
    return Seen(by_name, apart, errors, same.astype(bool), keys)
