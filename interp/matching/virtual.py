"""Virtual tokens that make the model say what another condition says, by gradient.

    tuned = tune(subject, base, target, Tuning(kind="soft_prompt", tokens=8))
    save_virtual_tokens(tuned, folder, subject)   # a peft folder, for SoftPrompt(folder)

A soft prompt is embeddings (Lester et al. 2104.08691), a prefix keys and values of every layer (Li
& Liang 2101.00190). They stand before everything and are computed once a step, not once a query.
With `inside`, the states of some sites are matched too: what stays apart then, no prompt of that
size reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float
from peft import PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load, save, save_file
from torch import Tensor
from transformers import DynamicCache

from interp.conditions import Setting, Virtual
from interp.errors import RunError
from interp.matching.examples import Examples, content
from interp.names import Site
from interp.progress import StepProgress
from interp.statistics import generator_of
from interp.subject import Subject
from interp.subject.adapter_files import WEIGHTS_FILE
from interp.subject.insertions import TENSOR, VirtualTokens

VirtualKind = Literal["soft_prompt", "prefix"]


class Tuning(NamedTuple):
    """How virtual tokens are trained.

    `rate`: Adam's step, as a share of the root mean square of the start (random tokens of the
    vocabulary, or their keys and values); it falls to zero by a cosine. `batch_size`: queries per
    step; each round goes through all of them. `inside`: weight of the states' loss. `patience`:
    steps without a new best.
    """

    kind: VirtualKind
    tokens: int
    steps: int = 300
    rate: float = 0.1
    batch_size: int = 64
    inside: float = 0.0
    patience: int = 100
    seed: int = 0


class Tuned(NamedTuple):
    """The best virtual tokens that were found: `values` `[token, d_model]`, or
    `[layer, 2, kv_head, token, d_head]`; their loss (the mean of a round through all queries), and
    the loss of every step."""

    kind: VirtualKind
    values: Tensor
    loss: float
    history: list[float]

    @property
    def tokens(self) -> int:
        """How many virtual tokens there are."""
        return self.values.shape[-2]

    @property
    def parameters(self) -> int:
        """How many numbers they are."""
        return self.values.numel()

    def before(self, subject: Subject, setting: Setting) -> tuple[Setting, Any]:
        """The setting with these tokens before everything, and the cache of what precedes a
        query."""
        own = after_virtual(setting, self.kind, self.tokens)
        return own, subject.prefill(own, as_virtual(self.kind, self.values))


class _Checkpoint(Protocol):
    """Where an unfinished search is kept."""

    def load(self) -> bytes | None:
        """What an earlier attempt left."""

    def keep(self, content: bytes) -> None:
        """Replace it."""


def tune(
    subject: Subject,
    setting: Setting,
    target: Examples,
    tuning: Tuning,
    progress: StepProgress = lambda step, loss, best: None,
    checkpoint: _Checkpoint | None = None,
) -> Tuned:
    """Minimise the mean KL (nats) of `target` to what `setting` says after virtual tokens, plus
    `inside` times how far the states at its sites are (`distance`)."""
    own = after_virtual(setting, tuning.kind, tuning.tokens)
    steps = min(tuning.steps, math.ceil(len(target) / tuning.batch_size))
    run = _Run.of(initial(subject, setting, tuning), tuning, steps)
    if checkpoint and (content := checkpoint.load()):
        run.restore_(content)
    while not run.over(tuning):
        step = len(run.history)
        some = _batch(target, tuning, step)
        loss = objective(subject, own, some, as_virtual(tuning.kind, run.values), tuning.inside)
        with subject.weights.values_of(own):
            (gradient,) = torch.autograd.grad(loss, [run.values])
        run.step_(float(loss.detach()), gradient)
        progress(step + 1, run.history[-1], run.loss)
        if checkpoint and step % _EVERY == _EVERY - 1:
            checkpoint.keep(run.packed())
    return Tuned(tuning.kind, run.best, run.loss, run.history)


_EVERY = 20
"""Steps between two checkpoints."""


@dataclass
class _Run:
    """A search on its way: its values, the best so far, and the loss of every step, `round` of
    which go through all queries. Only rounds are compared: some queries are easier than others."""

    values: Tensor
    best: Tensor
    history: list[float]
    round: int
    optimiser: torch.optim.Adam
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR

    @classmethod
    def of(cls, start: Tensor, tuning: Tuning, steps: int) -> _Run:
        values = start.clone().requires_grad_()
        size = float(start.square().mean().sqrt())
        optimiser = torch.optim.Adam([values], lr=tuning.rate * size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, tuning.steps)
        return cls(values, start, [], steps, optimiser, schedule)

    @property
    def rounds(self) -> list[float]:
        """The mean loss of every round that is complete."""
        whole = len(self.history) // self.round * self.round
        return [fmean(self.history[i : i + self.round]) for i in range(0, whole, self.round)]

    @property
    def loss(self) -> float:
        """The best so far."""
        return min(self.rounds or self.history)

    def over(self, tuning: Tuning) -> bool:
        rounds, done = self.rounds, len(self.history)
        stuck = done - self.round * (1 + rounds.index(min(rounds))) if rounds else 0
        return done >= tuning.steps or stuck >= tuning.patience

    def step_(self, loss: float, gradient: Tensor) -> None:
        self.history.append(loss)
        if not math.isfinite(loss):
            raise RunError(f"tuning diverged at step {len(self.history)}: lower --rate")
        ends = len(self.history) % self.round == 0
        if ends and self.rounds[-1] == self.loss:
            self.best = self.values.detach().clone()
        self.values.grad = gradient
        self.optimiser.step()
        self.schedule.step()

    def packed(self) -> bytes:
        """All of it as safetensors; rates and losses in float64, which is what they are."""
        tensors = {"values": self.values.detach(), "best": self.best.detach()}
        tensors |= self.optimiser.state.get(self.values, {})
        numbers = {"history": self.history, "lr": [self.optimiser.param_groups[0]["lr"]]}
        tensors |= {name: torch.tensor(own, dtype=torch.float64) for name, own in numbers.items()}
        return save({name: tensor.cpu().clone() for name, tensor in tensors.items()})

    def restore_(self, content: bytes) -> None:
        """The inverse of `packed`."""
        kept = load(content)
        self.values.data = kept.pop("values").to(self.values.device)
        self.best = kept.pop("best").to(self.values.device)
        self.history, rate = kept.pop("history").tolist(), kept.pop("lr").item()
        groups = self.optimiser.state_dict()["param_groups"]
        groups[0]["lr"] = rate
        moments = {0: kept} if kept else {}
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        done = len(self.history)
        place = {"last_epoch": done, "_step_count": done + 1, "_last_lr": [rate]}
        self.schedule.load_state_dict(self.schedule.state_dict() | place)


def _batch(target: Examples, tuning: Tuning, step: int) -> Examples:
    """A step's share of a round through the queries, in an order of its own."""
    size = tuning.batch_size
    if len(target) <= size:
        return target
    number, part = divmod(step, math.ceil(len(target) / size))
    drawn = generator_of(f"tune:{tuning.seed}:{number}").permutation(len(target))
    return target.of(drawn[part * size : (part + 1) * size].tolist())


