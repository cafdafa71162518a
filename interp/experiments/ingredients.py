"""What can be given to a model beside a query: an anchor, demonstrations, an intent, a bias.

    texts = anchored_demonstrations(evaluation, [0, 2], {"none": ()})   # (shots, anchor) -> ids
    vector, random = steered(evaluation, setting)       # added to the residual stream
    vector.biased(evaluation.targets["matched"])        # a logit bias, the same for every query
    found, controls = factorial(evaluation, texts, Tuning("soft_prompt", 1, 60))
    found[Combination(2, "none", "steering vector", "constant")]["heldout"]  # KL of every query

All are fitted to the matched queries, an intent to what the text before it leaves to do, the bias
to what both leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.capture import capture, chunks, keep
from interp.conditions import Added, Setting
from interp.conditions.placing import TokenIds
from interp.design import BASE
from interp.experiments.fits import Fitted, fit_shots, spelled
from interp.matching.evaluation import TARGET, Evaluation
from interp.matching.virtual import Tuning, tune
from interp.organism.language import NEUTRAL_PASSAGE
from interp.statistics import generator_of
from interp.subject import Batch

NONE, STEERING_VECTOR, RANDOM_VECTOR = "none", "steering vector", "random vector"
SOFT_TOKEN, CONSTANT, NEUTRAL_TEXT = "soft token", "constant", "neutral text"


def anchored_demonstrations(
    evaluation: Evaluation, counts: Sequence[int], anchors: Mapping[str, TokenIds]
) -> dict[tuple[int, str], TokenIds]:
    """The ids of every anchor followed by so many demonstrations, which greedy selection chooses
    once, without an anchor; counts that it does not reach are left out, 0 is always there."""
    shots: dict[int, TokenIds] = {0: ()}
    if evaluation.settings.pool is not None and max(counts, default=0) > 0:
        own = len(evaluation.subject.settings[BASE].prefix)
        chosen = fit_shots(evaluation, evaluation.targets["matched"], max(counts))
        shots |= {fitted.size: fitted.setting.prefix[own:] for fitted in chosen}
    return {
        (count, anchor): (*ids, *shots[count])
        for anchor, ids in anchors.items()
        for count in sorted({0, *counts})
        if count in shots
    }


def neutral_text(evaluation: Evaluation, length: int) -> TokenIds:
    """So many tokens of ordinary text that asks for nothing."""
    tokenizer = evaluation.subject.tokenizer
    passage = tuple(tokenizer(NEUTRAL_PASSAGE, add_special_tokens=False)["input_ids"])
    return (passage * (length // len(passage) + 1))[:length]


def last_states(
    evaluation: Evaluation, setting: Setting, group: str, layers: Sequence[int]
) -> Float[Tensor, "query layer d_model"]:
    """`resid_post` of the queries' last tokens."""
    sites = evaluation.subject.sites("resid_post")
    sites = [sites[layer] for layer in layers]
    cache, found = evaluation.subject.prefill(setting), []
    for chunk in chunks(evaluation.queries[group], evaluation.settings.batch_size):
        batch = Batch.of(chunk, evaluation.subject.device)
        got = capture(evaluation.subject, setting, batch, cache, dict.fromkeys(sites, keep))
        states = torch.stack([got.values[site] for site in sites], 1)
        rows = torch.arange(len(chunk), device=states.device)
        found.append(states[rows, :, batch.lengths - 1])
    return torch.cat(found)


def intents(
    evaluation: Evaluation, setting: Setting, tuning: Tuning
) -> Iterator[tuple[str, Fitted]]:
    """Nothing, a steering vector, a random one of its length at its layer (the control), a soft
    token."""
    yield NONE, Fitted.of(evaluation, setting)
    vector, random = steered(evaluation, setting)
    yield STEERING_VECTOR, vector
    yield RANDOM_VECTOR, random
    yield SOFT_TOKEN, _softened(evaluation, setting, tuning)


