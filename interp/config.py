"""Settings: the Python API, the YAML file and the command line are the same models.

    Experiment(model="gpt2", adapter=("lora",), prompt_file=("p.txt",), queries="q", out="run")
    Experiment(**from_yaml("experiment.yaml"))

Torch-free, so that `interp diverge --help` answers at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from interp import conditions as conditions_room
from interp import organism
from interp.conditions import (
    Base,
    Condition,
    EmptySystem,
    FittedBias,
    Frame,
    Lora,
    Neutral,
    Prompt,
    RandomLora,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    kind,
    located,
)
from interp.contrast import Contrast, is_few_shot, is_plain_lora, is_prompt, is_text
from interp.design import BASE, headline_of
from interp.errors import ConditionError, ConfigError

FILE_ONLY = {"conditions", "families", "frame"}
"""Fields that a YAML file has and the command line has not."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


Control = Literal[
    "neutral",
    "empty_system",
    "shuffled_tokens",
    "shuffled_labels",
    "shifted",
    "random_lora",
    "logit_bias",
    "untrained",
]
"""The null battery: a side of the headline with what the other side has not replaced, and the rest
kept. `neutral`: text as long as its prompt; `empty_system`: where a chat template writes a system
message of its own; `shuffled_tokens`, `shifted`: of that prompt;
`shuffled_labels`: of few-shot demonstrations; `random_lora`: of its LoRA, where that is plain;
`untrained`: a second set of weights in memory. `logit_bias`: base with the output of the headline's
reference."""


class ChatFrame(BaseModel):
    """How a chat is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    template_options: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as enable_thinking or date_string."""


class Loading(BaseModel):
    """How a command opens its model: what it hands on to `interp.subject.load`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "auto"
    """cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights; sums are made in float64."""
    revision: str | None = None
    """Revision of a model on the hub."""
    adapter_revision: str | None = None
    """Revision of the adapters that are on the hub."""
    trust_remote_code: bool = False
    """Allow a model that brings its own code to run it."""
    allow_other_base: bool = False
    """Accept an adapter whose configuration names another base model."""
    allow_idle: bool = False
    """Go on where an adapter, other weights or a steering vector change no output."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer to use in all conditions (none: the model's)."""
    gguf_file: str | None = None
    """Read the model from this GGUF file of its folder or hub id, de-quantised."""
    quantization: Literal["int8", "int4"] | None = None
    """Round the weights of the blocks to 8 or 4 bits (by torchao; 4 on cuda by bitsandbytes)."""

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `load` that every command shares."""
        return {name: getattr(self, name) for name in Loading.model_fields}

    @property
    def hub(self) -> dict[str, Any]:
        """What transformers is told of the model's files."""
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "gguf_file": self.gguf_file,
        }


class Framing(Loading):
    """Where queries stand, and who answers them."""

    chat: bool = False
    """Every query is a user's message, written by the tokenizer's chat template in all conditions;
    a prompt file's text stands at the beginning of that message."""
    frame: ChatFrame | None = None
    """A chat with variables of its template (YAML only): `frame: {template_options: {...}}`."""
    answer_tokens: int = Field(default=0, ge=0)
    """Most tokens of the answers that conditions write themselves (0: none are written)."""
    temperature: float = Field(default=0, ge=0)
    """Of the answers written: 0 is greedy, else they are sampled by the seed."""

    @property
    def framed(self) -> Frame:
        """Where queries stand."""
        return Frame(
            self.chat or self.frame is not None, self.frame.template_options if self.frame else {}
        )

    def system(self, path: Path) -> Prompt:
        """A file's text as a system message, which only a chat has."""
        if not self.framed.chat:
            raise ConfigError("--system-file is a chat's system message: add --chat")
        return Prompt(system=read_prompt(path))