def after_virtual(setting: Setting, kind: VirtualKind, tokens: int, adapter: str = "") -> Setting:
    """The setting with so many virtual tokens before it."""
    return replace(setting, virtual=Virtual(adapter, tokens, kind == "prefix"))


def as_virtual(kind: VirtualKind, values: Tensor) -> VirtualTokens:
    """Values as what precedes a run; autograd follows."""
    if kind == "soft_prompt":
        return VirtualTokens(embeddings=values[None])
    cache = DynamicCache()
    for layer, (keys, own) in enumerate(values):
        cache.update(keys[None], own[None], layer)
    return VirtualTokens(cache=cache)


def initial(subject: Subject, setting: Setting, tuning: Tuning) -> Tensor:
    """Random tokens of the vocabulary: their embeddings, or their keys and values."""
    generator = generator_of(f"virtual:{tuning.seed}")
    drawn = generator.integers(0, subject.n_words, tuning.tokens).tolist()
    if tuning.kind == "soft_prompt":
        embed = subject.input_embeddings
        with subject.weights.of(setting):  # a LoRA may sit on the embedding
            return embed(torch.tensor(drawn, device=subject.device)).detach().float()
    unbounded = VirtualTokens(cache=DynamicCache())  # a model's own drops what leaves a window
    cache = subject.prefill(replace(setting, prefix=tuple(drawn)), unbounded)
    layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return torch.stack(layers).float()


def objective(
    subject: Subject,
    own: Setting,
    target: Examples,
    virtual: VirtualTokens,
    inside: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean KL over queries, and `inside` times the mean `distance` over sites."""
    sites = target.inside if inside else {}
    seen: dict[Site, Tensor] = {}
    cache = subject.prefill(own, virtual, grad=True)
    hooks = {site: _keep(seen, site) for site in sites}
    loss = target.divergence(target.logits_of(subject, own, cache, hooks, grad=True)).mean()
    lengths = target.batch.lengths
    apart = [distance(site, seen[site], value, lengths) for site, value in sites.items()]
    return loss + inside * torch.stack(apart).mean() if apart else loss


def _keep(seen: dict[Site, Tensor], site: Site) -> Callable[[Tensor], None]:
    def hook(value: Tensor) -> None:
        seen[site] = content(value) if site.name == "pattern" else value

    return hook


def distance(site: Site, own: Tensor, target: Tensor, lengths: Tensor) -> Float[Tensor, ""]:
    """How far a site's values are from the target ones, over the queries' tokens: the squared
    distance as a share of the target square; of content patterns the mean `KL(target ‖ own)` of
    their rows, nats."""
    inside = torch.arange(own.shape[-2], device=own.device) < lengths[:, None]
    if site.name == "pattern":
        rows = inside[:, None].expand(own.shape[:-1])
        p, q = target[rows], own[rows]
        terms = torch.xlogy(p, p) - torch.xlogy(p, q.clamp(min=torch.finfo(q.dtype).tiny))
        return terms.sum(-1).mean()
    gap = (own - target).square().sum(-1)
    return gap[inside].sum() / target.square().sum(-1)[inside].sum()


def save_virtual_tokens(tuned: Tuned, folder: Path, subject: Subject) -> None:
    """Write a peft folder, as `peft` itself would."""
    kinds: Mapping[VirtualKind, Any] = {
        "soft_prompt": PromptTuningConfig,
        "prefix": PrefixTuningConfig,
    }
    heads, width, values = subject.n_heads, subject.d_model, tuned.values
    if tuned.kind == "prefix":
        heads, width = values.shape[2], values.shape[2] * values.shape[4]
        values = values.permute(3, 0, 1, 2, 4).flatten(1)
    config = kinds[tuned.kind](
        task_type="CAUSAL_LM",
        base_model_name_or_path=subject.name,
        inference_mode=True,
        num_virtual_tokens=tuned.tokens,
        token_dim=width,
        num_attention_heads=heads,
        num_layers=subject.n_layers,
        num_transformer_submodules=1,
    )
    try:
        config.save_pretrained(str(folder))
        save_file({TENSOR: values.detach().cpu().contiguous()}, folder / WEIGHTS_FILE)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error
