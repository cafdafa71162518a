"""What a LoRA's directions write to the residual stream, in words.

    writers = residual_writers(subject, lora.modules)
    rows, tokens = written_words(lens, lora, writers, state, words, names, signs)

Only modules whose output is added to the stream (attention's output projection, an MLP's last
matrix) write there; where a norm follows (Gemma), with that norm's gain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.influence import Frozen
from interp.measures import wide
from interp.patching.ablation import layer_of
from interp.reading.channels import OUT, Channels
from interp.reading.differences import LinearLens, ReadRow
from interp.reading.scores import ranks_of, word_score
from interp.registry import MEASURES
from interp.subject import Subject


def residual_writers(subject: Subject, modules: Iterable[str]) -> dict[str, Any]:
    """Module -> the norm between it and the residual stream (None: there is none), of those whose
    output lands there."""
    live = {id(subject.weights.layers[module]): module for module in modules}
    found: dict[str, Any] = {}
    for block in subject.blocks:
        for part, own, norm in (("attn", "o", "ln1_post"), ("mlp", "out", "ln2_post")):
            inside = getattr(getattr(block, part, None), own, None)
            module = live.get(id(getattr(inside, "original_component", None)))
            if module is not None:
                found[module] = getattr(block, norm, None)
    return found


def landed(directions: Float[Tensor, "d_model rank"], norm: Any) -> Float[Tensor, "rank d_model"]:
    """What unit steps along output directions add to the stream, up to their size: through a
    post-norm with its scale frozen at each of them."""
    steps = wide(directions.T)
    return steps if norm is None else Frozen.at(norm, steps.float()).push(steps)


def written_words(
    lens: LinearLens,
    channels: Channels,
    writers: Mapping[str, Any],
    state: Float[Tensor, " d_model"],
    words: Sequence[int],
    names: Sequence[str],
    signs: Mapping[tuple[str, int], int],
    top: int = 10,
) -> tuple[list[ReadRow], list[ReadRow]]:
    """Rows (`direction_word_score`) and ranked tokens of every direction that writes to the stream.

    `signs`: (module, direction) -> 1 or -1, which end is read; the directions that are named there
    have their tokens listed.
    """
    rows, tokens = [], []
    for module, norm in writers.items():
        said = lens(landed(channels.modules[module].u, norm), state).cpu().numpy()
        for k, logits in enumerate(said):
            turned = signs.get((module, k), 1) * logits
            place = {
                "condition": channels.condition,
                "site": module,
                "layer": layer_of(module),
                "position": f"direction {k} {OUT}",
            }
            if words:
                score = word_score(turned, words)
                units = MEASURES["direction_word_score"].units
                rows.append({**place, "measure": "direction_word_score", "value": score,
                             "units": units})  # fmt: skip
            if (module, k) in signs:
                tokens += [{**place, **entry} for entry in _first(turned, names, words, top)]
    return rows, tokens


def _first(logits: Any, names: Sequence[str], words: Sequence[int], top: int) -> list[ReadRow]:
    first = (-logits).argsort(kind="stable")[:top].tolist()
    spread = float(logits.std()) or float("nan")
    return [
        {
            "lens": "written",
            "vector": "direction",
            "rank": rank,
            "token_id": token,
            "token": names[token],
            "score": float((logits[token] - logits.mean()) / spread),
            "task": token in words,
        }
        for token, rank in zip(first, ranks_of(logits, first), strict=True)
    ]