class Experiment(Framing):
    """Compare one model under prompts and adapters, on the same queries."""

    model: str
    """Model folder or hub id."""
    queries: Path
    """JSONL file: {"text": ..., "answer": ... (optional), "label": ... (optional)} per line."""
    out: Path
    """Folder of the run."""
    adapter: tuple[str, ...] = ()
    """peft adapters: folders or hub ids, either with `:subfolder`. One is condition `lora`, several
    are `lora_0`, `lora_1`, ..."""
    prompt_file: tuple[Path, ...] = ()
    """Text files, each put before the query. One is `prompt`, several are `prompt_0`, ..."""
    conditions: dict[str, Any] = Field(default_factory=dict)
    """Further conditions by name (YAML only), such as `few: {prompt: {pairs: [[hot, cold]]}}`."""
    heldout: Path | None = None
    """More queries, reported apart: those that nothing was fitted on."""
    separator: str = "\n"
    """Written between a prompt file's text and the query."""
    system_file: tuple[Path, ...] = ()
    """Text files, each a system message of a --chat. One is `prompt`, several `prompt_0`, ..."""
    answers_from: str | None = None
    """Condition whose own answer is forced on all others (none: the answers of the queries)."""
    families: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Conditions of one kind, by family (YAML only). `few_0` and `few_1` are one anyway: `few`."""
    compare: tuple[str, str] | None = None
    """The two conditions the run is about (default: the first prompt and the first adapter)."""
    controls: tuple[Control, ...] = get_args(Control)
    """Controls to run as well, where they apply (none: write the flag alone)."""
    batch_size: int | None = Field(default=None, ge=1)
    """Queries per forward pass (none: as many as `memory` allows)."""
    memory: float = Field(default=0.25, gt=0)
    """Budget in GB for one chunk's activations, from which the batch size follows."""
    seed: int = 0
    """Seed of the bootstrap and of every control."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first queries of each file."""
    against: str | None = None
    """Split the answer's lead over this token into its parts, instead of its logit."""
    bootstrap: int = Field(default=200, ge=0)
    """Bootstrap replicates behind every interval."""
    permutations: int = Field(default=999, ge=0)
    """Rearrangements behind every p-value (0: no tests)."""
    sample: int = Field(default=100, ge=0)
    """Queries whose states are kept for the geometry measures (0: none)."""
    max_positions: int = Field(default=32, ge=0)
    """How many query positions get rows of their own (`last` and `mean` always cover all)."""
    keys_values: bool = False
    """Compare keys and values as well, by key/value head: the query's own, and those of what
    precedes it, where two conditions have as many."""
    lens: bool = True
    """Read the logit lens: an unembedding per layer and answer token, dear where the vocabulary is
    large."""
    score_split: bool = False
    """Split the change of every head's scores into what its queries' inputs, its keys' inputs and
    its weights do: seven more runs for a condition with weights of its own, three for another."""
    tolerance_js: float = Field(default=0.02, ge=0)
    """Largest mean JS divergence (nats) at which outputs count as matched."""
    tolerance_top1: float = Field(default=0.95, ge=0, le=1)
    """Smallest share of queries on which both must say the same."""
    resume: bool = False
    """Go on with an unfinished run in `out`."""
    overwrite: bool = False
    """Replace what is in `out`."""

    @property
    def unasked(self) -> frozenset[str]:
        """The groups of measures (`interp.capabilities`) that are not asked for."""
        asked = {"lens": self.lens, "score split": self.score_split}
        return frozenset(name for name, wanted in asked.items() if not wanted)

    def build(self) -> dict[str, Condition]:
        """All conditions by name, in the order in which they are shown; `base` is always first."""
        built: dict[str, Condition] = {"base": Base()}
        texts = [Prompt(text=read_prompt(p), separator=self.separator) for p in self.prompt_file]
        systems = [self.system(path) for path in self.system_file]
        for name, prompt in _named("prompt", (*systems, *texts)):
            built[name] = prompt
        for name, adapter in _named("lora", self.adapter):
            built[name] = located(Lora(str(adapter)), self.adapter_revision)
        for name, spec in self.conditions.items():
            if not NAME.fullmatch(name):
                raise ConfigError(f"condition name {name!r}: use letters, digits, _ . and -")
            if name in built:
                raise ConfigError(f"condition {name!r} is defined twice")
            built[name] = located(parse_condition(name, spec, built), self.adapter_revision)
        if len(built) == 1:
            raise ConfigError("nothing to compare: give --prompt-file, --adapter or conditions")
        for name, control in self._battery(built).items():
            built.setdefault(name, control)
        if self.answers_from is not None and self.answers_from not in built:
            raise ConfigError(
                f"--answers-from: no condition {self.answers_from!r} among {', '.join(built)}"
            )
        if self.answers_from is not None and not self.answer_tokens:
            raise ConfigError("--answers-from needs --answer-tokens: how many tokens it writes")
        return built

    def _battery(self, built: Mapping[str, Condition]) -> dict[str, Condition]:
        """The controls that were asked for and have something to control."""
        compared = headline_of(built, self.compare)
        a, b = compared or _firsts(built)
        contrast, others = Contrast.of(built[a], built[b]), built.values()
        reference = a if b == BASE else b
        seeds = itertools.count(self.seed)  # two random LoRAs of a side are not the same one
        biased = bool(compared) or kind(built[reference]) == "weights"
        possible: dict[str, Condition | None] = {
            "neutral": contrast.replaced(is_prompt, lambda p: Neutral(like=p)),
            "empty_system": EmptySystem() if self.framed.chat else None,
            "shuffled_tokens": contrast.replaced(
                is_text, lambda p: ShuffledTokens(of=p, seed=self.seed), others
            ),
            "shuffled_labels": contrast.replaced(
                is_few_shot, lambda p: ShuffledLabels(of=p, seed=self.seed), others
            ),
            "shifted": contrast.replaced(is_prompt, lambda p: Shifted(by=p)),
            "random_lora": contrast.replaced(
                is_plain_lora, lambda p: RandomLora(like=p, seed=next(seeds)), others
            ),
            "logit_bias": FittedBias(like=built[reference]) if biased else None,
            "untrained": contrast.untrained(self.seed) if compared else None,
        }
        return {name: c for name, c in possible.items() if name in self.controls and c is not None}


