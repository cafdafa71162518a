"""How much faster is an interchange than full forward passes through TransformerLens hooks?

Every layer's residual stream, in both directions between a prompt of 200 tokens and a LoRA: 64
queries of 16 tokens on a random Llama of 27 million parameters. The plain way runs prompt and query
again for every edit, 64 queries at a time, with `run_with_hooks`. Both are timed in this one run on
the same weights, by turns; their divergences must agree before a time counts.

    python benchmarks/patching.py           # prints the ratio, writes benchmarks/patching.json
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reference import CACHE, Size, made
from torch import Tensor

from interp.capture import capture, keep
from interp.conditions import Base, Lora, Prompt
from interp.edits import Edit, replace
from interp.measures.output import kl_divergence
from interp.patching.patched import patched_logits
from interp.queries import encode, read_queries
from interp.subject import Batch, Subject, load

SIZE, ROUNDS = Size(layers=6, loras=1, tied=False), 3


def ours(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    """Damage by direction, `[layer, query]`: prefix once, layers above the edit, last tokens."""
    posts, pres = subject.sites("resid_post"), subject.sites("resid_pre")
    own, caches = {}, {}
    for name in ("prompt", "lora"):
        setting = subject.settings[name]
        caches[name] = subject.prefill(setting)
        read = dict.fromkeys([*posts, *pres], keep)
        own[name] = capture(subject, setting, batch, caches[name], read, last=True)
    damage = {}
    for source, target in (("prompt", "lora"), ("lora", "prompt")):
        patches = [[Edit(site, replace(own[source].values[site]))] for site in posts]
        entries = {site: own[target].values[site] for site in pres}
        setting = subject.settings[target]
        runs = patched_logits(
            subject, setting, batch, caches[target], entries, patches, rows=SIZE.queries
        )
        found = {
            number: kl_divergence(own[target].logits, row)
            for numbers, logits in runs
            for number, row in zip(numbers, logits, strict=True)
        }
        damage[f"{source} into {target}"] = torch.stack([found[i] for i in range(SIZE.layers)])
    return damage


def plain(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    """The same by TransformerLens's own `run_with_hooks` on prompt and query, edit by edit."""
    bridge, length = subject.bridge, batch.ids.shape[1]
    names = [subject.anatomy.points[site].hook for site in subject.sites("resid_post")]
    ids, logits, states = {}, {}, {}
    for name in ("prompt", "lora"):
        setting = subject.settings[name]
        prefix = torch.tensor(setting.prefix, dtype=torch.long).expand(len(batch.ids), -1)
        ids[name] = torch.cat([prefix, batch.ids], dim=1)
        with torch.no_grad(), subject.weights.of(setting):
            said, cache = bridge.run_with_cache(ids[name], names_filter=names)
        logits[name], states[name] = said[:, -1], [cache[hook][:, -length:] for hook in names]

    def swap(value: Tensor, hook: Any, source: Tensor) -> Tensor:
        value = value.clone()
        value[:, -length:] = source
        return value

    damage = {}
    for source, target in (("prompt", "lora"), ("lora", "prompt")):
        rows = []
        for name, state in zip(names, states[source], strict=True):
            hooks = [(name, partial(swap, source=state))]
            with torch.no_grad(), subject.weights.of(subject.settings[target]):
                said = bridge.run_with_hooks(ids[target], fwd_hooks=hooks)
            rows.append(kl_divergence(logits[target], said[:, -1]))
        damage[f"{source} into {target}"] = torch.stack(rows)
    return damage


def timed(run: Callable[[], dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    """Seconds and what came of it."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    """Time both by turns, the best of each, and keep the ratio."""
    reference = made(CACHE, SIZE)
    prompt, lora = Prompt(text=reference.prompt), Lora(reference.loras[0])
    conditions = {"base": Base(), "prompt": prompt, "lora": lora}
    subject = load(reference.model, conditions, reference.texts[:1])
    batch = Batch.of(encode(read_queries(reference.queries), subject.tokenizer))
    seconds: dict[str, list[float]] = {"interp": [], "transformer_lens": []}
    worst = 0.0
    for _ in range(ROUNDS):
        fast, found = timed(lambda: ours(subject, batch))
        slow, expected = timed(lambda: plain(subject, batch))
        worst = max(worst, *(float((found[d] - expected[d]).abs().max()) for d in expected))
        seconds["interp"].append(fast)
        seconds["transformer_lens"].append(slow)
    if worst > 1e-4:
        raise SystemExit(f"the two ways disagree by {worst:.2g} nats: no time counts")
    ratio = min(seconds["transformer_lens"]) / min(seconds["interp"])
    kept = {
        "what": f"{SIZE.layers} layers, 2 directions, {SIZE.queries} x {SIZE.length} tokens, "
        f"prompt {SIZE.prompt}",
        "parameters": subject.n_parameters,
        "seconds": {name: round(min(values), 3) for name, values in seconds.items()},
        "ratio": round(ratio, 1),
        "mean_damage_nats": float(torch.cat(list(expected.values())).mean()),
        "largest_difference_nats": worst,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept, indent=1))
    print(f"interp is {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
