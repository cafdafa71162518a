"""A run's prompts as updates of the weights: rows of its table.

    rows, errors = measure_prompts(subject, "base", ["prompt_0"], ["lora_0"], queries, settings)

Every query has its own update (`interp.weights.implicit`). Are they one update, and the LoRA's?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.measures import wide
from interp.patching.ablation import layer_of
from interp.progress import Progress
from interp.queries import Encoded
from interp.registry import MEASURES
from interp.subject import Subject
from interp.weights import spectra, stacked
from interp.weights.implicit import (
    ModuleStates,
    Rank1,
    identity_errors,
    implicit_updates,
    projections,
    read_modules,
)
from interp.weights.measured import TableRow
from interp.weights.settings import Weighing
from interp.weights.stacked import Interval
from interp.weights.updates import update_of, weight_matrices

_CHECKED = 4
"""Queries on which the identity is checked; fewer than three have no spread."""


class _Case(NamedTuple):
    """One projection's updates by one prompt; what chance would write instead (a draw each)."""

    path: str
    update: Rank1
    random: list[Rank1]
    shuffled: list[Rank1]


def measure_prompts(
    subject: Subject,
    base: str,
    prompts: Sequence[str],
    adapters: Sequence[str],
    queries: Sequence[Encoded],
    settings: Weighing,
    progress: Progress,
) -> tuple[list[TableRow], dict[str, float]]:
    """Rows of every prompt and projection that reads an MLP's input, at the queries' last tokens;
    and how far the identity is out, by prompt (largest relative l2 of a block's output).

    `implicit_rank`, `implicit_cosine`, each with `_chance` (the prompt moves what enters the MLP
    as far, in random directions) and `_shuffled` (every query has another's input); and with every
    adapter (`reference`) `implicit_overlap_left` and `_right`, each with its `_chance` (random
    spaces), and `implicit_overlap_left_random` (random directions through the same weights).
    """
    rows: list[TableRow] = []
    errors = {}
    modules = {path: m for block in projections(subject) for path, m in block.into.items()}
    without = read_modules(subject, subject.settings[base], queries)
    for prompt in prompts:
        errors[prompt] = float(identity_errors(subject, base, prompt, queries[:_CHECKED]).max())
        with_it = read_modules(subject, subject.settings[prompt], queries)
        for path, module in modules.items():
            with subject.weights.of(subject.settings[base]):
                case = _case(without, with_it, path, module, settings)
            own = [*_alike(case), *_overlaps(subject, case, adapters, settings)]
            place = {"condition": prompt, "queries": "matched", "n": len(queries)}
            rows += [{"reference": base, **place, **row} for row in own]
            progress("prompts", 1, len(prompts) * len(modules))
    return rows, errors


@torch.no_grad()
def _case(
    without: ModuleStates, with_it: ModuleStates, path: str, module: nn.Module, settings: Weighing
) -> _Case:
    update = implicit_updates(without, with_it, path)
    before, after = without.read[path], with_it.read[path]
    generator = torch.Generator().manual_seed(settings.seed)
    random, shuffled = [], []
    for _ in range(settings.draws):
        directions = torch.randn(before.shape, generator=generator, dtype=torch.float64).to(before)
        sizes = (after - before).norm(dim=-1, keepdim=True)
        moved = directions / directions.norm(dim=-1, keepdim=True) * sizes
        random.append(Rank1(_image(module, before + moved) - _image(module, before), update.read))
        order = torch.randperm(len(before), generator=generator)
        shuffled.append(Rank1(update.written, update.read[order]))
    return _Case(path, update, random, shuffled)


def _image(module: nn.Module, x: Float[Tensor, "query d_in"]) -> Float[Tensor, "query d_out"]:
    """What a live module makes of it."""
    return wide(module(x.to(next(module.parameters()).dtype)))


def _row(measure: str, case: _Case, found: Interval, **place: Any) -> TableRow:
    site = {"site": case.path, "layer": layer_of(case.path), "position": "last"}
    names = {"measure": measure, "units": MEASURES[measure].units}
    return names | found._asdict() | site | place


def _alike(case: _Case) -> Iterator[TableRow]:
    """Whether the queries' updates are one and the same."""
    kernel = stacked.frobenius_gram(case.update)
    measures = {"rank": stacked.effective_rank, "cosine": stacked.mean_cosine}
    for name, of in measures.items():
        own = stacked.jackknife_interval(partial(_of_kernel, of, kernel), len(kernel))
        yield _row(f"implicit_{name}", case, own)
        for null, draws in (("chance", case.random), ("shuffled", case.shuffled)):
            values = [of(stacked.frobenius_gram(draw)) for draw in draws]
            yield _row(f"implicit_{name}_{null}", case, stacked.chance_interval(values))


def _of_kernel(measure: Callable[[Tensor], float], kernel: Tensor, some: Tensor) -> float:
    return measure(kernel[some][:, some])


def _of_side(seen: stacked.Side, some: Tensor) -> float:
    return stacked.basis_overlap(seen.of(some))


def _overlaps(
    subject: Subject, case: _Case, adapters: Sequence[str], settings: Weighing
) -> Iterator[TableRow]:
    """Whether they write and read where an adapter's own update of the module does."""
    matrix = weight_matrices(subject)[case.path]
    n = len(case.update.written)
    for adapter in adapters:
        update = update_of(subject, subject.settings[adapter], matrix)
        if update is None or (update.right is None and matrix.weight.numel() > settings.largest):
            continue
        directions = update.directions
        rank = min(len(directions.s), settings.overlap, n - 1)
        for name, basis in (("left", directions.u), ("right", directions.v.T)):
            basis, left = basis[:, :rank], name == "left"
            seen = stacked.side(case.update, basis, left=left)
            own = stacked.jackknife_interval(partial(_of_side, seen), n)
            measure = f"implicit_overlap_{name}"
            yield _row(measure, case, own, reference=adapter)
            chance = Interval(rank / len(basis), *spectra.chance_band(len(basis), rank))
            yield _row(f"{measure}_chance", case, chance, reference=adapter)
            if left:
                draws = (stacked.side(draw, basis, left=True) for draw in case.random)
                random = stacked.chance_interval([stacked.basis_overlap(draw) for draw in draws])
                yield _row(f"{measure}_random", case, random, reference=adapter)