def _firsts(built: Mapping[str, Condition]) -> tuple[str, str]:
    """The first prompt and the first weights of a run without a headline, or base for either."""
    kinds = {kind(condition): name for name, condition in reversed(list(built.items()))}
    return kinds.get("prompt", BASE), kinds.get("weights", BASE)


def bundled(out: Path) -> dict[str, Any]:
    """The fields of the bundled model's study: an instruction and the LoRA distilled from it."""
    return {
        "model": str(organism.MODEL),
        "prompt_file": (organism.PROMPTS / "instruction_0.txt",),
        "adapter": (str(organism.ADAPTERS / "lora_0"),),
        "queries": organism.QUERIES / "matched.jsonl",
        "out": out,
        "overwrite": True,
    }


def bundled_families(out: Path) -> dict[str, Any]:
    """The fields of the bundled model's demonstration: three instructions, five draws of few-shot
    demonstrations, and five LoRAs distilled from the first instruction."""
    instructions, few_shots = (
        sorted(organism.PROMPTS.glob(f"{kind}_*.txt")) for kind in ("instruction", "few_shot")
    )
    shots = {"template": "{query} {answer} ; "}
    conditions: dict[str, Any] = {p.stem: {"prompt": {"file": str(p)}} for p in instructions}
    conditions |= {
        path.stem: {"prompt": {"pairs": organism.demonstrations(path), **shots}}
        for path in few_shots
    }
    adapters = sorted(organism.ADAPTERS.iterdir())
    conditions |= {path.name: {"lora": {"adapter": str(path)}} for path in adapters}
    queries = {group: organism.QUERIES / f"{group}.jsonl" for group in ("matched", "heldout")}
    return {
        "model": str(organism.MODEL),
        "conditions": conditions,
        "queries": queries["matched"],
        "heldout": queries["heldout"],
        "out": out,
        "overwrite": True,
    }


