"""Routers: which experts of a mixture-of-experts layer a token goes to, and with what share.

    router = router_of(block)                       # the module beside the block's experts, or None
    routed(router(states))                          # [token, expert, 2]: its number, its weight
    LINKS[link_of([...])](numbers)                  # the router's distribution over experts

Routers differ in what they make of their logits: a softmax, or a sigmoid for every expert by
itself; over all experts, or over the chosen ones. The weights that they hand to the experts tell
which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_Routed = Float[Tensor, "token expert 2"]


def router_of(block: nn.Module) -> nn.Module | None:
    """The router of a block: what stands beside its experts as their gate."""
    for module in block.modules():
        children = module._modules
        if "experts" in children:
            found = children.get("gate") or children.get("router")
            return found if isinstance(found, nn.Module) else None
    return None


def routed(output: Any) -> _Routed:
    """What a router says of every expert (logits, or shares where it shows these), and the weight
    of its output in the layer's: 0 where it is not chosen.

    NaN where the output is not understood: neither logits, weights and indices of the chosen
    experts, nor (Llama 4) weights of all experts and their logits.
    """
    parts = [part.detach().flatten(0, -2) for part in output if isinstance(part, Tensor)]
    chosen = next((part for part in parts if not part.is_floating_point()), None)
    numbers = [part for part in parts if part.is_floating_point()]
    widest = max(numbers, key=lambda part: part.shape[-1])
    weights = torch.full_like(widest, torch.nan)
    if chosen is not None:
        given = [part for part in numbers if part is not widest and part.shape == chosen.shape]
        if given:
            weights = torch.zeros_like(widest).scatter(-1, chosen, given[0].to(widest.dtype))
    elif len(numbers) == 2 and numbers[0].shape == numbers[1].shape:
        weights, widest = numbers
    return torch.stack([widest, weights.to(widest.dtype)], dim=-1)


def _sigmoids(numbers: Tensor) -> Tensor:
    scores = numbers.sigmoid()
    return scores / scores.sum(-1, keepdim=True)


LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "shares": lambda numbers: numbers,
    "softmax": lambda numbers: numbers.softmax(-1),
    "sigmoid": _sigmoids,
}
"""How what a router says of every expert becomes a distribution over experts."""


def link_of(routers: Sequence[_Routed]) -> str:
    """The name of `LINKS` that fits the weights which routers gave to the experts that they chose;
    "" where none does.

    Shares are what sums to 1. A link fits whose scores are the weights up to one factor, or else
    whose shares are, up to a factor for every token (they are made to sum to 1 over the chosen).
    """
    if not routers:
        return ""
    slack = torch.finfo(routers[0].dtype).eps ** 0.5
    numbers, weights = (torch.cat([r[..., i] for r in routers]).double() for i in (0, 1))
    if bool(((numbers >= 0).all(-1) & ((numbers.sum(-1) - 1).abs() < slack)).all()):
        return "shares"
    scores = {"softmax": numbers.softmax(-1), "sigmoid": numbers.sigmoid()}
    for summed in (lambda x: x.sum(), lambda x: x.sum(-1, keepdim=True)):
        for link, score in scores.items():
            own = score.where(weights != 0, 0.0)
            if float((own / summed(own) - weights / summed(weights)).abs().max()) < slack:
                return link
    return ""


@contextlib.contextmanager
def read_outputs(hooks: Sequence[tuple[nn.Module, Callable[[Any], Any]]]) -> Iterator[None]:
    """Inside, every module's output is shown to its hook, which must not change it."""

    def showing(hook: Callable[[Any], Any]) -> Callable[..., None]:
        def show(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if hook(output) is not None:
                raise ValueError("what a router gives can be read, not edited")

        return show

    handles = [module.register_forward_hook(showing(hook)) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
