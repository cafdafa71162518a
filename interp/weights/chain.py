"""A prompt as a chain of patches: weights that say without the prompt what the model says with it.

    chain = patch_chain(subject, "base", "prompt", query)        # of the query's last token
    with patched_weights(plain, chain):                          # any plain Hugging Face copy
        plain(ids_without_the_prompt).logits[0, -1]              # the logits with the prompt

Block by block, each above the blocks that are patched already (Goldwaser et al. 2511.17864, of
which the abstract was read; the construction is this file's own). At the query's last token, gate
and up get the rank-1 update that gives them the prompt's image (`interp.weights.implicit`); the
output projection gets one that adds what the prompt adds beside the MLP. The block then leaves in
the stream what it leaves there with the prompt, and the next one is entered as with the prompt.

- *Parallel blocks* (GPT-NeoX, Falcon, Phi, GPT-J): the MLP reads what enters the block, which is
  the prompt's already, so gate and up need nothing; only the output projection is patched, by what
  attention would have added.
- *Post-norms* (Gemma 2, OLMo 2): an RMSNorm behind the MLP fixes the length of what it writes. The
  output projection's update gives the direction, and the norm's gain is scaled by one number.
- *Positions*: a prompt moves the query. Where positions are embedded (GPT-2), block 0 makes up for
  that, too.

The patches act on all tokens, so the query's other tokens are not as with the prompt, and need not
be: what the last token reads of them is made up for in every block.

It is an identity. Any change of what stands before a query has such a chain, of any length and
content, one for every token and query. It does not show that the prompt works as an update of the
weights: that would need one chain for all tokens (`relative_distances` says how far they are from
it), which is what a LoRA is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.conditions import Setting
from interp.errors import SubjectError
from interp.measures import wide
from interp.names import Site
from interp.queries import Encoded
from interp.subject import Batch, Hook, Subject
from interp.weights.implicit import ModuleStates, Rank1, hooked, projections, read_modules

_BESIDE = ("attn_out", "mixer_out")
_PROBE = 1e3
"""So large a constant goes through an RMSNorm as its gain: its epsilon does not show."""
_ROUNDING = 1e-4


@dataclass(frozen=True)
class PatchChain:
    """What one token's chain adds to plain weights: module -> its rank-1 `updates` (one row), and
    norm -> what is added to its gain (`gains`, `[d_model]`)."""

    updates: Mapping[str, Rank1]
    gains: Mapping[str, Float[Tensor, " d_model"]] = field(default_factory=dict)


def patch_chain(subject: Subject, base: str, prompt: str, query: Encoded) -> PatchChain:
    """The patches with which `base` says at the query's last token what `prompt` says there.

    Needs one run of the prompt and one of base. SubjectError where a block has experts, where its
    MLP runs before its attention, or where a norm other than an RMSNorm stands behind the MLP.
    """
    wanted = read_modules(subject, subject.settings[prompt], [query])
    if flat := [path for path, value in wanted.gave.items() if value.ndim < 2]:
        raise SubjectError(f"{flat[0]} of {subject.name} does not see a batch: no chain is built")
    setting = subject.settings[base]
    if setting.virtual or setting.shift:
        raise SubjectError(f"a chain starts from plain tokens, which {base} has not before a query")
    ids = torch.tensor([[*setting.prefix, *query.ids]], device=subject.device)
    length = torch.tensor([ids.shape[1]], device=subject.device)
    building = _Building(subject, wanted)
    with building.listening():
        subject.run(
            replace(setting, prefix=()), Batch(ids, length, length), hooks=building.hooks(),
            last=True,
        )  # fmt: skip
    return PatchChain(building.updates, building.gains)


class _Building:
    """Patches are made while base runs, each when its module is called, and act from then on."""

    def __init__(self, subject: Subject, wanted: ModuleStates) -> None:
        self.subject, self.wanted = subject, wanted
        self.blocks = projections(subject)
        self.behind = [_behind(subject, wanted, layer) for layer in range(len(self.blocks))]
        self.seen: dict[Site, Tensor] = {}
        self.scales: dict[int, float] = {}
        self.updates: dict[str, Rank1] = {}
        self.gains: dict[str, Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Projections are patched as they are called."""
        into = {path: module for block in self.blocks for path, module in block.into.items()}
        out = {path: module for block in self.blocks for path, module in block.out.items()}
        layers = {path: layer for layer, block in enumerate(self.blocks) for path in block.out}

        def write(path: str, x: Tensor, y: Tensor) -> Tensor:
            return self._patched(path, x, y, self._needed(layers[path], path))

        def read(path: str, x: Tensor, y: Tensor) -> Tensor:
            return self._patched(path, x, y, self.wanted.gave[path][0])

        with hooked(into, read), hooked(out, write):
            yield

    def hooks(self) -> dict[Site, Hook]:
        """What enters every block and what is added beside its MLP is noted; what the MLP adds is
        scaled where its norm's gain is."""
        noted = [s for s in self.wanted.stream if s.name in ("resid_pre", *_BESIDE)]
        found: dict[Site, Hook] = {site: self._note(site) for site in noted}
        for layer, behind in enumerate(self.behind):
            if isinstance(behind, _Norm):
                found[Site("mlp_out", layer)] = self._scale(layer)
        return found

    def _note(self, site: Site) -> Hook:
        def note(value: Tensor) -> None:
            self.seen[site] = wide(value.detach()[0, -1])

        return note

    def _scale(self, layer: int) -> Hook:
        return lambda value: value * self.scales[layer]

    def _patched(self, path: str, x: Tensor, y: Tensor, needed: Tensor) -> Tensor:
        """A module's output with the update that makes it `needed` at the last token."""
        read, given = wide(x.detach()[0, -1]), wide(y.detach()[0, -1])
        if not (square := read.square().sum()):
            raise SubjectError(f"{path} reads zeros at the query's last token: nothing to patch")
        update = Rank1((needed - given)[None], (read / square)[None])
        self.updates[path] = update
        return y + (wide(x) @ update.read.T * update.written).to(y.dtype)

    def _needed(self, layer: int, path: str) -> Tensor:
        """What the output projection is to give, so that the stream leaves the block as with the
        prompt."""
        anatomy, want = self.subject.anatomy, self.wanted.stream
        mlp = Site("mlp_out", layer)
        missing = anatomy.stream[layer] * self._lacking(Site("resid_pre", layer))
        for site in (Site(name, layer) for name in _BESIDE):
            if site in want:
                missing = missing + anatomy.written.get(site, 1.0) * self._lacking(site)
        written = want[mlp][0] + missing / anatomy.written.get(mlp, 1.0)
        behind = self.behind[layer]
        if isinstance(behind, _Norm):
            return self._before(behind, layer, path, written)
        return written / behind

    def _lacking(self, site: Site) -> Tensor:
        if site not in self.seen:
            raise SubjectError(f"{self.subject.name} runs its MLP before {site}: no chain is built")
        return self.wanted.stream[site][0] - self.seen[site]

    def _before(self, norm: _Norm, layer: int, path: str, written: Tensor) -> Tensor:
        """What has to enter a norm, as long as what enters it with the prompt; its gain is scaled
        by what is then missing."""
        direction = written / norm.gain
        needed = direction * self.wanted.gave[path][0].norm() / direction.norm()
        comes = norm(needed)
        self.scales[layer] = float(written @ comes / comes.square().sum())
        self.gains[norm.path] = (self.scales[layer] - 1) * norm.gain
        return needed


