"""How near does every one of many text prompts come to what a condition says?

    scorer = Scorer(subject, setting, target, rows=2048)
    scorer.kl(prefixes)                 # [prefix, query] nats: KL(target ‖ said after it)
    scorer.slopes(prefix)               # [pos, d_vocab]: how the mean KL moves with every token

Every prefix is run once, all of one length together, and its keys and values repeated over the
queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from interp.capture import chunks
from interp.conditions import Setting
from interp.conditions.placing import TokenIds
from interp.errors import ConfigError
from interp.matching.examples import Examples
from interp.matching.virtual import after_virtual
from interp.measures import wide
from interp.subject import Batch, Subject
from interp.subject.insertions import VirtualTokens


@dataclass(frozen=True)
class Scorer:
    """Prefixes are token ids between `setting`'s own (its BOS) and `tail` (a separator); `setting`
    has no virtual tokens. `rows`: prefix-query pairs in one forward pass. `fluency`: weight of a
    prefix's own surprise, in nats per token (0: none)."""

    subject: Subject
    setting: Setting
    target: Examples
    rows: int
    tail: TokenIds = ()
    fluency: float = 0.0

    def kl(self, prefixes: Sequence[TokenIds]) -> Float[Tensor, "prefix query"]:
        """`KL(target ‖ said)` after every prefix, nats."""
        most = max(1, self.rows // len(self.target))
        return _by_length(self._after, prefixes, most)

    def _after(self, prefixes: Sequence[TokenIds]) -> Tensor:
        whole = [(*self.setting.prefix, *prefix, *self.tail) for prefix in prefixes]
        setting = replace(self.setting, prefix=whole[0])
        given = torch.tensor(whole, dtype=torch.long, device=self.subject.device)
        cache = self.subject.prefill(setting, given)
        said = self.target.logits_of(self.subject, setting, cache, copies=len(whole))
        return self.target.divergence(said).cpu()

    def losses(self, prefixes: Sequence[TokenIds]) -> Float[Tensor, " prefix"]:
        """What is minimised: the mean KL over queries, and `fluency` times the surprise."""
        found = self.kl(prefixes).mean(-1)
        return found + self.fluency * self.surprises(prefixes) if self.fluency else found

    def surprise(self, prefix: TokenIds) -> Float[Tensor, ""]:
        """Mean negative log-probability of a prefix's tokens, each given those before, nats; a
        first token that nothing stands before does not count."""
        return self.surprises([prefix])[0]

    def surprises(self, prefixes: Sequence[TokenIds]) -> Float[Tensor, " prefix"]:
        """The `surprise` of every prefix."""
        if len(self.setting.prefix) + min(map(len, prefixes)) < 2:
            raise ConfigError(
                "the model has no BOS: one token with nothing before it has no surprise; "
                "drop --fluency or give more --tokens"
            )
        return _by_length(self._surprises, prefixes, self.rows)

    def _surprises(self, prefixes: Sequence[TokenIds]) -> Tensor:
        whole = [(*self.setting.prefix, *prefix) for prefix in prefixes]
        ids = torch.tensor(whole, device=self.subject.device)
        lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
        batch = Batch(ids, lengths, lengths)
        logits = self.subject.run(replace(self.setting, prefix=()), batch)[:, :-1]
        said = wide(logits).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return -said[:, -len(prefixes[0]) :].mean(-1).cpu()

    def slopes(self, prefix: TokenIds) -> Float[Tensor, "pos d_vocab"]:
        """The derivative of the mean KL by how much of every token stands at every position (the
        one-hot gradient of Zou et al. 2307.15043, sec. 2.2)."""
        embed = self.subject.input_embeddings
        ids = (*self.setting.prefix, *prefix, *self.tail)
        whole = torch.tensor(ids, device=self.subject.device)
        with self.subject.weights.of(self.setting):  # a LoRA may sit on the embedding
            words = torch.arange(self.subject.n_words, device=whole.device)
            table, embedded = embed(words).detach(), embed(whole).detach().requires_grad_()
        own = after_virtual(replace(self.setting, prefix=()), "soft_prompt", len(whole))
        cache = self.subject.prefill(own, VirtualTokens(embedded[None]), grad=True)
        loss = self.target.divergence(
            self.target.logits_of(self.subject, own, cache, grad=True)
        ).mean()
        with self.subject.weights.values_of(own):
            (gradient,) = torch.autograd.grad(loss, [embedded])
        first = len(self.setting.prefix)
        return (gradient[first : first + len(prefix)] @ table.T).cpu()


def _by_length(
    measure: Callable[[Sequence[TokenIds]], Tensor], prefixes: Sequence[TokenIds], most: int
) -> Tensor:
    """What is measured of prefixes of one length, at most so many at a time, in their order."""
    order = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i]))
    found = []
    for _, group in groupby(order, key=lambda i: len(prefixes[i])):
        for some in chunks(list(group), most):
            found.append(measure([prefixes[i] for i in some]))
    return torch.cat(found)[torch.tensor(order).argsort()]
