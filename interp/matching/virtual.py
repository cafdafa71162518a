"""Virtual tokens that make the model say what another condition says, by gradient.

    tuned = tune(subject, base, wanted, Tuning(kind="soft_prompt", tokens=8))
    save(tuned, folder, subject)        # a peft folder: SoftPrompt(folder) is the condition

A soft prompt is embeddings (Lester et al. 2104.08691), a prefix keys and values of every layer (Li
& Liang 2101.00190). They stand before everything and are computed once a step, not once a query.
With `inside`, the states of some sites are matched too: what stays apart then, no prompt of that
size reaches.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from interp.conditions import Setting, Virtual
from interp.errors import RunError
from interp.matching.examples import Examples, content
from interp.names import Site
from interp.statistics import generator_of
from interp.subject import Subject
from interp.subject.adapters import WEIGHTS
from interp.subject.insertions import TENSOR, VirtualTokens

Kind = Literal["soft_prompt", "prefix"]
Progress = Callable[[int, float, float], None]
"""Called after every step with (step, loss, best so far)."""


class Tuning(NamedTuple):
    """How virtual tokens are trained.

    `rate`: Adam's step, as a share of the root mean square of the start (random tokens of the
    vocabulary, or their keys and values); it falls to zero by a cosine. `batch_size`: queries per
    step. `inside`: weight of the states' loss. `patience`: steps without a new best.
    """

    kind: Kind
    tokens: int
    steps: int = 300
    rate: float = 0.1
    batch_size: int = 64
    inside: float = 0.0
    patience: int = 100
    seed: int = 0


class Tuned(NamedTuple):
    """The best virtual tokens that were found: `values` `[token, d_model]`, or
    `[layer, 2, kv_head, token, d_head]`; its loss, and the loss of every step."""

    kind: Kind
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


class Checkpoint(Protocol):
    """Where an unfinished search is kept."""

    def load(self) -> bytes | None:
        """What an earlier attempt left."""

    def keep(self, content: bytes) -> None:
        """Replace it."""


def tune(
    subject: Subject,
    setting: Setting,
    wanted: Examples,
    tuning: Tuning,
    progress: Progress = lambda step, loss, best: None,
    checkpoint: Checkpoint | None = None,
) -> Tuned:
    """Minimise the mean KL (nats) of `wanted` to what `setting` says after virtual tokens, plus
    `inside` times how far the states at its sites are (`distance`)."""
    own = after_virtual(setting, tuning.kind, tuning.tokens)
    run = _Run.of(initial(subject, setting, tuning), tuning)
    if checkpoint and (content := checkpoint.load()):
        run.restore_(content)
    while not run.over(tuning):
        step = len(run.history)
        some = _batch(wanted, tuning, step)
        loss = objective(subject, own, some, as_virtual(tuning.kind, run.values), tuning.inside)
        with subject.weights.values_of(own):
            (gradient,) = torch.autograd.grad(loss, [run.values])
        run.step_(float(loss.detach()), gradient)
        progress(step + 1, run.history[-1], min(run.history))
        if checkpoint and step % EVERY == EVERY - 1:
            checkpoint.keep(run.packed())
    return Tuned(tuning.kind, run.best, min(run.history), run.history)


EVERY = 20
"""Steps between two checkpoints."""


@dataclass
class _Run:
    """A search on its way: its values and the best so far, with their losses."""

    values: Tensor
    best: Tensor
    history: list[float]
    optimiser: torch.optim.Adam
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR

    @classmethod
    def of(cls, start: Tensor, tuning: Tuning) -> _Run:
        values = start.clone().requires_grad_()
        size = float(start.square().mean().sqrt())
        optimiser = torch.optim.Adam([values], lr=tuning.rate * size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, tuning.steps)
        return cls(values, start, [], optimiser, schedule)

    def over(self, tuning: Tuning) -> bool:
        if len(self.history) >= tuning.steps:
            return True
        stuck = len(self.history) - self.history.index(min(self.history)) if self.history else 0
        return stuck > tuning.patience

    def step_(self, loss: float, gradient: Tensor) -> None:
        self.history.append(loss)
        if not math.isfinite(loss):
            raise RunError(f"tuning diverged at step {len(self.history)}: lower --rate")
        if loss == min(self.history):
            self.best = self.values.detach().clone()
        self.values.grad = gradient
        self.optimiser.step()
        self.schedule.step()

    def packed(self) -> bytes:
        file = io.BytesIO()
        kept = {"values": self.values.detach(), "best": self.best, "history": self.history}
        states = {"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict()}
        torch.save({**kept, **states}, file)
        return file.getvalue()

    def restore_(self, content: bytes) -> None:
        kept = torch.load(io.BytesIO(content), weights_only=True)
        self.values.data = kept["values"].to(self.values.device)
        self.best, self.history = kept["best"].to(self.values.device), kept["history"]
        self.optimiser.load_state_dict(kept["optimiser"])
        self.schedule.load_state_dict(kept["schedule"])


def _batch(wanted: Examples, tuning: Tuning, step: int) -> Examples:
    if len(wanted) <= tuning.batch_size:
        return wanted
    drawn = generator_of(f"tune:{tuning.seed}:{step}").permutation(len(wanted))
    return wanted.of(drawn[: tuning.batch_size].tolist())


def after_virtual(setting: Setting, kind: Kind, tokens: int, adapter: str = "") -> Setting:
    """The setting with so many virtual tokens before it."""
    return replace(setting, virtual=Virtual(adapter, tokens, kind == "prefix"))


def as_virtual(kind: Kind, values: Tensor) -> VirtualTokens:
    """Values as what precedes a run; autograd follows."""
    if kind == "soft_prompt":
        return VirtualTokens(embeddings=values[None])
    cache = DynamicCache()
    for layer, (keys, own) in enumerate(values):
        cache.update(keys[None], own[None], layer)
    return VirtualTokens(cache=cache)


def initial(subject: Subject, setting: Setting, tuning: Tuning) -> Tensor:
    """Random tokens of the vocabulary: their embeddings, or their keys and values."""
    embed = subject.bridge.original_model.get_input_embeddings()
    words = len(subject.tokenizer)
    drawn = generator_of(f"virtual:{tuning.seed}").integers(0, words, tuning.tokens)
    ids = torch.tensor(drawn, device=subject.device)
    if tuning.kind == "soft_prompt":
        return embed(ids).detach().float()
    cache = subject.prefill(replace(setting, prefix=()), ids[None])
    layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return torch.stack(layers).float()


def objective(
    subject: Subject,
    own: Setting,
    wanted: Examples,
    virtual: VirtualTokens,
    inside: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean KL over queries, and `inside` times the mean `distance` over sites."""
    seen: dict[Site, Tensor] = {}
    hooks = {site: _keep(seen, site) for site in (wanted.inside if inside else ())}
    cache = subject.prefill(own, virtual, grad=True)
    loss = wanted.kl(subject.run(own, wanted.batch, cache, hooks, grad=True)).mean()
    if inside:
        loss = (
            loss
            + inside
            * torch.stack(
                [
                    distance(site, seen[site], value, wanted.batch.lengths)
                    for site, value in wanted.inside.items()
                ]
            ).mean()
        )
    return loss


