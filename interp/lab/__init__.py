"""A model under its conditions in a notebook: look inside, patch, or run the whole study.

lab = interp.load("org/model", prompt="Answer in French.", lora="adapter", chat=True)
acts = lab.run(["What is the capital of Peru?"], sites=["resid_post", "pattern"])
acts.pattern.sel(condition="lora", layer=3, head=2, position=-1)
lab.patch(["What is the capital of Peru?"], source="lora", target="base", site="z", heads="all")
interp.diverge(lab, "queries.jsonl", "RUN")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xarray as xr
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from interp.conditions import Base, Condition, FittedBias, Lora, Prompt, located, simple_parts
from interp.config import CONDITION_NAME, Experiment, Framing, Loading, explain
from interp.design import BASE
from interp.errors import ConfigError, QueryError
from interp.lab.activations import activations
from interp.lab.experiments import experiment_of
from interp.lab.patching import patching
from interp.names import short_name
from interp.organism.language import NEUTRAL_PASSAGE
from interp.progress import Progress
from interp.queries import Encoded, Query
from interp.showing import HtmlTable, html_page
from interp.subject import Held, Subject
from interp.subject import load as load_subject
from interp.subject.aligning import encode_groups
from interp.subject.held import parted
from interp.subject.loading import threads_for

__all__ = ["Lab", "load"]

_PROBE = tuple(f"{sentence}." for sentence in NEUTRAL_PASSAGE.split(". ")[:3:2])
"""The texts on which a model is compared with plain Hugging Face + peft where none are given."""

IN_MEMORY = {"adapter_revision", "trust_remote_code", "allow_other_base", "allow_idle"}
"""Options of loading that a model in memory has a use for."""

Queries = str | Query | Iterable[str | Query]


@dataclass(frozen=True, eq=False)
class Lab:
    """A parity-checked model and its conditions, `base` the first; make one with `interp.load`.

    `subject`: the hooked model. `options`: how it was loaded, and where queries stand. `path`: the
    folder or hub id that was given; None of a model in memory.
    """

    subject: Subject
    conditions: Mapping[str, Condition]
    options: Framing
    path: str | None

    def run(
        self,
        queries: Queries,
        sites: str | Sequence[str] = ("resid_post",),
        conditions: str | Sequence[str] | None = None,
        reduce: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        batch_size: int = 16,
    ) -> xr.Dataset:
        """The values at `sites` (and `logits`, if named) on the query tokens, as one variable each.

        Dimensions: condition, query, layer, then `position, d_model` of the residual stream and
        what is written to it; `head, position, d_head` of `q` and `z`; `kv_head, position, d_head`
        of `k` and `v`; `head, position, key` of `pattern`; `position, d_vocab` of `logits`.
        `position` counts from the query's end: -1 is its last token. Key 0 of a pattern is all
        attention on what stands before the query, the others are the query's own tokens (of
        `attn_scores` it is the log of the summed exponentials). Shorter queries, and layers without
        the site, are NaN; `token` and `text` are coordinates.

        `reduce`: site -> a function of its value inside the forward pass, in every condition. It is
        given `[batch, position, d_model]`, `[batch, head, position, d_head]` or, of patterns,
        `[batch, head, position, all keys]`, without padding, and returns a tensor with the batch
        first. Dimensions that it keeps, from the left, keep their names.

        Raises `ConfigError` for unknown sites and conditions, `QueryError` for texts that cannot
        be aligned, `SubjectError` for what the model does not have.
        """
        names = self._known(conditions)
        asked = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
        encoded = self.encode(queries)
        with threads_for(self.subject.n_parameters):
            return activations(self.subject, encoded, asked, names, reduce or {}, batch_size)

    def patch(
        self,
        queries: Queries,
        *,
        source: str,
        target: str,
        site: str = "resid_post",
        layers: Iterable[int] | None = None,
        heads: str | Iterable[int] | None = None,
        batch_size: int = 16,
        tolerance: float = 0.02,
    ) -> xr.Dataset:
        """What it does to put the source's values into the target's run, at all query tokens.

        One layer at a time (none: every layer that has the site); with `heads` one head at a time
        (`"all"`, or numbers). Of `pattern` the division among the query's own tokens moves; the
        target keeps its attention on what stands before the query.

        Variables by `query, layer` (and `head`), nats per answer: `damage`, KL(target ‖ patched);
        `distance`, KL(source ‖ patched). `recovery` is `1 - distance / apart`, a share, `apart`
        being KL(source ‖ target): 1 is full transfer, 0 none. `mean_damage` and `mean_recovery` are
        over queries, the latter a ratio of sums. Recovery is NaN where `apart` is at most
        `tolerance`. An answer is the query's own, forced on both conditions; without one, the next
        token. A condition's own values put back change nothing, to the bit.
        """
        self._known([source, target])
        encoded = self.encode(queries)
        places = (site, layers, heads)
        with threads_for(self.subject.n_parameters):
            return patching(self.subject, encoded, (source, target), places, batch_size, tolerance)

    def encode(self, queries: Queries) -> list[Encoded]:
        """Token ids of the queries, the same in every condition; a `QueryError` where a prompt
        would change them."""
        whole = [_query(one) for one in _listed(queries)]
        if not whole:
            raise QueryError("no queries: give a text, or a list of texts")
        return encode_groups(self.subject, self.conditions, {"lab": whole})["lab"]

    def experiment(
        self, queries: str | Path | Iterable[str | Query], out: str | Path, **fields: Any
    ) -> Experiment:
        """The study of these conditions, as `interp.diverge` runs it: see there."""
        return experiment_of(self, queries, out, fields)

    def _known(self, names: str | Sequence[str] | None) -> list[str]:
        wanted = [names] if isinstance(names, str) else list(names or self.conditions)
        for name in wanted:
            if name not in self.conditions:
                raise ConfigError(f"no condition {name!r}: there are {', '.join(self.conditions)}")
        return wanted

    def __repr__(self) -> str:
        return f"Lab({short_name(self.subject.name)}: {', '.join(self.conditions)})"

    def _repr_html_(self) -> str:
        subject = self.subject
        shape = f"{subject.n_layers} layers × {subject.n_heads} heads, {subject.dtype}"
        rows = [
            (name, condition.describe(), subject.settings[name].n_prefix, f"{difference:.1e}")
            for (name, condition), difference in zip(
                self.conditions.items(), subject.parity.values(), strict=True
            )
        ]
        head = ("condition", "what it is", "tokens before the query", "parity")
        withheld = [f"withheld: {name}, {why}" for name, why in subject.withheld.items()]
        note = "parity: largest difference from plain Hugging Face + peft, relative"
        return html_page(
            f"{short_name(subject.name)} ({shape}, {subject.device})",
            HtmlTable(head, rows),
            *(note, *withheld, *subject.notes),
        )


def _listed(queries: Any) -> list[Any]:
    one = isinstance(queries, str) or not isinstance(queries, Iterable)
    return [queries] if one else list(queries)


def _query(given: Any) -> Query:
    if not isinstance(given, str | Query):
        raise QueryError(f"a query is a text or an interp.Query, not {given!r}")
    return given if isinstance(given, Query) else Query(given)


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    prompt: str | None = None,
    system: str | None = None,
    lora: str | Path | None = None,
    chat: bool = False,
    conditions: Mapping[str, Condition] | None = None,
    separator: str = "\n",
    template_options: Mapping[str, Any] | None = None,
    probe: Sequence[str | Query] = _PROBE,
    progress: Progress = lambda stage, newly, total: None,
    **loading: Any,
) -> Lab:
    """A model under `base`, `prompt`, `lora` and further `conditions`, compared with plain Hugging
    Face + peft in each of them on the texts of `probe`.

    `model`: a folder, a hub id, or a Hugging Face model in memory with its `tokenizer`. In memory
    the modules are copied and hooked, and the weights shared: the model stays as it was, and must
    not be trained while the lab is used. `prompt`: text before every query, with `separator`
    between them; with `chat` the system message, which `system` says outright. `lora`: a peft
    adapter, as a folder or a hub id; of peft's own model in memory, its active LoRA.
    `template_options`: variables of the chat template. `loading`: `device`, `dtype`, `revision` and
    what else `interp.Experiment` has of loading; a model in memory has its own device and number
    format.

    Raises an `InterpError` of one line rather than return a model that differs.
    """
    named = isinstance(model, str | Path)
    options = _options(loading, tokenizer, named, chat, template_options)
    with TemporaryDirectory() as folder:
        if isinstance(model, PeftModel):
            if lora is not None:
                raise ConfigError("peft's model has its adapter in it: leave lora= away")
            model, lora = parted(model, Path(folder) / "in_memory")
        built = _built(_shorthand(prompt, system, lora, chat, separator), conditions or {})
        built = {n: located(c, options.adapter_revision) for n, c in built.items()}
        opened = str(model) if named else Held.of(model, tokenizer)
        subject = load_subject(
            opened, built, probe, frame=options.framed, progress=progress, **options.loading
        )
    return Lab(subject, built, options, str(model) if named else None)


def _options(
    loading: Mapping[str, Any],
    tokenizer: Any,
    named: bool,
    chat: bool,
    template_options: Mapping[str, Any] | None,
) -> Framing:
    """How a model is loaded, checked; `named`: it is read from files."""
    fields = dict(loading)
    if not named and (own := sorted(loading.keys() & Loading.model_fields.keys() - IN_MEMORY)):
        raise ConfigError(f"a model in memory brings its own {own[0]}: leave {own[0]}= away")
    if named and tokenizer is not None:
        if not isinstance(tokenizer, str | Path):
            raise ConfigError("a model that is read from files takes its tokenizer by name, too")
        fields["tokenizer"] = str(tokenizer)
    if template_options is not None and not chat:
        raise ConfigError("template_options are a chat's: add chat=True")
    frame = None if template_options is None else {"template_options": dict(template_options)}
    try:
        Loading.model_validate(fields)  # nothing but what is loaded
        return Framing.model_validate({**fields, "chat": chat, "frame": frame})
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def _shorthand(
    prompt: str | None, system: str | None, lora: str | Path | None, chat: bool, separator: str
) -> dict[str, Condition]:
    """The conditions that have arguments of their own."""
    if prompt is not None and system is not None:
        raise ConfigError("give prompt or system, not both: further ones go into conditions")
    if system is not None and not chat:
        raise ConfigError("a system message is a chat's: add chat=True")
    words = system if prompt is None else prompt
    built: dict[str, Condition] = {}
    if words is not None:
        built["prompt"] = Prompt(system=words) if chat else Prompt(text=words, separator=separator)
    if lora is not None:
        built["lora"] = Lora(str(lora))
    return built


def _built(
    shorthand: Mapping[str, Condition], more: Mapping[str, Condition]
) -> dict[str, Condition]:
    """All conditions, base first."""
    built = {BASE: Base(), **shorthand}
    for name, condition in more.items():
        _check_condition(name, condition, built)
        built[name] = condition
    return built


def _check_condition(name: str, condition: Any, known: Mapping[str, Condition]) -> None:
    if not isinstance(condition, Condition):
        raise ConfigError(
            f"condition {name}: give one of interp's, like interp.Prompt(text=...), not "
            f"{type(condition).__name__}"
        )
    if not CONDITION_NAME.fullmatch(name):
        raise ConfigError(f"condition name {name!r}: use letters, digits, _ . and -")
    if name in known:
        raise ConfigError(f"condition {name!r} is there already: give it another name")
    if any(isinstance(part, FittedBias) for part in simple_parts(condition)):
        raise ConfigError(f"condition {name}: a bias is fitted by a study, interp.diverge")