@dataclass(frozen=True)
class _Norm:
    """The RMSNorm behind an MLP: its Hugging Face path, and its gain."""

    path: str
    module: nn.Module
    gain: Float[Tensor, " d_model"]

    def __call__(self, x: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        return _through(self.module, x)


def _behind(subject: Subject, wanted: ModuleStates, layer: int) -> float | _Norm:
    """What stands between an MLP and the stream: a factor (1: nothing), or an RMSNorm."""
    (out,) = projections(subject)[layer].out
    given, arrived = wanted.gave[out][0], wanted.stream[Site("mlp_out", layer)][0]
    factor = float(given @ arrived / given.square().sum())
    if torch.allclose(factor * given, arrived, rtol=1e-3, atol=1e-3 * float(arrived.abs().max())):
        return 1.0 if abs(factor - 1) < _ROUNDING else factor
    bridged = getattr(subject.blocks[layer], "ln2_post", None)
    module = getattr(bridged, "original_component", None)
    names = {id(value): name for name, value in subject.weights.parameters.items()}
    name = names.get(id(getattr(module, "weight", None)))
    if module is not None and name is not None:
        gain = _through(module, torch.full_like(given, _PROBE))
        scaled = gain * given * len(gain) ** 0.5 / given.norm()
        if bool(gain.all()) and torch.allclose(scaled, arrived, rtol=1e-3, atol=1e-3):
            return _Norm(name.removesuffix(".weight"), module, gain)
    raise SubjectError(
        f"{subject.name}: what stands between {out} and the stream is no RMSNorm: no chain is built"
    )


@torch.no_grad()
def _through(module: nn.Module, x: Tensor) -> Tensor:
    """A vector through a norm."""
    parameter = next(module.parameters())
    return wide(module(x.to(parameter.dtype)[None, None])[0, 0])


@contextmanager
def patched_weights(hf: nn.Module, chain: PatchChain) -> Iterator[None]:
    """A plain Hugging Face model of the same weights has the chain's patches written into its
    parameters while inside; its own are back afterwards, to the bit."""
    modules, before = dict(hf.named_modules()), []
    try:
        for path, update in chain.updates.items():
            change = torch.outer(update.written[0], update.read[0])
            turned = isinstance(modules[path], Conv1D)
            before.append(_add(modules[path], change.T if turned else change))
        before += [_add(modules[path], gain) for path, gain in chain.gains.items()]
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def _add(module: Any, change: Tensor) -> tuple[nn.Parameter, Tensor]:
    """Add to a module's weight; returns the parameter with what it held."""
    parameter, data = module.weight, module.weight.data
    parameter.data = (wide(data) + change.to(data.device)).to(data.dtype)
    return parameter, data


def stacked_chains(chains: Sequence[PatchChain]) -> dict[str, Rank1]:
    """Module -> the updates of several tokens' chains, a row each."""
    return {
        path: Rank1(
            *(torch.cat(parts) for parts in zip(*(c.updates[path] for c in chains), strict=True))
        )
        for path in chains[0].updates
    }


def relative_distances(
    chains: Sequence[PatchChain], others: Sequence[PatchChain] | None = None
) -> Float[Tensor, "chain other"]:
    """How far apart chains are: Frobenius norm of the difference of all their updates together,
    over the mean of both norms (`relative_l2`), `[0, 2]`; sqrt(2) of orthogonal ones as large.

    A patch that does not depend on the token, such as a LoRA's, is 0 from itself. Gains of norms
    are left out.
    """
    others = chains if others is None else others
    a, b = stacked_chains(chains), stacked_chains(others)
    inner = _total(a, b, lambda x, y: (x.written @ y.written.T) * (x.read @ y.read.T))
    own, other = (
        _total(x, x, lambda u, _: u.written.square().sum(-1) * u.read.square().sum(-1))
        for x in (a, b)
    )
    squares = own[:, None] + other[None] - 2 * inner
    return squares.clamp(min=0).sqrt() / ((own.sqrt()[:, None] + other.sqrt()[None]) / 2)


def _total(
    a: Mapping[str, Rank1], b: Mapping[str, Rank1], of: Callable[[Rank1, Rank1], Tensor]
) -> Tensor:
    return torch.stack([of(a[path], b[path]) for path in a]).sum(0)


def shown(setting: Setting, query: Encoded, written: Sequence[int] = ()) -> Tensor:
    """Token ids `[1, pos]` of a plain run: what precedes the query, the query, what was written."""
    return torch.tensor([[*setting.prefix, *query.ids, *written]])


@torch.no_grad()
def plain_logits(hf: Any, ids: Tensor) -> Float[Tensor, " d_vocab"]:
    """What a plain model says after these ids."""
    return wide(hf(ids.to(hf.device), use_cache=False).logits[0, -1])


def longer(query: Encoded, written: Sequence[int]) -> Encoded:
    """The query with tokens written after it."""
    return replace(query, ids=(*query.ids, *written), answer_ids=())
