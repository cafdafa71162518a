"""The same work with other libraries, written as their users write it.

`run_with_cache` of TransformerLens keeps whole activations of every condition, prompt included, and
the measures are computed from them afterwards. nnsight saves residual streams and patterns behind
a prompt that was computed once, and measures nothing. What both find must agree with what this
library finds before a time counts.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from bare import BASE, Bare
from costs import Study
from reference import Reference
from timing import PRINTED, Row, Setup, at_least, at_most, by_turns, child, figure, ratio
from torch import Tensor
from transformers import AutoTokenizer

from interp.batch import Batch
from interp.capture import capture
from interp.measures.tally import Key, Tally
from interp.names import Site
from interp.statistics import Ratio

NEAR = 1e-4
"""Largest difference between what two libraries find (they round otherwise)."""

HOOKS = {
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "pattern": "attn.hook_pattern",
}

Means = dict[tuple[str, str, str, str], Tensor]
"""(measure, condition, other, site) -> means over the tokens of all queries, by layer and head."""


class Workflow:
    """`run_with_cache` of the sites that are needed in every condition, then measures."""

    def __init__(self, found: Reference) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.bare = Bare.of(found)
        self.bridge: Any = TransformerBridge.boot_transformers(
            found.model,
            hf_model=self.bare.model.get_base_model(),
            tokenizer=AutoTokenizer.from_pretrained(found.model),
            device="cpu",
        )
        self.layers = range(self.bridge.cfg.n_layers)
        self.names = [f"blocks.{i}.{hook}" for i in self.layers for hook in HOOKS.values()]
        others = [name for name in self.bare.prefixes if name not in (BASE, "lora_0")]
        self.pairs = [(a, b) for a in others for b in ("lora_0", BASE)] + [("lora_0", BASE)]

    @torch.no_grad()
    def __call__(self) -> Means:
        """Run every condition, keep everything, then compare the pairs."""
        length = self.bare.ids.shape[1]
        logits, caches = {}, {}
        for name, prefix in self.bare.prefixes.items():
            ids = torch.cat([prefix.expand(len(self.bare.ids), -1), self.bare.ids], 1)
            with self.bare.condition(name):
                said, cache = self.bridge.run_with_cache(ids, names_filter=self.names)
            logits[name], caches[name] = said[:, -length:], cache
        found: Means = {}
        for a, b in self.pairs:
            found |= {
                (measure, a, b, "output"): value.mean()
                for measure, value in outputs(logits[a], logits[b]).items()
            }
            for site, hook in HOOKS.items():
                layers = []
                for layer in self.layers:
                    name = f"blocks.{layer}.{hook}"
                    compare = patterns if site == "pattern" else states
                    layers.append(compare(caches[a][name], caches[b][name], length))
                for measure in layers[0]:
                    values = torch.stack([of_layer[measure] for of_layer in layers])
                    found[measure, a, b, site] = values
        return found


def outputs(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Divergences of next-token distributions, by token."""
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    js = 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1)
    return {"kl_divergence": (p * (log_p - log_q)).sum(-1), "js_divergence": js}


def states(a: Tensor, b: Tensor, length: int) -> dict[str, Tensor]:
    """Distance and cosine of states, means over tokens, by head where there are heads."""
    a, b = a[:, -length:], b[:, -length:]
    scale = (a.norm(dim=-1) + b.norm(dim=-1)) / 2
    distance = (a - b).norm(dim=-1) / scale
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    return {"relative_l2": distance.mean((0, 1)), "cosine": cosine.mean((0, 1))}


def patterns(a: Tensor, b: Tensor, length: int) -> dict[str, Tensor]:
    """Divergence of attention over the query's own tokens, means over tokens, by head."""
    p, q = (x[:, :, -length:, -length:] for x in (a, b))
    p, q = (x / x.sum(-1, keepdim=True) for x in (p, q))
    m = (p + q) / 2
    js = 0.5 * (torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).nan_to_num().sum(-1)
    return {"content_js": js.mean((0, 2))}


