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

from interp import organism
from interp.conditions import (
    CONDITION_KINDS,
    REFERENCES,
    Base,
    Composed,
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
    located,
)
from interp.contrast import Contrast, is_few_shot, is_plain_lora, is_prompt, is_text
from interp.design import BASE, headline_of
from interp.errors import ConditionError, ConfigError

FILE_ONLY = {"conditions", "families", "frame"}
"""Fields that a YAML file has and the command line has not."""

CONDITION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


_Control = Literal[
    "neutral",
    "empty_system",
    "shuffled_tokens",
    "shuffled_labels",
    "shifted",
    "random_lora",
    "logit_bias",
    "untrained",
]
"""The null controls. Each replaces the part that only one side of the headline has, and keeps the
rest of that side. `neutral`: a text of the prompt's length. `empty_system`: an empty system
message, where the chat template writes one of its own. `shuffled_tokens`: the prompt's tokens in
random order. `shifted`: no prompt, the query at its positions after the prompt. `shuffled_labels`:
few-shot demonstrations with each other's answers. `random_lora`: a random LoRA of the same shape,
for a plain LoRA. `untrained`: freshly initialised weights, a second set in memory. `logit_bias`:
base with a constant bias fitted to the outputs of the headline's reference."""


class ChatFrame(BaseModel):
    """The format of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    template_options: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as enable_thinking or date_string."""


class Loading(BaseModel):
    """How a command opens its model: the arguments of `interp.subject.load`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ... (auto: cuda where there is one)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights; sums are in float64."""
    revision: str | None = None
    """Revision of a model on the hub."""
    adapter_revision: str | None = None
    """Revision of adapters on the hub."""
    trust_remote_code: bool = False
    """Allow a model to run code that comes with it."""
    allow_other_base: bool = False
    """Accept an adapter whose configuration names another base model."""
    allow_idle: bool = False
    """Accept an adapter, other weights or a steering vector that change no output."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer of all conditions (none: the model's)."""
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
        """The arguments of `from_pretrained` that name the model's files."""
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "gguf_file": self.gguf_file,
        }