def steered(evaluation: Evaluation, own: Setting) -> tuple[Fitted, Fitted]:
    """The target's mean state less the setting's own, at the queries' last token, added at every
    query token after the layer where it helps most (Turner et al. 2308.10248; Panickssery et al.
    2312.06681, of conditions in place of answers); and a random vector as long as it."""
    layers = range(evaluation.subject.n_layers)
    target = evaluation.subject.settings[TARGET]
    there, here = (last_states(evaluation, s, "matched", layers) for s in (target, own))
    means = (there - here).mean(0)
    tried = [_adding(evaluation, own, layer, means[layer]) for layer in layers]
    best = min(layers, key=lambda layer: float(tried[layer].kl("matched").mean()))
    drawn = generator_of(f"random vector:{evaluation.settings.seed}").normal(size=means[best].shape)
    random = torch.tensor(drawn).to(means)
    random *= means[best].norm() / random.norm()
    return tried[best], _adding(evaluation, own, best, random)


def _adding(evaluation: Evaluation, own: Setting, layer: int, vector: Tensor) -> Fitted:
    """A vector that is in no file."""
    name, subject = f"after layer {layer}", evaluation.subject
    vectors = {**subject.insertions.vectors, name: vector.to(subject.dtype)}
    known = replace(subject, insertions=replace(subject.insertions, vectors=vectors))
    setting = replace(own, steering=(*own.steering, Added(name, layer, 1.0)))
    return Fitted.of(replace(evaluation, subject=known), setting)


def _softened(evaluation: Evaluation, own: Setting, tuning: Tuning) -> Fitted:
    """Virtual tokens before everything, by gradient."""
    tuned = tune(evaluation.subject, own, evaluation.targets["matched"], tuning)
    return Fitted(evaluation, *tuned.before(evaluation.subject, own))


def own_bias(given: Fitted, group: str) -> float:
    """The largest divergence (nats) that a bias of its own for every query and matched position
    leaves: `log p_target - log p`, which is the answer itself; rounding."""
    evaluation, wanted = given.evaluation, given.evaluation.targets[group]
    logits = evaluation.subject.run(given.setting, wanted.batch, given.cache)
    own = logits[wanted.rows, wanted.columns].log_softmax(-1)
    bias = torch.zeros_like(logits)
    bias[wanted.rows, wanted.columns] = wanted.logits.log_softmax(-1) - own
    return float(wanted.kl(logits + bias).max())


# --- all combinations of them ---------------------------------------------------------------------


class Combination(NamedTuple):
    """One cell: how many demonstrations, which anchor before them, what is done to the states, and
    what to the logits."""

    shots: int
    anchor: str
    intent: str
    bias: str

    def __str__(self) -> str:
        shots = f"{self.shots} demonstration{'s' * (self.shots != 1)}" if self.shots else ""
        bias = "" if self.bias == NONE else f"{self.bias} bias"
        words = [word for word in (self.anchor, shots, self.intent, bias) if word not in ("", NONE)]
        return " + ".join(words) or "nothing"


_Divergences = dict[str, Float[ndarray, " query"]]
Factorial = dict[Combination, _Divergences]
"""`KL(target ‖ combination)` of every query by group, nats."""


def factorial(
    evaluation: Evaluation,
    texts: Mapping[tuple[int, str], TokenIds],
    tuning: Tuning,
    done: Callable[[], None] = lambda: None,
) -> tuple[Factorial, Factorial]:
    """Every text with every intent, without and with a constant bias. Apart from these, the
    controls: random vectors, and neutral text as long as demonstrations without an anchor."""
    found: Factorial = {}
    controls: Factorial = {}
    for (shots, anchor), ids in texts.items():
        own = spelled(evaluation, ids).setting
        for intent, given in intents(evaluation, own, tuning):
            cell = Combination(shots, anchor, intent, NONE)
            kept = controls if intent == RANDOM_VECTOR else found
            kept[cell] = _scores(given)
            if intent != RANDOM_VECTOR:
                found[cell._replace(bias=CONSTANT)] = _scores(
                    given.biased(evaluation.targets["matched"])
                )
        if anchor == NONE:
            cell = Combination(shots, NEUTRAL_TEXT, NONE, NONE)
            controls[cell] = _scores(spelled(evaluation, neutral_text(evaluation, len(ids))))
        done()
    return found, controls


def _scores(given: Fitted) -> _Divergences:
    """On every group of queries."""
    return {group: given.kl(group) for group in given.evaluation.queries}
