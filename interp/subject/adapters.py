"""Mounting adapters, and refusing those that peft would load although it should not.

    mounted = mount(hf, [("adapters/opposite", 1.0)], "gpt2")
    with active(tuner_layers(mounted.peft), [("adapter_0", 1.0)]):
        ...                         # the adapter acts

peft only warns when an adapter's tensors find no place: the "LoRA" then equals the base model and
every divergence is a false zero. Here an adapter is mounted only when every tensor of its file
arrived, finite, where the file says, and nothing else was created. peft itself mounts every type.
What it writes into base's own weights is taken out again, to be put in while the adapter acts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from interp.errors import SubjectError
from interp.subject.adapter_files import Adapter, AdapterSource, rewrites, source_of

_ROOT = "base_model.model."
"""What peft writes before the model's own names."""

_OF_BASE = re.compile(r"\.base_layer(\.weight|\.bias)$")
"""The end of a key that is a tensor of base, under an adapter's layer."""

_VOCABULARY = {".lora_embedding_A": 1, ".lora_B.weight": 0}
"""End of the key of a factor on an embedding -> which of its sides has a row for every token."""

_ROUNDED = "_topk_weights"
"""The end of a key whose tensor peft keeps as logarithms (VB-LoRA saved by its largest weights)."""

_SCALES = ("scaling", "fourierft_scaling", "waveft_scaling")
"""Where peft's layers keep the scale of every adapter."""

_REFUSALS = (
    RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError,
    ImportError, re.error, ArithmeticError,
)  # fmt: skip
"""What peft raises where an adapter does not fit a model."""

BaseValues = Mapping[str, Tensor]
"""Parameter of base -> what it holds."""


class _Mounted(NamedTuple):
    """peft's model (None without adapters), its name of every adapter, and what base's parameters
    are to hold while an adapter acts, where that is not what base has."""

    peft: Any
    names: list[str]
    rewritten: list[BaseValues]


def mount(
    model: Any,
    adapters: Iterable[tuple[Adapter, float]],
    base_name: str,
    *,
    allow_other_base: bool = False,
) -> _Mounted:
    """Wrap `model` with (adapter, scale) pairs; its own parameters hold afterwards what they held.

    Raises `SubjectError` where an adapter is not what it should be, or does not fit.
    """
    own = _Own.of(model)
    peft: Any = None
    names: list[str] = []
    rewritten: list[BaseValues] = []
    kinds: dict[str, str] = {}
    for adapter, scale in adapters:
        name = f"adapter_{len(names)}"
        with source_of(adapter, scale, base_name, allow_other_base) as source:
            kinds.setdefault(source.config["peft_type"], source.shown)
            _check_one_type(kinds)
            with fitting(f"adapter {source.shown} does not fit {base_name}"):
                own.check_rows(source, base_name)
                before = own.copied(source)
                if peft is None:
                    peft = PeftModel.from_pretrained(model, source.folder, adapter_name=name)
                else:
                    peft.load_adapter(source.folder, name)
        _check_arrived(peft, name, source.shown, own.without_base(source, before))
        names.append(name)
        rewritten.append(own.restored(before))
        if scale != 1 and (changed := rewritten[-1]):
            raise SubjectError(
                f"adapter {source.shown} has no scale, as it changes base's own weights (first: "
                f"{min(changed)}): write scale 1"
            )
    return _Mounted(peft, names, rewritten)


def _check_one_type(kinds: Mapping[str, str]) -> None:
    """`kinds`: type -> an adapter of it."""
    if len(kinds) > 1:
        (a, one), (b, other) = kinds.items()
        raise SubjectError(
            f"adapters {one} ({a}) and {other} ({b}) are of two types, which peft does not mount "
            "on one model: compare each with base in a run of its own"
        )


@contextmanager
def fitting(fault: str) -> Iterator[None]:
    """peft's refusals inside are one line that begins with `fault`; its warnings are about what is
    checked, and refused, here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _REFUSALS as error:
        raise SubjectError(f"{fault}: {_shortened(str(error))}") from error


_MISFIT = re.compile(
    r"size mismatch for (\S+?): copying a param with shape (.+?) from checkpoint, "
    r"the shape in current model is (.+?)\.(?=\s|$)"
)
"""torch's words for one tensor that has another shape."""

_LONGEST = 200
"""Characters of somebody else's words that an error shows."""


