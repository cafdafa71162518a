"""What a run says of whole answers: sums over the tokens that predict them, nats per answer.

    tokens = batch.answer                               # batch = Batch.forced(queries)
    sequence_kl(own, patched, tokens)                   # [query], from logits [token, d_vocab]

Without an answer the token that follows the query is all of it, and a sum of one number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batch import Tokens
from interp.measures.output import kl_divergence, log_odds
from interp.queries import Encoded


def sequence_kl(
    p: Float[Tensor, "token d_vocab"], q: Float[Tensor, "token d_vocab"], tokens: Tokens
) -> Float[Tensor, " query"]:
    """`KL(p ‖ q)` of the whole answer as it is forced: the sum over its tokens, in `[0, inf)`."""
    return tokens.total(kl_divergence(p, q))


def sequence_odds(
    logits: Float[Tensor, "token d_vocab"], targets: Int[Tensor, " token"], tokens: Tokens
) -> Float[Tensor, " query"]:
    """Log-odds of the answer's tokens, each given those before it, summed."""
    return tokens.total(log_odds(logits, targets))


def targets_of(
    queries: Sequence[Encoded], logits: Float[Tensor, "token d_vocab"]
) -> Int[Tensor, " token"]:
    """The tokens of every query's answer; without one, what these logits say."""
    given = [token for query in queries for token in query.answer_ids or (-1,)]
    known = torch.tensor(given, device=logits.device)
    return known.where(known >= 0, logits.argmax(-1))
