"""The parity self-test: no number leaves the toolkit from a model that was not compared.

For every condition, logits, residual stream and attention patterns of plain Hugging Face + peft
(`plain.Plain`: peft's own model under the very adapters, called as its users call it; the whole
sequence recomputed, no cache but a prefix adapter's own) are recorded before booting; afterwards
the hooked, prefix-cached run must give the same. Differences are relative to the largest of 1, the
reference's root mean square and the value itself: a channel of massive activations (Sun et al.
2402.17762; in SmolLM2 344 where the root mean square is 5.4) is rounded as its own size is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.conditions import Setting
from interp.errors import ParityError
from interp.names import OUTPUT, Site
from interp.subject.insertions import Insertions, blocks, prompt_learning

if TYPE_CHECKING:
    from interp.subject import Batch, Subject
    from interp.subject.plain import Plain

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference accepted. The half-precision bounds allow for their rounding: both runs
compute the same sums, but a cached prefix may be added in another order, or by another kernel.

Measured on a CPU, of base, a prompt, a LoRA and both: 3e-6 in float32 and 0 in half precision on
nine tiny architectures, 0 in all three on SmolLM2-135M (a prompt of 68 tokens). What half precision
itself moves, against the same model in float32 (largest difference of a logit, by their root mean
square): bfloat16 0.05 to 0.12 (SmolLM2 0.10), float16 0.007 to 0.013 (SmolLM2 0.012). That is in
every condition and so no divergence; what it does to a measure is `interp.noise`."""


class Reference(NamedTuple):
    """What a plain run says on the query rows: `logits` `[1, query_pos, d_vocab]`, what enters
    every block, and the `patterns` of the layers that show one (which these are, the hooked model
    knows)."""

    logits: Tensor
    stream: list[Tensor]
    patterns: list[Tensor]


@dataclass(frozen=True)
class Recorder:
    """Records what plain models do with `batches` of one query each."""

    batches: Sequence[Batch]
    insertions: Insertions
    done: Callable[[str], None] = lambda name: None
    """Told the name of every condition that is recorded."""

    def under(self, plain: Plain, settings: Mapping[str, Setting]) -> dict[str, list[Reference]]:
        """Condition -> what plain Hugging Face + peft does; no adapter is mounted beside those of
        the condition."""
        references: dict[str, list[Reference]] = {}
        for adapters in dict.fromkeys(setting.adapters for setting in settings.values()):
            with plain.under(adapters) as model:
                its = {n: s for n, s in settings.items() if s.adapters == adapters}
                for name, setting in its.items():
                    references[name] = self(model, setting)
                    self.done(name)
        return references

    def __call__(self, hf: Any, setting: Setting) -> list[Reference]:
        """Logits, residual stream and patterns of the query rows, of a model whose weights are
        those of the setting.

        Virtual tokens are put before the ids by peft's own forward pass wherever nothing but the
        weights of `hf` acts beside them.
        """
        alone = not (setting.adapters or setting.steering or setting.shift)
        if setting.virtual and alone:
            with prompt_learning(hf, setting.virtual.adapter) as peft:
                return [_reference(peft, setting, batch, _ids(setting, batch))
                        for batch in self.batches]  # fmt: skip
        return [self.composed(hf, setting, batch) for batch in self.batches]

    def composed(self, hf: Any, setting: Setting, batch: Batch) -> Reference:
        """Everything fed to the plain model itself: embeddings, a prefix's keys and values, ids."""
        arguments = _ids(setting, batch)
        virtual = self.insertions.tokens(setting)
        length, start = batch.ids.shape[1], setting.n_prefix
        places = torch.arange(start + length, device=batch.ids.device)
        places = torch.where(places >= start, places + setting.shift, places)
        if virtual:
            arguments = virtual.before(hf.get_input_embeddings(), arguments["input_ids"])
        arguments["attention_mask"] = torch.ones(1, start + length, device=batch.ids.device)
        given = start - len(setting.prefix) if "past_key_values" in arguments else 0
        arguments["position_ids"] = places[None, given:]
        with torch.no_grad(), _steered(hf, self.insertions.steering(setting), length):
            return _reference(hf, setting, batch, arguments)


def _ids(setting: Setting, batch: Batch) -> dict[str, Any]:
    prefix = torch.tensor([setting.prefix], dtype=torch.long, device=batch.ids.device)
    return {"input_ids": torch.cat([prefix, batch.ids], dim=1)}


def _reference(model: Any, setting: Setting, batch: Batch, arguments: dict[str, Any]) -> Reference:
    length = batch.ids.shape[1]
    with last_rows(model, length, setting.n_prefix + length):
        out = model(**arguments, output_hidden_states=True, output_attentions=True, use_cache=False)
    shown = [pattern for pattern in out.attentions or () if pattern is not None]
    return Reference(
        batch.biased(out.logits[:, -length:].clone(), setting),
        [state[:, -length:].clone() for state in out.hidden_states[:-1]],
        [pattern[:, :, -length:].clone() for pattern in shown],
    )


