"""Whether a condition gives the answers, and answers as something to be learned.

told = taught(examples(subject, base, queries, 64), queries)   # the answer, with certainty
answered_right(queries, subject.run(setting, told.batch, cache))        # 1 where it is given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.matching.examples import Examples
from interp.queries import Encoded

_NEVER = -1e4
"""Logit of what is certainly not said: its probability is 0 in every number format."""


def answered_right(
    queries: Sequence[Encoded], logits: Float[Tensor, "query query_pos d_vocab"]
) -> Float[ndarray, " query"]:
    """1 where every token of the answer ranks first after those before it (so greedy decoding says
    it), else 0; NaN without an answer. The rows of `logits` are query and answer."""
    found = []
    for query, row in zip(queries, logits, strict=True):
        first = len(query.ids) - 1
        best = tuple(row[first : first + len(query.answer_ids)].argmax(-1).tolist())
        found.append(float(best == query.answer_ids) if query.answer_ids else np.nan)
    return np.array(found)


def certain(answer: Sequence[int], d_vocab: int) -> Float[Tensor, "pos d_vocab"]:
    """Log-probabilities that say these tokens and nothing else."""
    logits = torch.full((len(answer), d_vocab), _NEVER)
    logits[torch.arange(len(answer)), torch.tensor(answer)] = 0.0
    return logits


def taught(said: Examples, queries: Sequence[Encoded]) -> Examples:
    """The same queries, with their answers and nothing else wanted: the KL to it is the answer's
    surprise, nats per token."""
    answers = [token for query in queries for token in query.answer_ids]
    return replace(said, logits=certain(answers, said.logits.shape[-1]).to(said.logits))
