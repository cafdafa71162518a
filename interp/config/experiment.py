"""Settings of `interp diverge`: an experiment and its conditions, null controls among them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from interp.conditions import (
    Base,
    Condition,
    EmptySystem,
    FittedBias,
    Lora,
    Neutral,
    Prompt,
    RandomLora,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    located,
)
from interp.config.parsing import CONDITION_NAME, parse_condition, read_prompt
from interp.config.settings import MANY, Bootstrapped, Computing, Framing, Matched, Seed
from interp.contrast import Contrast, is_few_shot, is_plain_lora, is_prompt, is_text
from interp.design import BASE, headline_of
from interp.errors import ConfigError
from interp.selection import ALL_GROUPS, PRESETS, chosen, computed, measures_of

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


class Experiment(Framing, Matched, Bootstrapped, Computing):
    """Compare one model under prompts and adapters, on the same queries."""

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
    memory: float = Field(default=1.0, gt=0)
    """Memory in GB for the activations of one chunk; it sets the batch size."""
    seed: Seed = 0
    """Seed of the bootstrap and of every control."""
    against: str | None = None
    """Decompose the answer's logit difference from this token instead of the answer's logit."""
    permutations: int = Field(default=999, ge=0, le=MANY)
    """Permutations behind every p-value (0: no tests)."""
    sample: int = Field(default=100, ge=0)
    """Queries whose states are kept for geometry measures (0: none)."""
    max_positions: int | None = Field(default=None, ge=0)
    """Query positions with rows of their own; `last` and `mean` always cover all (none: 32, or 0 in
    a model of more than 512 heads, whose table would have millions of rows)."""
    keys_values: bool = False
    """Also compare keys and values by key/value head: those of the query, and those of the context
    where two conditions have equally many."""
    preset: Literal["quick", "full"] = "full"
    """Which measures to compute: full, or quick, without runs at pinned inputs (re-wiring, terms of
    heads' changes) and without the geometry of queries."""
    measures: tuple[str, ...] = ()
    """Measures, or groups of measures, that alone are computed and written (none: those of the
    preset)."""
    lens: bool = True
    """Compute the logit lens: one unembedding per layer and answer token, slow for a large
    vocabulary."""
    score_split: bool = False
    """Split the change of every head's scores by cause: its queries' inputs, its keys' inputs, its
    weights. Takes seven more runs per condition with weights of its own, three per other one."""
    resume: bool = False
    """Go on with an unfinished run in `out`."""
    overwrite: bool = False
    """Replace what is in `out`."""

    @model_validator(mode="after")
    def _agree(self) -> Experiment:
        """What is named is there, and not switched off."""
        unasked = self.unasked
        if self.measures and (self.preset != "full" or self.score_split or not self.lens):
            raise ConfigError(
                "--measures names all that is computed: leave --preset quick, --score-split and "
                "--no-lens away"
            )
        if self.preset == "quick" and self.score_split:
            raise ConfigError(
                "--score-split needs the runs at pinned inputs that --preset quick leaves out: "
                "leave one of them away"
            )
        if self.keys_values and "states" in unasked:
            raise ConfigError("--keys-values compares states: add states to --measures")
        if self.measures and not self.sample and "geometry" not in unasked:
            raise ConfigError("measures of geometry need states of queries: give a --sample")
        return self

    @property
    def written(self) -> frozenset[str]:
        """The measures that get rows."""
        if self.measures:
            return chosen(self.measures)
        off, added = ({name} for name in ("lens", "score split"))
        groups = PRESETS[self.preset] - (set() if self.lens else off)
        return measures_of(groups | (added if self.score_split else set()))

    @property
    def unasked(self) -> frozenset[str]:
        """The groups of measures (`interp.selection`) that are not computed."""
        return frozenset(ALL_GROUPS) - computed(self.written)

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


def _named(name: str, values: tuple[Any, ...]) -> list[tuple[str, Any]]:
    if len(values) == 1:
        return [(name, values[0])]
    return [(f"{name}_{index}", value) for index, value in enumerate(values)]