class Distillation(Framing):
    """Train a LoRA whose outputs without a prompt match the model's outputs with it."""

    model: str
    """Model folder or hub id."""
    queries: Path
    """JSONL file of training queries; the answers matched are theirs, or with --answer-tokens those
    that the prompted model writes."""
    out: Path
    """Folder of the adapter."""
    prompt_file: Path | None = None
    """Text file, put before every query: what the LoRA is to imitate."""
    system_file: Path | None = None
    """Text file, the system message of a --chat: what the LoRA is to imitate instead."""
    heldout: Path | None = None
    """Queries for the second certificate; never trained on."""
    separator: str = "\n"
    """Written between the prompt file's text and the query."""
    positions: Literal["answer", "all"] = "answer"
    """Match where the answer's tokens are predicted, or at every token of the query as well."""
    on_policy: bool = False
    """Train on answers that the LoRA writes itself, by `KL(LoRA ‖ prompt)`."""
    refresh: int = Field(default=1, ge=1)
    """With --on-policy: epochs until it writes them anew."""
    align: Literal["resid_post"] | None = None
    """Also match the residual stream after every block, at the positions that are matched."""
    align_weight: float = Field(default=1.0, gt=0)
    """Weight of the states' relative squared distance beside the divergence in nats."""
    rank: int = Field(default=8, ge=1)
    """Rank of the LoRA."""
    alpha: float = Field(default=16, gt=0)
    """LoRA alpha: the update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Module names that get a LoRA (all-linear: every linear layer but the unembedding)."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak of AdamW's learning rate; it falls to zero by a cosine."""
    epochs: int = Field(default=60, ge=1)
    """Passes over the queries, at most."""
    batch_size: int = Field(default=16, ge=1)
    """Queries per step."""
    target_kl: float = Field(default=1e-3, ge=0)
    """Stop early once an epoch's mean KL (nats) is at most this."""
    patience: int = Field(default=15, ge=1)
    """Stop early after so many epochs without a new best."""
    seed: int = 0
    """Seed of the LoRA's start, of the order of queries and of sampled answers."""
    adapter_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the adapter's file."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first queries of each file."""
    tolerance_js: float = Field(default=0.02, ge=0)
    """Largest mean JS divergence (nats) at which outputs count as matched."""
    tolerance_top1: float = Field(default=0.95, ge=0, le=1)
    """Smallest share of queries on which both must say the same."""
    overwrite: bool = False
    """Replace an adapter in `out`."""

    @property
    def prompt(self) -> Prompt:
        """What is imitated; a ConfigError unless it is exactly one thing."""
        if self.system_file is not None and self.prompt_file is None:
            return self.system(self.system_file)
        if self.prompt_file is not None and self.system_file is None:
            return Prompt(text=read_prompt(self.prompt_file), separator=self.separator)
        raise ConfigError("give exactly one of --prompt-file and --system-file")

    def check(self) -> None:
        """A ConfigError where an option lacks another."""
        if self.on_policy and not self.answer_tokens:
            raise ConfigError("--on-policy needs --answer-tokens: how many tokens the LoRA writes")


def read_prompt(path: Path) -> str:
    """A prompt file's text; one line break at its end is the editor's and does not count."""
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(f"prompt file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt file {path} is not UTF-8 text ({error.reason})") from error


def _named(name: str, values: tuple[Any, ...]) -> list[tuple[str, Any]]:
    if len(values) == 1:
        return [(name, values[0])]
    return [(f"{name}_{index}", value) for index, value in enumerate(values)]


KINDS: dict[str, type[Condition]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in (
        conditions_room.Base,
        conditions_room.Prompt,
        conditions_room.SoftPrompt,
        conditions_room.Prefix,
        conditions_room.Lora,
        conditions_room.FineTuned,
        conditions_room.Steering,
        conditions_room.LogitBias,
        conditions_room.FittedBias,
        conditions_room.Neutral,
        conditions_room.EmptySystem,
        conditions_room.ShuffledTokens,
        conditions_room.ShuffledLabels,
        conditions_room.Shifted,
        conditions_room.RandomLora,
        conditions_room.Untrained,
    )
}