def _shortened(reason: str) -> str:
    """What peft says, in one short line: of many shapes that do not fit their number, and the
    first."""
    reason = " ".join(reason.split())
    if found := _MISFIT.findall(reason):
        name, there, here = (part.replace("torch.Size", "") for part in found[0])
        return f"{len(found)} tensors have another shape (first: {name}, {there}, here {here})"
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} ..."


class _Own(NamedTuple):
    """The parameters of a model that nothing is mounted on yet, by all of their names, and the
    tensors that they hold; `called`: identity -> first name; `rows`: those with a row per token ->
    how many."""

    parameters: Mapping[str, nn.Parameter]
    tensors: Mapping[str, Tensor]
    called: Mapping[int, str]
    rows: Mapping[str, int]

    @classmethod
    def of(cls, model: Any) -> _Own:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        called = {id(parameter): name for name, parameter in model.named_parameters()}
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        embeddings = {id(layer.weight) for layer in layers if layer is not None}
        rows = {name: len(p) for name, p in parameters.items() if id(p) in embeddings}
        tensors = {name: parameter.data for name, parameter in parameters.items()}
        return cls(parameters, tensors, called, rows)

    def check_rows(self, source: AdapterSource, base_name: str) -> None:
        """Embeddings that an adapter brings, or sits on, have as many rows as the model's, and the
        tokens that it trains have one."""
        trained = source.config.get("token_indices") or source.config.get("trainable_token_indices")
        ids = trained.values() if isinstance(trained, dict) else [trained or []]
        last, least = max((i for some in ids for i in some), default=0), min(self.rows.values())
        if last >= least:
            raise SubjectError(
                f"adapter {source.shown} trains token {last}, {base_name} has {least} rows: save "
                "the model with its embeddings resized, and give that as the model"
            )
        for key, tensor in source.tensors.items():
            end = next(filter(key.endswith, _VOCABULARY), "")
            name = f"{_named(key.removesuffix(end))}.weight" if end else _named(key)
            rows = self.rows.get(name)
            found = tensor.shape[_VOCABULARY.get(end, 0)]
            if rows is not None and found != rows:
                raise SubjectError(
                    f"adapter {source.shown} has {found} rows in {name}, {base_name} has {rows}: "
                    "it was trained on resized embeddings; save the model with its embeddings "
                    "resized, and give that as the model"
                )

    def copied(self, source: AdapterSource) -> dict[str, Tensor]:
        """What the parameters hold into which mounting an adapter may write: those that its file
        brings, and those below an adapter that takes its start out of them."""
        names = {_named(key) for key in source.tensors}
        if rewrites(source.config):
            modules = {name.partition(".lora_")[0] for name in names}
            names |= {name for name in self.parameters if name.rpartition(".")[0] in modules}
        found = (self.parameters[name] for name in names & self.parameters.keys())
        return {self.called[id(own)]: own.detach().clone() for own in found}

    def restored(self, before: BaseValues) -> BaseValues:
        """What mounting has written over these values, which are put back where they were."""
        written = {}
        for name, value in before.items():
            own = self.parameters[name]
            if not torch.equal(own.data, value):
                written[name] = own.data.clone()
                own.data = self.tensors[name].copy_(value)
        return written

    def without_base(self, source: AdapterSource, before: BaseValues) -> dict[str, Tensor]:
        """An adapter's tensors without those of base below it, which must be what the model has.

        peft saves these along where a LoRA sits on embeddings, and puts them into the model.
        """
        kept = dict(source.tensors)
        for key in filter(_OF_BASE.search, source.tensors):
            value, own = kept[key], self.parameters.get(_named(key))
            if key.endswith(".bias") and own is not None:
                continue  # a bias that was trained
            if own is None or not _holds(before[self.called[id(own)]], kept.pop(key)):
                raise SubjectError(
                    f"adapter {source.shown}: {key} {tuple(value.shape)} is not what this model "
                    "has there: it was trained on another base"
                )
        return kept


def _named(key: str) -> str:
    """The parameter that a key of an adapter's file would be in the model itself."""
    return _OF_BASE.sub(r"\1", key.removeprefix(_ROOT))


def _holds(own: Tensor, value: Tensor) -> bool:
    """Whether a tensor is what its number format has of a value."""
    return torch.equal(own.cpu(), value.to(own.dtype))