def agree(study: Study, tally: Tally, found: Means) -> None:
    """Stop where the two ways find different numbers; neutral texts differ, and are left out."""
    mean = study.prepared.plan.labels.index("mean")
    compared = 0
    for (measure, a, b, site), value in found.items():
        kept = tally.get(Key(measure, a, b, site))
        if isinstance(kept, Ratio) and "neutral" not in (a, b):
            own = torch.from_numpy(kept.compute().value[..., mean])
            worst = float((own - value.double()).abs().max())
            if not worst <= NEAR:
                raise SystemExit(f"{measure} of {a} and {b} at {site}: {worst:.2g} apart")
            compared += 1
    if not compared:
        raise SystemExit("no measure is computed in both ways")


def run_with_cache(setup: Setup) -> Iterator[Row]:
    """Time, and peak memory above the model, of the workflow over ours."""
    found = setup.reference()
    study, workflow = Study(found, setup.folder), Workflow(found)
    agree(study, study.outputs_states_attention(), workflow())  # and warms up
    ours = study.outputs_states_attention
    seconds = by_turns(setup, warm=False, theirs=workflow, ours=ours)
    words = "`run_with_cache` and the same measures afterwards, over the sweep"
    yield ratio(f"{words}: time", seconds["theirs"], seconds["ours"], at_least(4))
    smoke = ["--smoke"] * setup.smoke
    peaks = {
        way: [child("peaks.py", way, *smoke)["above"] for _ in range(setup.rounds)]
        for way in ("run_with_cache", "ours")
    }
    turns = [a / b for a, b in zip(peaks["run_with_cache"], peaks["ours"], strict=True)]
    theirs, own = (statistics.median(peaks[way]) for way in ("run_with_cache", "ours"))
    note = f"{theirs:.3g} GB over {own:.3g} GB"
    yield figure(f"{words}: peak memory above the model", turns, at_least(8), note)


class Nnsight:
    """Residual streams and patterns of every condition, saved."""

    def __init__(self, found: Reference) -> None:
        from nnsight import NNsight

        self.bare = Bare.of(found)
        self.model: Any = NNsight(self.bare.model)

    @torch.no_grad()
    def __call__(self) -> dict[str, list[Tensor]]:
        """Condition -> pattern and residual stream of every layer."""
        return {name: self._saved(name) for name in self.bare.prefixes}

    def _saved(self, name: str) -> list[Tensor]:
        cache = copy.deepcopy(self.bare.caches[name])
        if cache is not None:
            cache.batch_repeat_interleave(len(self.bare.ids))
        with (
            self.bare.condition(name),
            self.model.trace(self.bare.ids, past_key_values=cache, use_cache=True),
        ):
            kept = list().save()  # type: ignore[attr-defined]  # noqa: C408 - nnsight's way
            for layer in self.model.base_model.model.model.layers:
                kept.append(layer.self_attn.output[1])
                kept.append(layer.output)
        return kept


def nnsight(setup: Setup) -> Iterator[Row]:
    """Ours over nnsight: saving the same, and measuring as well."""
    words = "residual streams and patterns, over nnsight saving them"
    if find_spec("nnsight") is None:
        yield Row.skipped(words, at_most(1), "not measured: pip install nnsight")
        return
    found = setup.reference()
    study, theirs = Study(found, setup.folder), Nnsight(found)
    subject = study.subject
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    batch = Batch.of(study.prepared.groups["matched"])
    sites = [Site(name, i) for i in range(subject.n_layers) for name in ("pattern", "resid_post")]

    def ours() -> dict[str, list[Tensor]]:
        read = dict.fromkeys(sites, torch.clone)
        runs = {
            name: capture(subject, setting, batch, caches[name], read).values
            for name, setting in subject.settings.items()
        }
        return {name: [values[site] for site in sites] for name, values in runs.items()}

    own, other = ours(), theirs()
    for name in own.keys() - {"neutral"}:
        for site, a, b in zip(sites, own[name], other[name], strict=True):
            if not torch.allclose(a, b, atol=NEAR):
                raise SystemExit(f"nnsight finds another {site} in {name}: no time counts")
    seconds = by_turns(setup, ours=ours, theirs=theirs, sweep=study.outputs_states_attention)
    yield ratio(f"saving {words}", seconds["ours"], seconds["theirs"], at_most(1))
    words = f"sweep of outputs, states, attention, over nnsight saving {words.split(',')[0]}"
    yield ratio(words, seconds["sweep"], seconds["theirs"], PRINTED)