class Framing(Loading):
    """The frame of the queries, and the source of their answers."""

    chat: bool = False
    """Every query is a user message in the tokenizer's chat template, in all conditions; a prompt
    file's text stands at the start of that message."""
    frame: ChatFrame | None = None
    """A chat with variables of its template (YAML only): `frame: {template_options: {...}}`."""
    answer_tokens: int = Field(default=0, ge=0)
    """Longest answer, in tokens, that conditions generate themselves (0: none are generated)."""
    temperature: float = Field(default=0, ge=0)
    """Sampling temperature of generated answers (0: greedy)."""

    @property
    def framed(self) -> Frame:
        """The frame of the queries."""
        return Frame(
            self.chat or self.frame is not None, self.frame.template_options if self.frame else {}
        )

    def system(self, path: Path) -> Prompt:
        """A file's text as a system message; a ConfigError without a chat."""
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
    """JSONL file of held-out queries, reported apart."""
    separator: str = "\n"
    """Text between a prompt file's text and the query."""
    system_file: tuple[Path, ...] = ()
    """Text files, each a system message of a --chat. One is `prompt`, several `prompt_0`, ..."""
    answers_from: str | None = None
    """Condition whose generated answer is forced on all others (none: the queries' answers)."""
    families: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Conditions of one kind, by family (YAML only); `few_0` and `few_1` form `few` by default."""
    compare: tuple[str, str] | None = None
    """The headline: two conditions to compare (none: the first prompt and first adapter)."""
    controls: tuple[_Control, ...] = get_args(_Control)
    """Null controls to run, where they apply (none: write the flag alone)."""
    batch_size: int | None = Field(default=None, ge=1)
    """Queries per forward pass (none: as many as `memory` allows)."""
    memory: float = Field(default=0.25, gt=0)
    """Memory in GB for the activations of one chunk; it sets the batch size."""
    seed: int = 0
    """Seed of the bootstrap and of every control."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first queries of each file."""
    against: str | None = None
    """Decompose the answer's logit difference from this token instead of the answer's logit."""
    bootstrap: int = Field(default=200, ge=0)
    """Bootstrap replicates behind every interval."""
    permutations: int = Field(default=999, ge=0)
    """Permutations behind every p-value (0: no tests)."""
    sample: int = Field(default=100, ge=0)
    """Queries whose states are kept for geometry measures (0: none)."""
    max_positions: int = Field(default=32, ge=0)
    """Query positions with rows of their own (`last` and `mean` always cover all)."""
    keys_values: bool = False
    """Also compare keys and values by key/value head: those of the query, and those of the context
    where two conditions have equally many."""
    lens: bool = True
    """Compute the logit lens: one unembedding per layer and answer token, slow for a large
    vocabulary."""
    score_split: bool = False
    """Split the change of every head's scores by cause: its queries' inputs, its keys' inputs, its
    weights. Takes seven more runs per condition with weights of its own, three per other one."""
    tolerance_js: float = Field(default=0.02, ge=0)
    """Largest mean JS divergence (nats) at which outputs count as matched."""
    tolerance_top1: float = Field(default=0.95, ge=0, le=1)
    """Smallest share of queries with the same top-1 token at which outputs count as matched."""
    resume: bool = False
    """Go on with an unfinished run in `out`."""
    overwrite: bool = False
    """Replace what is in `out`."""

    @property
    def unasked(self) -> frozenset[str]:
        """The groups of measures (`interp.capabilities`) that are switched off."""
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
            if not CONDITION_NAME.fullmatch(name):
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
        """The null controls that are asked for and apply."""
        compared = headline_of(built, self.compare)
        a, b = compared or _firsts(built)
        contrast, others = Contrast.of(built[a], built[b]), built.values()
        reference = a if b == BASE else b
        seeds = itertools.count(self.seed)  # two random LoRAs of a side are not the same one
        biased = bool(compared) or built[reference].role == "weights"
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
    roles = {condition.role: name for name, condition in reversed(list(built.items()))}
    return roles.get("prompt", BASE), roles.get("weights", BASE)


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
    """Text file with the prompt that the LoRA imitates; it stands before every query."""
    system_file: Path | None = None
    """Text file with the system message of a --chat that the LoRA imitates."""
    heldout: Path | None = None
    """JSONL file of held-out queries for a second certificate."""
    separator: str = "\n"
    """Text between the prompt file's text and the query."""
    positions: Literal["answer", "all"] = "answer"
    """Match outputs at the answer's tokens only, or at all tokens of the query too."""
    on_policy: bool = False
    """Train on answers that the LoRA generates itself, with `KL(LoRA ‖ prompt)`."""
    refresh: int = Field(default=1, ge=1)
    """With --on-policy: epochs between two generations of answers."""
    align: Literal["resid_post"] | None = None
    """Also match the residual stream after every block, at the same positions."""
    align_weight: float = Field(default=1.0, gt=0)
    """Weight of the states' relative squared distance, relative to the divergence in nats."""
    rank: int = Field(default=8, ge=1)
    """Rank of the LoRA."""
    alpha: float = Field(default=16, gt=0)
    """LoRA alpha; the update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Module names that get a LoRA (all-linear: every linear layer but the unembedding)."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW, with cosine decay to zero."""
    epochs: int = Field(default=60, ge=1)
    """Largest number of passes over the queries."""
    batch_size: int = Field(default=16, ge=1)
    """Queries per gradient step."""
    target_kl: float = Field(default=1e-3, ge=0)
    """Stop early when an epoch's mean KL (nats) is at most this."""
    patience: int = Field(default=15, ge=1)
    """Stop early after this many epochs without improvement."""
    seed: int = 0
    """Seed of the LoRA's initial values, the order of queries and sampled answers."""
    adapter_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the adapter's file."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first queries of each file."""
    tolerance_js: float = Field(default=0.02, ge=0)
    """Largest mean JS divergence (nats) at which outputs count as matched."""
    tolerance_top1: float = Field(default=0.95, ge=0, le=1)
    """Smallest share of queries with the same top-1 token at which outputs count as matched."""
    overwrite: bool = False
    """Replace an adapter in `out`."""

    @property
    def prompt(self) -> Prompt:
        """The prompt to imitate; a ConfigError unless exactly one is given."""
        if self.system_file is not None and self.prompt_file is None:
            return self.system(self.system_file)
        if self.prompt_file is not None and self.system_file is None:
            return Prompt(text=read_prompt(self.prompt_file), separator=self.separator)
        raise ConfigError("give exactly one of --prompt-file and --system-file")

    def check(self) -> None:
        """A ConfigError where an option needs another one."""
        if self.on_policy and not self.answer_tokens:
            raise ConfigError("--on-policy needs --answer-tokens: how many tokens the LoRA writes")


