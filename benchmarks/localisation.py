"""Which measure finds the place where two conditions were made to differ?

Random adapters on one part (q, k, v, o, MLP) or one head's slice of it, in a random block of tiny
random models of nine architectures; half of them with four noise adapters of a tenth of the size in
other modules. Each is compared with its reference in one of three ways: `none`, adapter against
base; `both`, both after the same prompt; `one`, the adapter after a prompt against base without.

Three questions, answered for `interp` and for what one would do with plain Hugging Face:
the first site (exact, to the bit: wherever nothing else differs), the layer, and the heads
(average precision of their ranking, among all heads and within the planted layer).

    python benchmarks/localisation.py --cases 216    # prints, writes benchmarks/localisation.json
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy import ndarray
from peft import PeftModel
from sklearn.metrics import average_precision_score
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.conditions import Base, Condition, Lora, Prompt
from interp.influence import influence
from interp.measures.attention import CHANGES, content_js, sim_am, sim_am_delta
from interp.measures.plan import Observed
from interp.measures.state import gram, relative_l2
from interp.observe import observe
from interp.queries import Encoded, Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.loading import quiet
from interp.validation import tiny
from interp.validation.planted import (
    FIRST,
    PlantedPlace,
    first_difference,
    is_located,
    places_of,
    plant,
    site_states,
)

PROMPT = Prompt(text="hot is the opposite of cold.")
TEXTS = (
    "up is the opposite of", "a river is wide; a hill is high", "lily said: yes! tom said",
    "people walked along the road", "the weather was mild", "big is the opposite of small.",
)  # fmt: skip
COMPARED = {"none": "base", "both": "prompt", "one": "base"}
"""Way of comparing -> the reference; the adapter stands after the prompt in `both` and `one`."""
OUT = Path(__file__).with_suffix(".json")
NOISE_PLACES, NOISE_SIZE = 4, 0.1

Heads = dict[str, ndarray]
"""Measure -> how much every head has changed `[layer, head]`."""


class Case(NamedTuple):
    """One planted adapter; `noise` are the places of the smaller ones."""

    name: str
    way: str
    place: PlantedPlace
    noise: tuple[PlantedPlace, ...]


@dataclass(frozen=True)
class Found:
    """What every method said of one case. `exact`: None where a prompt differs as well; `layers`:
    method -> the layer it names; `heads`: scores of all heads, `planted`: which ones are it."""

    case: Case
    exact: bool | None
    layers: dict[str, int]
    heads: Heads
    planted: ndarray


def draw(
    places: Sequence[PlantedPlace], numbers: range, rng: np.random.Generator
) -> Iterator[Case]:
    """Random cases, by their numbers as many of every part, way and noise as of any other."""
    ways, there = tuple(COMPARED), {place.part for place in places}
    parts = [part for part in FIRST if part in there]
    for number in numbers:
        part, way = parts[number % len(parts)], ways[number % len(ways)]
        sliced = bool(rng.random() < 0.75)
        own = [p for p in places if p.part == part]
        wanted = [p for p in own if (p.head is not None) == sliced] or own
        place = wanted[int(rng.integers(len(wanted)))]
        noise: dict[str, PlantedPlace] = {}
        while number % 2 and len(noise) < NOISE_PLACES:
            other = places[int(rng.integers(len(places)))]
            if other.module != place.module:
                noise[other.module] = other
        yield Case(f"case_{number}", way, place, tuple(noise.values()))


def of_architecture(architecture: str, numbers: range, seed: int) -> Iterator[Found]:
    """All cases of one architecture, on one copy of a model that holds every adapter."""
    rng = np.random.default_rng([seed, list(tiny.CONFIGS).index(architecture)])
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = Path(temporary)
        model = tiny.save_model(architecture, folder / "model", seed)
        drawn = list(draw(places_of(model), numbers, rng))
        adapters: dict[str, str] = {}
        conditions: dict[str, Condition] = {"base": Base(), "prompt": PROMPT}
        for number, case in zip(numbers, drawn, strict=True):
            sizes = {case.place: 1.0, **dict.fromkeys(case.noise, NOISE_SIZE)}
            path = adapters[case.name] = plant(model, folder / case.name, sizes, seed + number)
            conditions[case.name] = Lora(path) if case.way == "none" else PROMPT + Lora(path)
        subject = load(model, conditions, TEXTS[:1], device="cpu")
        plain = Plain.of(model, adapters)
    queries = encode(map(Query, TEXTS), subject.tokenizer)
    for case in drawn:
        yield one_case(subject, plain, queries, case)


def one_case(subject: Subject, plain: Plain, queries: Sequence[Encoded], case: Case) -> Found:
    """Everything that is measured of one case."""
    batch, reference = Batch.of(queries, subject.device), COMPARED[case.way]
    exact = None
    if case.way != "one":
        before, after = (site_states(subject, name, batch) for name in (reference, case.name))
        exact = is_located(first_difference(before, after), [case.place, *case.noise])
    heads = measured(subject, batch, case, reference)
    layers = {name: int(np.argmax(score.max(1))) for name, score in heads.items()}
    seen = plain.compared(subject, queries, case, reference)
    heads |= {"plain attention": seen.attention, "chance": chance(case, heads)}
    layers |= seen.layers | {"plain attention": int(np.argmax(seen.attention.max(1)))}
    return Found(case, exact, layers, heads, planted_heads(case.place, subject))


def planted_heads(place: PlantedPlace, subject: Subject) -> ndarray:
    """The heads `[layer, head]` that a place belongs to: under grouped queries several read one key
    and value head."""
    found = np.zeros((subject.n_layers, subject.n_heads), bool)
    grouped = getattr(subject.bridge.cfg, "n_key_value_heads", None) or subject.n_heads
    size = subject.n_heads // grouped if place.part in ("k", "v") else 1
    own = slice(None) if place.head is None else slice(place.head * size, (place.head + 1) * size)
    found[place.layer, own] = True
    return found


def chance(case: Case, heads: Heads) -> ndarray:
    """Random scores."""
    shape = next(iter(heads.values())).shape
    return np.random.default_rng(int(case.name.split("_")[1])).random(shape)


# --- interp --------------------------------------------------------------------------------------


def measured(subject: Subject, batch: Batch, case: Case, reference: str) -> Heads:
    """Every measure of heads, of the case against its reference.

    `influence, pinned`: what the case's weights make of the reference's states.
    """
    names = dict.fromkeys([reference, case.name, "base"])
    few = replace(subject, settings={name: subject.settings[name] for name in names})
    caches = {name: few.prefill(setting) for name, setting in few.settings.items()}
    seen, last = observe(few, batch, caches, reference)
    a, b = seen[case.name], seen[reference]
    real = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]

    def mean(layers: Iterable[Tensor]) -> ndarray:
        """Mean over tokens `[layer, head]`; 0 where all are undefined: nothing has changed."""
        tokens = [layer.movedim(1, 0)[:, real].nanmean(-1) for layer in layers]
        return torch.stack(tokens).nan_to_num().double().numpy()

    both = zip(a.states["z"], b.states["z"], strict=True)
    found = {
        "z relative_l2": mean(relative_l2(gram(pair), 0, 1) for pair in both),
        "content_js": mean(map(content_js, a.content, b.content)),
        "petrov_residual": mean(map(content_js, a.pinned, b.content)),
        "sim_am": mean(1 - sim_am(x, y) for x, y in zip(a.scores, b.scores, strict=True)),
    }
    if case.way == "both":
        three = zip(a.scores, b.scores, seen["base"].scores, strict=True)
        found["sim_am_delta"] = mean(1 - sim_am_delta(x, y, z) for x, y, z in three)
    found |= change_terms(a, b, real)
    target = last[reference].logits.argmax(-1)
    before, after = (few.settings[name] for name in (reference, case.name))
    written = influence(few, before, batch.answer, last[reference], target).z
    runs = {"influence": last[case.name], "influence, pinned": last[reference]}
    for name, said in runs.items():
        now = influence(few, after, batch.answer, said, target).z
        found[name] = (now - written).abs().mean(0).numpy()
    return found


def change_terms(seen: Observed, reference: Observed, real: Tensor) -> Heads:
    """The change terms of every head relative to what it wrote, and those two that are due to the
    weights together."""
    terms: dict[str, list[Tensor]] = defaultdict(list)
    for change, z in zip(seen.changes, reference.states["z"], strict=True):
        size = z.double().square().sum(-1).movedim(1, 0)[:, real].sum(-1)
        kept = change.whole.isfinite()
        sums = [
            (part.where(kept, 0.0).movedim(1, 0)[:, real].nansum(-1) / size).abs()
            for part in change.shares
        ]
        for name, value in zip(CHANGES, sums, strict=True):
            terms[name].append(value)
        terms["change_pattern + value"].append(sums[0] + sums[1])
    return {name: torch.stack(layers).numpy() for name, layers in terms.items()}


# --- plain Hugging Face --------------------------------------------------------------------------


class Seen(NamedTuple):
    """Layers that plain methods name, and distances of attention `[layer, head]`."""

    layers: dict[str, int]
    attention: ndarray


@dataclass(frozen=True)
class Plain:
    """The same model and adapters in transformers and peft alone."""

    peft: Any

    @classmethod
    def of(cls, model: str, adapters: Mapping[str, str]) -> Plain:
        hf = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
        first, *rest = adapters.items()
        peft = PeftModel.from_pretrained(hf, first[1], adapter_name=first[0])
        for name, path in rest:
            peft.load_adapter(path, name)
        return cls(peft.eval())

    def run(self, ids: Sequence[int], adapter: str | None) -> tuple[Tensor, Tensor]:
        """Hidden states `[layer + 1, pos, d_model]`, attention `[layer, head, pos, pos]`."""
        options = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
        tokens = torch.tensor([list(ids)])
        with torch.no_grad():
            if adapter is None:
                with self.peft.disable_adapter():
                    out = self.peft(input_ids=tokens, **options)
            else:
                self.peft.set_adapter(adapter)
                out = self.peft(input_ids=tokens, **options)
        return torch.cat(out.hidden_states), torch.cat(out.attentions)

    def compared(
        self, subject: Subject, queries: Sequence[Encoded], case: Case, reference: str
    ) -> Seen:
        """Cosine of the last tokens' states, linear CKA of states, attention: nothing is aligned,
        what is longer is cut."""
        cosines, attention, states_a, states_b = [], [], [], []
        for query in queries:
            (x, p), (y, q) = (
                self.run([*subject.settings[name].prefix, *query.ids], adapter)
                for name, adapter in ((case.name, case.name), (reference, None))
            )
            n = min(x.shape[1], y.shape[1])
            cosines.append(torch.cosine_similarity(x[:, -1], y[:, -1], dim=-1))
            attention.append((p[..., :n, :n] - q[..., :n, :n]).abs().sum(-1).mean(-1) / 2)
            states_a.append(x[:, :n])
            states_b.append(y[:, :n])
        apart = (1 - torch.stack(cosines).mean(0)).numpy()
        unlike = 1 - np.array([raw_cka(*pair) for pair in zip(
            torch.cat(states_a, 1).double().numpy(), torch.cat(states_b, 1).double().numpy(),
            strict=True)])  # fmt: skip
        layers = {f"plain cosine, {rule}": layer for rule, layer in named(apart).items()}
        layers |= {f"plain CKA, {rule}": layer for rule, layer in named(unlike).items()}
        return Seen(layers, torch.stack(attention).mean(0).numpy())


def raw_cka(x: ndarray, y: ndarray) -> float:
    """Linear CKA with its bias (Kornblith et al. 1905.00414)."""
    x, y = x - x.mean(0), y - y.mean(0)
    lengths = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / lengths)


def named(apart: ndarray) -> dict[str, int]:
    """The layer that distances `[layer + 1]` (the first: of the embeddings) point at, by the rules
    that come to mind."""
    beyond = np.flatnonzero(apart[1:] > 1e-5)
    return {
        "largest": int(np.argmax(apart[1:])),
        "largest rise": int(np.argmax(np.diff(apart))),
        "first over 1e-5": int(beyond[0]) if len(beyond) else -1,
    }


# --- scores --------------------------------------------------------------------------------------


def summary(found: Sequence[Found]) -> dict[str, Any]:
    """Shares and mean average precisions, with the number of cases behind each."""
    exact: dict[str, list[float]] = defaultdict(list)
    layer: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    heads: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for one in found:
        case, noisy = one.case, "noise" if one.case.noise else "clean"
        if one.exact is not None:
            exact[f"{case.way}, {noisy}"].append(one.exact)
        for method, said in one.layers.items():
            layer[method][f"{case.way}, {noisy}"].append(said == case.place.layer)
        if case.place.head is None:
            continue
        for measure, score in one.heads.items():
            row = case.place.layer
            pairs = {"all heads": (one.planted, score),
                     "planted layer": (one.planted[row], score[row])}  # fmt: skip
            for scope, (truth, values) in pairs.items():
                precision = average_precision_score(truth.ravel(), values.ravel())
                for by in (noisy, case.way):
                    kind = "noise" if by == noisy else "comparison"
                    group = f"{case.place.part}, {by}"
                    heads[f"{scope}, by {kind}"][measure][group].append(precision)
    return {
        "exact first site": averaged(exact),
        "layer": {name: averaged(groups) for name, groups in layer.items()},
        "head average precision": {
            scope: {name: averaged(groups) for name, groups in measures.items()}
            for scope, measures in heads.items()
        },
    }


def averaged(groups: Mapping[str, list[float]]) -> dict[str, tuple[float, int]]:
    """Group -> mean and number of cases."""
    return {
        name: (round(float(np.mean(values)), 3), len(values))
        for name, values in sorted(groups.items())
    }


def table(title: str, rows: Mapping[str, Mapping[str, tuple[float, int]]]) -> str:
    """Markdown, a column per group."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[column][0]:.2f}" if column in row else "–" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(cases: int = 216, seed: int = 0, out: Path = OUT) -> None:
    """Plant, look, score.

    Args:
        cases: How many, over all architectures.
        seed: Of models, adapters and places.
        out: Where the scores go.
    """
    start = time.perf_counter()
    found: list[Found] = []
    bounds = np.linspace(0, cases, len(tiny.CONFIGS) + 1).astype(int).tolist()
    for architecture, numbers in zip(tiny.CONFIGS, map(range, bounds, bounds[1:]), strict=True):
        if numbers:
            found += of_architecture(architecture, numbers, seed)
            print(f"{architecture}: {len(found)} of {cases} cases", flush=True)
    kept: dict[str, Any] = {
        "cases": len(found),
        "seed": seed,
        "seconds": round(time.perf_counter() - start),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
        "what": "means over cases, and how many",
        **summary(found),
    }
    out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table("exact first site", {"interp": kept["exact first site"]}), end="\n\n")
    print(table("right layer", kept["layer"]), end="\n\n")
    for scope, measures in kept["head average precision"].items():
        print(table(f"average precision, {scope}", measures), end="\n\n")


if __name__ == "__main__":
    tyro.cli(main)
