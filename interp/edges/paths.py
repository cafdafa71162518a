"""One edge patched exactly: the source's contribution of one sender into one receiver's input.

    effects = path_effects(subject, setting, batch, own, differences, edges, targets, rows)

The receiver computes its queries (keys, values, output) from its input with the sender's write
replaced by the source's; all else is as it was, and everything above is computed again (path
patching: Goldowsky-Dill et al. 2304.05969).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.capture import capture, keep
from interp.conditions import Setting
from interp.edges.nodes import Edge, InputNode, Sender
from interp.edges.reading import input_of, output_of
from interp.edits import Edit, add, replace
from interp.names import Site
from interp.patching.interchange import ConditionRun
from interp.patching.patched import patched_logits
from interp.patching.sequences import sequence_odds
from interp.subject import Batch, Subject


def path_effects(
    subject: Subject,
    setting: Setting,
    batch: Batch,
    own: ConditionRun,
    differences: Mapping[Sender, Float[Tensor, "batch query_pos d_model"]],
    edges: Sequence[Edge],
    targets: Int[Tensor, " token"],
    rows: int,
) -> Float[ndarray, "batch edge"]:
    """The change of the answer's log-odds (nats, summed over its tokens) by each edge alone. `own`:
    the run that is patched, with its `resid_pre` of every layer; `differences`: what senders write
    in the source's run, less what they write in it; `rows`: queries in one forward pass."""
    patches = [
        [_through(subject, setting, batch, own, edge.receiver, differences[edge.sender])]
        for edge in edges
    ]
    before = sequence_odds(own.logits, targets, batch.answer).cpu().numpy()
    found = np.empty((len(batch.ids), len(edges)))
    for numbers, logits in patched_logits(
        subject, setting, batch, own.cache, own.entries, patches, rows
    ):
        for number, row in zip(numbers, logits, strict=True):
            after = sequence_odds(row, targets, batch.answer).cpu().numpy()
            found[:, number] = after - before
    return found


def _through(
    subject: Subject,
    setting: Setting,
    batch: Batch,
    own: ConditionRun,
    receiver: InputNode,
    difference: Tensor,
) -> Edit:
    """What a receiver makes of its input with a difference in it, as an edit of the run."""
    place = input_of(receiver)
    if receiver.part == "logits":
        return Edit(place, add(difference))
    layer, made = receiver.layer, output_of(receiver)
    entry = Site("resid_pre", layer)
    edits = [Edit(entry, replace(own.values[entry]))]
    edits.append(Edit(place, add(difference)))
    got = capture(
        subject,
        setting,
        batch,
        own.cache,
        {made: keep},
        edits,
        start=layer,
        end=layer + 1,
        last=True,
    )
    value = got.values[made]
    new = value if receiver.head is None else value[:, receiver.head]
    return Edit(made, replace(new), receiver.head)