def _check_arrived(peft: Any, name: str, folder: str, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor of the file is mounted, equal, and no other was created.

    peft puts embeddings that were saved along (those of a resized vocabulary) into the model.
    """
    live = peft.state_dict()
    mounted = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
    mounted |= {key: live[key] for key in tensors if key in live and key not in mounted}
    missing, extra = sorted(set(mounted) - set(tensors)), sorted(set(tensors) - set(mounted))
    if missing or extra:
        raise SubjectError(
            f"adapter {folder} does not fit this model: "
            f"{len(missing)} tensors it needs are missing{by_kind(missing)}, "
            f"{len(extra)} of its tensors have no place{by_kind(extra)}"
        )
    for key, tensor in tensors.items():
        own = mounted[key].cpu()
        rounded = key.endswith(_ROUNDED) and torch.allclose(own, tensor)
        if not (rounded or _holds(own, tensor) or _holds(tensor, own)):
            raise SubjectError(f"adapter {folder}: {key} was not loaded as it is in the file")


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

_KINDS = 8
"""Kinds of keys that an error names."""


def by_kind(keys: Iterable[str]) -> str:
    """All of these keys in few words: those that only numbers tell apart together, with `*` for a
    number and how many they are; "" without any."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kinds.setdefault(_NUMBER.sub("*", key.removeprefix(_ROOT)), []).append(key)
    shown = [f"{kind} x{len(of)}" if len(of) > 1 else of[0] for kind, of in kinds.items()]
    more = [f"and {len(shown) - _KINDS} kinds more"] if len(shown) > _KINDS else []
    return f" ({', '.join([*shown[:_KINDS], *more])})" if shown else ""


def tuner_layers(peft: Any) -> dict[str, Any]:
    """The modules that switch between adapters, by their Hugging Face names; none without adapters.

    To be asked before the model is hooked, which renames some of them. What a wrapper holds is
    switched by the wrapper.
    """
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    found = peft.named_modules() if peft else ()
    return {
        name.removeprefix(_ROOT): module
        for name, module in found
        if isinstance(module, kinds) and not name.endswith(".token_adapter")
    }


def mend_norms(bridge: Any) -> None:
    """Norms of a booted bridge that an adapter sits on are called themselves: some bridges compute
    from the weight of base below it instead, and there is no error."""
    for module in bridge.modules():
        below = getattr(module, "original_component", None)
        adapted = isinstance(below, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if adapted and hasattr(module, "use_native_layernorm_autograd"):
            module.use_native_layernorm_autograd = True


def acts(layer: Any, names: Collection[str]) -> bool:
    """Whether one of these adapters does something in a module."""
    return not layer._get_available_adapters().isdisjoint(names)


@contextmanager
def active(
    layers: Mapping[str, Any], adapters: list[tuple[str, float]], silent: Collection[str] = ()
) -> Iterator[None]:
    """Only these (name, scale) adapters act while inside, but for the modules in `silent`; none
    when the list is empty.

    `layers` is `tuner_layers(peft)`. Afterwards scales are what they were; which adapters act stays
    until the next use, so that a run of uses of one state costs nothing (peft's own switches walk
    the whole model each time: two thirds of a study with six adapters).
    """
    for module, layer in layers.items():
        _switch(layer, [] if module in silent else [name for name, _ in adapters])
    scales = [scale for layer in layers.values() if (scale := _scales(layer))]
    before = [dict(scale) for scale in scales]
    try:
        for scale in scales:
            for name, factor in adapters:
                if name in scale and factor != 1:
                    scale[name] *= factor
        yield
    finally:
        for scale, values in zip(scales, before, strict=True):
            scale.update(values)


def _scales(layer: Any) -> dict[str, float]:
    """Adapter -> its scale in a layer of peft's, to be written to; empty where it has none."""
    if not isinstance(layer, BaseTunerLayer):
        return {}
    return next((getattr(layer, name) for name in _SCALES if hasattr(layer, name)), {})


def _switch(layer: Any, names: list[str]) -> None:
    """A module acts for the adapters that it has; to find out which takes longest."""
    if names and not layer.disable_adapters and list(layer.active_adapters) == names:
        return
    names = [name for name in names if acts(layer, [name])]
    if layer.disable_adapters == bool(names):
        layer.enable_adapters(bool(names))
    if names and list(layer.active_adapters) != names:
        layer.set_adapter(names, inference_mode=True)


@contextmanager
def holding(parameters: Mapping[str, nn.Parameter], values: BaseValues) -> Iterator[None]:
    """The parameters hold these values while inside."""
    before = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, data in before.items():
            parameters[name].data = data
