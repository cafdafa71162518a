"""The gradient of the answer's log-odds at every reader's own input, in one run of a condition.

    for receiver, gradient in read_gradients(subject, "base", batch, cache, receivers, targets):
        (difference * gradient).sum()   # an edge to first order: Syed et al. 2310.10348, eq. 1

A head's queries are computed from the block's input by a norm and a projection; the gradient at
them is pulled back through just these, as autograd has them, to the residual stream that this head
alone reads for its queries. Nothing of the model is split or restated, so that LoRAs, fused
projections and norms of heads are what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.edges.nodes import InputNode
from interp.errors import SubjectError
from interp.measures.output import log_odds
from interp.names import Site
from interp.patching.interchange import n_heads
from interp.subject import Batch, Hook, Subject

_OUTPUTS = {"mixer": "mixer_out", "mlp": "mlp_out"}
"""Part -> the site of what it makes of its input."""

CLOSE = 1e-3
"""Largest relative difference of a block's gradient from the sum of those of its readers."""


def receivers_of(subject: Subject) -> list[InputNode]:
    """Everything that reads the residual stream, in computing order; a `SubjectError` where parts
    of a block cannot be reached separately."""
    anatomy, points = subject.anatomy, subject.anatomy.points
    reason = ""
    if not anatomy.layers("z"):
        reason = "it has no heads"
    elif not anatomy.mixed:
        reason = "a gate or a norm stands between its heads' values and their outputs"
    elif any(factor != 1 for factor in anatomy.stream):
        reason = "its blocks scale the residual stream"
    elif anatomy.layers("per_layer_out"):
        reason = "its blocks read embeddings of their own"
    if reason:
        raise SubjectError(
            f"{subject.name}: edges cannot be traced, {reason}; `interp patch` measures its nodes"
        )
    found = []
    for layer in range(subject.n_layers):
        found += [
            InputNode(part, layer, head)
            for part in "qkv"
            if Site(part, layer) in points
            for head in range(n_heads(subject, part))
        ]
        beside = Site("resid_mid", layer) not in points
        found += [
            InputNode(part, layer, None, part == "mlp" and beside)
            for part, site in _OUTPUTS.items()
            if Site(site, layer) in points
        ]
    return [*found, InputNode("logits", subject.n_layers)]


def input_of(receiver: InputNode) -> Site:
    """What a receiver reads."""
    if receiver.part == "logits":
        return Site("resid_post", receiver.layer - 1)
    late = receiver.part == "mlp" and not receiver.beside
    return Site("resid_mid" if late else "resid_pre", receiver.layer)


def output_of(receiver: InputNode) -> Site:
    """What a receiver makes of it."""
    return Site(_OUTPUTS.get(receiver.part, receiver.part), receiver.layer)


def read_gradients(
    subject: Subject,
    name: str,
    batch: Batch,
    cache: Any,
    receivers: Sequence[InputNode],
    targets: Int[Tensor, " token"],
) -> Iterator[tuple[InputNode, Float[Tensor, "batch query_pos d_model"]]]:
    """InputNode by receiver, the last ones first, the gradient at its own input; of every query its
    own, summed over its answer's tokens. A `SubjectError` where they do not add up to the gradient
    at the blocks' inputs: then something reads the stream that is not among them."""
    graph = _Graph.of(subject, name, batch, cache, receivers, targets)
    with subject.weights.values_of(subject.settings[name]):
        total = torch.zeros_like(graph.gradients[input_of(receivers[-1])])
        here = input_of(receivers[-1])
        for receiver in reversed(receivers):
            if input_of(receiver) != here:
                graph.check(subject, here, total)
                here = input_of(receiver)
            own = graph.pulled(receiver)
            total = total + own
            yield receiver, own
        graph.check(subject, here, total)


class _Graph:
    """A condition's run, held by autograd: values and gradients of what receivers read and make."""

    def __init__(self, values: Mapping[Site, Tensor], gradients: Mapping[Site, Tensor]) -> None:
        self.values, self.gradients = values, gradients

    @classmethod
    def of(
        cls,
        subject: Subject,
        name: str,
        batch: Batch,
        cache: Any,
        receivers: Sequence[InputNode],
        targets: Tensor,
    ) -> _Graph:
        values: dict[Site, Tensor] = {}
        entry = Site("resid_pre", 0)

        def reading(site: Site) -> Hook:
            def hook(value: Tensor) -> Tensor:
                begun = value.detach().requires_grad_() if site == entry else value
                values[site] = begun.clone()  # what the model goes on with
                return values[site]

            return hook

        ends = [input_of(receiver) for receiver in receivers]
        ends += [output_of(r) for r in receivers if r.part != "logits"]
        sites = list(dict.fromkeys([entry, *ends]))
        tokens, setting = batch.answer, subject.settings[name]
        with subject.weights.values_of(setting):
            logits = subject.run(
                setting,
                batch,
                copy.deepcopy(cache),  # used up where autograd follows
                {site: reading(site) for site in sites},
                columns=tokens.columns,
                grad=True,
            )
            with torch.enable_grad():
                total = log_odds(tokens.pick_rows(logits), targets).sum()
            found = torch.autograd.grad(total, [values[s] for s in sites], retain_graph=True)
        return cls(values, dict(zip(sites, found, strict=True)))

    def pulled(self, receiver: InputNode) -> Tensor:
        """The gradient at a receiver's own input."""
        source = input_of(receiver)
        if receiver.part == "logits":
            return self.gradients[source]
        made = output_of(receiver)
        slope = self.gradients[made]
        if receiver.head is not None:
            alone = torch.zeros_like(slope)
            alone[:, :, receiver.head] = slope[:, :, receiver.head]
            slope = alone
        (own,) = torch.autograd.grad(
            self.values[made], self.values[source], slope, retain_graph=True
        )
        return own

    def check(self, subject: Subject, site: Site, total: Tensor) -> None:
        """Whether the readers from a place on add up to all that depends on it."""
        whole = self.gradients[site]
        error = float((total - whole).abs().max() / whole.abs().max().clamp(min=1e-30))
        if not error <= CLOSE:
            raise SubjectError(
                f"{subject.name}: edges cannot be traced, its heads and MLPs are not all that "
                f"reads {site} (their gradients miss {error:.1g} of it); `interp patch` measures "
                "its nodes"
            )
