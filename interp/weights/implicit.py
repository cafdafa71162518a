"""A prompt as an update of the weights: what every block's MLP would have to be without it.

    seen = {c: read_modules(subject, subject.settings[c], queries) for c in ("base", "prompt")}
    update = implicit_updates(seen["base"], seen["prompt"], "model.layers.2.mlp.up_proj")
    errors = identity_errors(subject, "base", "prompt", queries)      # one per block

With u0 and u what enters the MLP in base's and in the prompt's run, `dW = W (u - u0) u0' / ‖u0‖²`
gives base's u0 the prompt's image, and the block then says what it says with the prompt, once what
the prompt adds beside the MLP is added too (Dherin et al. 2507.16003, theorem 2.2). Every query has
its own; a gated MLP has one for gate and one for up. It is true of any change of activations: the
identity checks the instrument, and findings are made of many updates (`interp.weights.stacked`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.capture import capture, chunks, keep
from interp.conditions import Setting
from interp.edits import Edit, replace
from interp.errors import SubjectError
from interp.measures import wide
from interp.names import Site
from interp.queries import Encoded
from interp.subject import Batch, Subject
from interp.subject.fused import Slice

_Delta = Callable[[Tensor], Tensor]
"""What an update adds to a module's output, from its input."""

_Key = TypeVar("_Key")

_STREAM = ("resid_pre", "attn_out", "mixer_out", "mlp_out", "resid_post")


class _Projections(NamedTuple):
    """The live modules of one block's MLP by their Hugging Face paths: those that read its input
    (up, and gate; one where they are fused), and the one that writes its output."""

    into: dict[str, nn.Module]
    out: dict[str, nn.Module]


def projections(subject: Subject) -> list[_Projections]:
    """Those of every block; SubjectError where a block has experts instead."""
    known = {id(layer): path for path, layer in subject.weights.layers.items()}
    for name, parameter in subject.weights.parameters.items():
        known.setdefault(id(parameter), name.removesuffix(".weight"))
    found = []
    for number, block in enumerate(subject.blocks):
        mlp = getattr(block, "mlp", None)
        if not (hasattr(mlp, "in") and hasattr(mlp, "out")):
            raise SubjectError(
                f"{subject.name}: block {number} has no MLP of its own projections (it has "
                "experts, or none)"
            )
        parts = (_named(mlp, names, known) for names in (("gate", "in"), ("out",)))
        found.append(_Projections(*parts))
    return found


def _named(mlp: Any, names: Sequence[str], known: Mapping[int, str]) -> dict[str, nn.Module]:
    """Paths of an MLP's parts: a tuner layer is known itself, any other module by its weight."""
    live = [getattr(mlp, name).original_component for name in names if hasattr(mlp, name)]
    live = [module.whole if isinstance(module, Slice) else module for module in live]
    return {known.get(id(module)) or known[id(module.weight)]: module for module in live}