def read_prompt(path: Path) -> str:
    """A prompt file's text, without one line break at its end (the editor's)."""
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


def parse_condition(name: str, spec: Any, known: Mapping[str, Condition]) -> Condition:
    """`{kind: {field: value}}`, or a list of them (composed); `like`, `of`, `by` name others."""
    if isinstance(spec, list) and spec:
        first, *rest = (parse_condition(name, part, known) for part in spec)
        for part in rest:
            first = first + part
        return first
    if not (isinstance(spec, dict) and len(spec) == 1):
        raise ConfigError(
            f"condition {name}: write one of {', '.join(CONDITION_KINDS)} with its fields"
        )
    ((kind, given),) = spec.items()
    if kind not in CONDITION_KINDS:
        raise ConfigError(
            f"condition {name}: no kind {kind!r}; there are {', '.join(CONDITION_KINDS)}"
        )
    if not isinstance(given, dict | None):
        raise ConfigError(f"condition {name}: write {kind}'s fields as `field: value`")
    values = dict(given or {})
    for reference in REFERENCES & values.keys():
        if not isinstance(values[reference], str) or values[reference] not in known:
            raise ConfigError(f"condition {name}: {reference} names no condition above it")
        values[reference] = known[values[reference]]
    for field, form in {"file": "text", "system_file": "system"}.items():
        if field in values and kind == "prompt":
            values[form] = read_prompt(Path(values.pop(field)))
    try:
        return TypeAdapter(CONDITION_KINDS[kind]).validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"condition {name}: {explain(error)}") from error
    except ConditionError as error:
        raise ConfigError(f"condition {name}: {error}") from error


def write_condition(name: str, condition: Condition, known: Mapping[str, Condition]) -> Any:
    """A condition as `parse_condition` reads it; what it refers to must be among those `known`."""
    if isinstance(condition, Composed):
        return [write_condition(name, part, known) for part in condition.conditions]
    if not is_dataclass(condition):
        raise ConfigError(f"condition {name}: an experiment has no {type(condition).__name__}")
    values = {field.name: getattr(condition, field.name) for field in fields(condition)}
    for reference in REFERENCES & values.keys():
        named = (other for other, own in known.items() if own == values[reference])
        if (found := next(named, name)) == name:
            raise ConfigError(f"condition {name}: give what it is {reference} a name of its own")
        values[reference] = found
    return {condition.tag: {key: v for key, v in values.items() if v not in (None, ())}}


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


_PATHS = {
    "model", "queries", "out", "adapter", "prompt_file", "system_file", "heldout", "file",
    "conditions", "vector", "tokenizer",
}  # fmt: skip


def _beside(folder: Path, key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _beside(folder, k, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_beside(folder, key, item) for item in value]
    if key in _PATHS and isinstance(value, str):
        whole = value.rpartition(":")[0] if key == "adapter" else ""  # of `adapter:subfolder`
        if (folder / value).exists() or (whole and (folder / whole).exists()):
            return str(folder / value)
    return value


def explain(error: ValidationError) -> str:
    """The first fault of a configuration in one line."""
    fault = error.errors()[0]
    field = ".".join(map(str, fault["loc"])) or "experiment"
    return f"{field}: {fault['msg']}"