def parse_condition(name: str, spec: Any, known: Mapping[str, Condition]) -> Condition:
    """`{kind: {field: value}}`, or a list of them (composed); `like`, `of`, `by` name others."""
    if isinstance(spec, list) and spec:
        first, *rest = (parse_condition(name, part, known) for part in spec)
        for part in rest:
            first = first + part
        return first
    if not (isinstance(spec, dict) and len(spec) == 1):
        raise ConfigError(f"condition {name}: write one of {', '.join(KINDS)} with its fields")
    ((kind, given),) = spec.items()
    if kind not in KINDS:
        raise ConfigError(f"condition {name}: no kind {kind!r}; there are {', '.join(KINDS)}")
    if not isinstance(given, dict | None):
        raise ConfigError(f"condition {name}: write {kind}'s fields as `field: value`")
    values = dict(given or {})
    for reference in {"like", "of", "by"} & values.keys():
        if not isinstance(values[reference], str) or values[reference] not in known:
            raise ConfigError(f"condition {name}: {reference} names no condition above it")
        values[reference] = known[values[reference]]
    for field, form in {"file": "text", "system_file": "system"}.items():
        if field in values and kind == "prompt":
            values[form] = read_prompt(Path(values.pop(field)))
    try:
        return TypeAdapter(KINDS[kind]).validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"condition {name}: {explain(error)}") from error
    except ConditionError as error:
        raise ConfigError(f"condition {name}: {error}") from error


def write_condition(name: str, condition: Condition, known: Mapping[str, Condition]) -> Any:
    """A condition as `parse_condition` reads it; what it refers to must be among those `known`."""
    if isinstance(condition, conditions_room.Composed):
        return [write_condition(name, part, known) for part in condition.conditions]
    kinds = {own: kind for kind, own in KINDS.items()}
    if type(condition) not in kinds or not is_dataclass(condition):
        raise ConfigError(f"condition {name}: an experiment has no {type(condition).__name__}")
    values = {field.name: getattr(condition, field.name) for field in fields(condition)}
    for reference in {"like", "of", "by"} & values.keys():
        named = (other for other, own in known.items() if own == values[reference])
        if (found := next(named, name)) == name:
            raise ConfigError(f"condition {name}: give what it is {reference} a name of its own")
        values[reference] = found
    return {kinds[type(condition)]: {key: v for key, v in values.items() if v not in (None, ())}}


def from_yaml(path: Path) -> dict[str, Any]:
    """The validated fields of a YAML experiment; its relative paths are looked up beside it first.

    Fields that the file leaves out are not in the result: flags may still give them.
    """
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict):
        raise ConfigError(f"{path}: write fields like `model: gpt2`")
    located = {key: _beside(path.parent, key, value) for key, value in written.items()}
    required = {name: "-" for name, f in Experiment.model_fields.items() if f.is_required()}
    try:
        checked = Experiment.model_validate({**required, **located})
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from error
    return {name: getattr(checked, name) for name in located}


PATHS = {
    "model", "queries", "out", "adapter", "prompt_file", "system_file", "heldout", "file",
    "conditions", "vector", "tokenizer",
}  # fmt: skip


def _beside(folder: Path, key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _beside(folder, k, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_beside(folder, key, item) for item in value]
    if key in PATHS and isinstance(value, str):
        whole = value.rpartition(":")[0] if key == "adapter" else ""  # of `adapter:subfolder`
        if (folder / value).exists() or (whole and (folder / whole).exists()):
            return str(folder / value)
    return value


def explain(error: ValidationError) -> str:
    """The first fault of a configuration in one line."""
    fault = error.errors()[0]
    field = ".".join(map(str, fault["loc"])) or "experiment"
    return f"{field}: {fault['msg']}"