@contextmanager
def hooked(modules: Mapping[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """`hook(path, input, output)` sees every call of these modules; what it returns, if anything,
    takes the output's place."""
    with ExitStack() as stack:
        for path, module in modules.items():
            handle = module.register_forward_hook(
                lambda _, inputs, output, path=path: hook(path, inputs[0], output)
            )
            stack.callback(handle.remove)
        yield


@contextmanager
def patched_projections(subject: Subject, deltas: Mapping[str, _Delta]) -> Iterator[None]:
    """The MLPs' projections of these paths give what their deltas add on top while inside."""
    live = {p: m for block in projections(subject) for p, m in (block.into | block.out).items()}
    with hooked({p: live[p] for p in deltas}, lambda path, x, y: y + deltas[path](x).to(y.dtype)):
        yield


class ModuleStates(NamedTuple):
    """What modules read and gave, and the stream, at some query tokens of one condition; float64.

    `read`, `gave`: path -> `[token, d]`; `stream`: site -> `[token, d_model]`.
    """

    read: dict[str, Float[Tensor, "token d_in"]]
    gave: dict[str, Float[Tensor, "token d_out"]]
    stream: dict[Site, Float[Tensor, "token d_model"]]

    def beside(self, layer: int) -> Float[Tensor, "token d_model"]:
        """What a block adds its MLP's output to (also of a parallel block)."""
        written = (Site(name, layer) for name in ("attn_out", "mixer_out"))
        mixed = next(self.stream[site] for site in written if site in self.stream)
        return self.stream[Site("resid_pre", layer)] + mixed


def read_modules(
    subject: Subject,
    setting: Setting,
    queries: Sequence[Encoded],
    *,
    size: int = 64,
    last: bool = True,
    deltas: Mapping[str, _Delta] | None = None,
) -> ModuleStates:
    """Run a setting, with `deltas` added to its projections, on queries' last tokens, or on all.

    `size`: queries at a time. In memory: d_model and d_mlp numbers per token and block.
    """
    blocks = projections(subject)
    modules = {p: m for block in blocks for p, m in (block.into | block.out).items()}
    parts: list[ModuleStates] = []
    with patched_projections(subject, deltas or {}):
        cache = subject.prefill(setting)
        for chunk in chunks(queries, size):
            batch = Batch.of(chunk, subject.device)
            pick = partial(_at, _tokens(batch, last=last))
            seen = ModuleStates({}, {}, {})

            def note(
                path: str, x: Tensor, y: Tensor, seen: ModuleStates = seen, pick: Any = pick
            ) -> None:
                seen.read[path], seen.gave[path] = pick(x), pick(y)

            with hooked(modules, note):
                sites = {s: pick for s in subject.anatomy.points if s.name in _STREAM}
                seen.stream.update(capture(subject, setting, batch, cache, sites).values)
            parts.append(seen)
    return ModuleStates(
        _joined([part.read for part in parts]),
        _joined([part.gave for part in parts]),
        _joined([part.stream for part in parts]),
    )


def _joined(parts: Sequence[Mapping[_Key, Tensor]]) -> dict[_Key, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _tokens(batch: Batch, *, last: bool) -> tuple[Tensor, Tensor]:
    """Row and column of every query's last token, or of all its tokens, in the queries' order."""
    places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    ends = batch.lengths[:, None]
    mask = places == ends - 1 if last else places < ends
    rows, columns = mask.nonzero(as_tuple=True)
    return rows, columns


def _at(places: tuple[Tensor, Tensor], value: Tensor) -> Tensor:
    return wide(value.detach()[places])


class Rank1(NamedTuple):
    """One update per query, `written read'`, never multiplied out."""

    written: Float[Tensor, "query d_out"]
    read: Float[Tensor, "query d_in"]


def implicit_updates(base: ModuleStates, prompt: ModuleStates, path: str) -> Rank1:
    """A projection's updates: `W (u - u0)`, which its bias leaves alone, and `u0 / ‖u0‖²`."""
    u0 = base.read[path]
    return Rank1(prompt.gave[path] - base.gave[path], u0 / u0.square().sum(-1, keepdim=True))


def identity_errors(
    subject: Subject, base: str, prompt: str, queries: Sequence[Encoded]
) -> Float[Tensor, " layer"]:
    """How far every block without the prompt, its projections updated and what the prompt adds
    beside them added, is from the block with it: largest relative l2 over the queries' last tokens.

    One run does all blocks: what enters each is base's.
    """
    settings = [subject.settings[name] for name in (base, prompt)]
    without, with_it = (read_modules(subject, s, queries, size=len(queries)) for s in settings)
    batch, cache = Batch.of(queries, subject.device), subject.prefill(settings[0])
    pre, post = (subject.sites(name) for name in ("resid_pre", "resid_post"))
    entered = capture(subject, settings[0], batch, cache, dict.fromkeys(pre, keep)).values
    deltas = {
        path: partial(_each_its_own, implicit_updates(without, with_it, path))
        for block in projections(subject)
        for path in block.into
    }
    edits = [Edit(site, replace(value)) for site, value in entered.items()]
    pick = partial(_at, _tokens(batch, last=True))
    with patched_projections(subject, deltas):
        got = capture(subject, settings[0], batch, cache, dict.fromkeys(post, pick), edits).values
    errors = []
    for site in post:
        shift = with_it.beside(site.layer) - without.beside(site.layer)
        wanted = with_it.stream[site]
        errors.append(((got[site] + shift - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
    return torch.stack(errors)


def _each_its_own(update: Rank1, x: Float[Tensor, "query pos d_in"]) -> Tensor:
    """Every query's own update, on all of its tokens."""
    written, read = (part.to(x.dtype)[:, None] for part in update)
    return (x * read).sum(-1, keepdim=True) * written