def _keep(seen: dict[Site, Tensor], site: Site) -> Callable[[Tensor], None]:
    def hook(value: Tensor) -> None:
        seen[site] = content(value) if site.name == "pattern" else value

    return hook


def distance(site: Site, own: Tensor, wanted: Tensor, lengths: Tensor) -> Float[Tensor, ""]:
    """How far a site's values are from the wanted ones, over the queries' tokens: the squared
    distance as a share of the wanted square; of content patterns the mean `KL(wanted ‖ own)` of
    their rows, nats."""
    inside = torch.arange(own.shape[-2], device=own.device) < lengths[:, None]
    if site.name == "pattern":
        rows = inside[:, None].expand(own.shape[:-1])
        p, q = wanted[rows], own[rows]
        terms = torch.xlogy(p, p) - torch.xlogy(p, q.clamp(min=torch.finfo(q.dtype).tiny))
        return terms.sum(-1).mean()
    gap = (own - wanted).square().sum(-1)
    return gap[inside].sum() / wanted.square().sum(-1)[inside].sum()


def save(tuned: Tuned, folder: Path, subject: Subject) -> None:
    """Write a peft folder, as `peft` itself would."""
    kinds: Mapping[Kind, Any] = {"soft_prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}
    config = kinds[tuned.kind](num_virtual_tokens=tuned.tokens, task_type="CAUSAL_LM")
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(subject.bridge.original_model.config)
        filled = get_peft_model(bare, config).peft_config["default"]
    filled.base_model_name_or_path = subject.name
    filled.inference_mode = True
    values = tuned.values
    if tuned.kind == "prefix":
        values = values.permute(3, 0, 1, 2, 4).flatten(1)
    try:
        filled.save_pretrained(str(folder))
        save_file({TENSOR: values.detach().cpu().contiguous()}, folder / WEIGHTS)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error