@contextlib.contextmanager
def last_rows(model: Any, rows: int, keys: int) -> Iterator[None]:
    """Of every pattern over so many `keys` a plain model gives the last rows alone. It keeps the
    patterns of all layers until it returns: of a prompt of 8,000 tokens, 2 GB per 8 heads."""

    def cut(_module: Any, _inputs: Any, out: Any) -> Any:
        if not isinstance(out, tuple):
            return None
        return tuple(
            part[:, :, -rows:].clone()
            if isinstance(part, Tensor) and part.ndim == 4 and part.shape[-1] == keys
            else part
            for part in out
        )

    attention = [part for part in model.modules() if "Attention" in type(part).__name__]
    handles = [part.register_forward_hook(cut, prepend=True) for part in attention]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _steered(hf: Any, vectors: Sequence[tuple[int, Tensor]], length: int) -> Iterator[None]:
    """Plain forward hooks that add vectors to the last `length` rows of blocks' outputs."""

    def adding(vector: Tensor) -> Any:
        def hook(_module: Any, _inputs: Any, out: Any) -> Any:
            stream = (out[0] if isinstance(out, tuple) else out).clone()
            stream[:, -length:] += vector
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        return hook

    handles = [
        blocks(hf)[layer].register_forward_hook(adding(vector), prepend=True)
        for layer, vector in vectors
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def equals_base(
    hf: Any, setting: Setting, known: Mapping[Setting, Sequence[Reference]], recorder: Recorder
) -> bool:
    """Whether a setting's weights and steering give exactly the logits of `hf`, the base model;
    `known`: what was recorded of settings, this one among them."""
    bare = replace(setting, adapters=(), model=None, steering=())
    base = None if setting.virtual else known.get(bare)  # virtual tokens alone were run by peft
    base = base or [recorder.composed(hf, bare, batch) for batch in recorder.batches]
    return all(torch.equal(a.logits, b.logits) for a, b in zip(base, known[setting], strict=True))


def verify(
    subject: Subject,
    name: str,
    setting: Setting,
    batches: Sequence[Batch],
    references: Sequence[Reference],
) -> float:
    """The largest difference of the hooked run in logits and residual stream; beyond the bound, a
    `ParityError` that names condition, site and difference. Patterns that are not the plain
    model's, or not to be had of either, are noted in the subject's `withheld`."""
    cache, tolerance, largest = subject.prefill(setting), TOLERANCE[subject.dtype], 0.0
    stream, heads = subject.sites("resid_pre"), subject.anatomy.sites("pattern")
    for batch, expected in zip(batches, references, strict=True):
        _check_numbers(subject.name, name, expected)
        measured: dict[Site, Tensor] = {}
        hooks = {site: _keep(measured, site) for site in (*stream, *heads)}
        logits = subject.run(setting, batch, cache, hooks)
        pairs: list[tuple[Any, Tensor, Tensor]] = [(OUTPUT, logits, expected.logits)]
        pairs += zip(stream, map(measured.__getitem__, stream), expected.stream, strict=True)
        for site, own, plain in pairs:
            difference = _difference(own, plain)
            if not difference <= tolerance:
                raise ParityError(
                    f"parity failed for {subject.name}, condition {name}{acting(setting)}, {site}: "
                    f"the hooked run differs from plain Hugging Face by {difference:.2g} (bound "
                    f"{tolerance:g}); this architecture or adapter cannot be used"
                )
            largest = max(largest, difference)
        if reason := _patterns_apart(
            [measured[site] for site in heads], expected.patterns, tolerance
        ):
            subject.withheld.setdefault("patterns", f"{reason} (condition {name})")
    return largest


def _check_numbers(model: str, name: str, expected: Reference) -> None:
    """A `ParityError` where the plain model itself gives no numbers."""
    if torch.isfinite(expected.logits).all():
        return
    broken = (n for n, state in enumerate(expected.stream) if not torch.isfinite(state).all())
    layer = next(broken, None)
    where = "at its output" if layer is None else f"in what enters block {layer}"
    raise ParityError(
        f"{model}, condition {name}: NaN or infinite values on the query probed, first {where}, in "
        "plain Hugging Face too; try --dtype float32, or check the weights"
    )


def _patterns_apart(hooked: Sequence[Tensor], plain: Sequence[Tensor], tolerance: float) -> str:
    """Why the patterns of a hooked run cannot be vouched for; "" where they are the plain run's."""
    if not hooked:
        return "its attention, if it has any, is not hooked"
    if len(plain) != len(hooked):
        return f"{len(hooked)} layers have heads, plain Hugging Face shows {len(plain)} patterns"
    largest = max(map(_difference, hooked, plain))
    if largest <= tolerance:
        return ""
    return f"they differ from plain Hugging Face's by {largest:.2g} (bound {tolerance:g})"


def acting(setting: Setting) -> str:
    """What acts in a setting beside its prefix, in brackets; nothing where nothing does."""
    adapters = [
        a if isinstance(a, str) else f"random, like {a.folder}" for a, _ in setting.adapters
    ]
    virtual = [setting.virtual.adapter] if setting.virtual else []
    models = [setting.model] if isinstance(setting.model, str) else []
    vectors = [added.vector for added in setting.steering]
    who = ", ".join([*adapters, *virtual, *models, *vectors])
    return f" ({who})" if who else ""


def _keep(measured: dict[Site, Tensor], site: Site) -> Any:
    def read(value: Tensor) -> None:
        measured[site] = value.detach().clone()

    return read


def _difference(measured: Tensor, expected: Tensor) -> float:
    """Largest difference; a windowed pattern holds only the last keys, the rest must be 0. Infinite
    where these are different things."""
    measured, expected = measured.float(), expected.float()
    if missing := expected.shape[-1] - measured.shape[-1]:
        measured = torch.nn.functional.pad(measured, (missing, 0))
    if measured.shape != expected.shape:
        return float("inf")
    scale = max(1.0, float(expected.square().mean().sqrt()))
    return float(((measured - expected).abs() / expected.abs().clamp(min=scale)).max())
