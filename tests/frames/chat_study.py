"""A chat study of a tiny model, for the library and for the slow reference.

case = make("llama3", folder)
run = load_run(diverge(case.experiment))
expected = case.expected("matched")

The reference reads whole conversations that `apply_chat_template` has written, cut before the
query's own words, and knows nothing of how the library finds these.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import brute_force
import reference
import tiny_models
from frames.styles import STYLES, Messages, assistant, made, system, user
from frames.styles import reference as conversation
from reference import Condition, Key, Study, Value
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from interp.conditions import Frame, Prompt, ShuffledTokens, place
from interp.config import ChatFrame, Experiment
from interp.geometry.transfer import LabelFolds

SYSTEM = "people walked along the road and talked."
TEXT = "hot is the opposite of"
FEW = brute_force.FEW
MAX_POSITIONS = 3
N_TOKENS = 4
PASSAGE = tiny_models.TEXT
QUERIES: dict[str, list[tuple[str, str | None]]] = {
    "matched": [
        ("the road", "is wide"),
        ("up is", "the opposite"),
        ("the opposite of big", "is small."),
        ("lily said: yes!", None),
        ("people talked about small things", "the weather"),
        ("the weather was mild that day.", "tom"),
        ("cold is", "high"),
        ("people talked", None),
        ("tom said\nno?", "lily said"),
        ("small is", "the opposite of big"),
        ("hot is", "cold"),
        ("the road is", "a river"),
        ("the hill is", "high"),
    ],
    "heldout": [("down is", "a hill is high"), ("tom walked", None), ("the river", "is wide")],
}


@dataclass(frozen=True)
class Setup:
    """A style of template, the architecture under it, and where the forced answers come from: a
    condition, or (None) the query file."""

    architecture: str
    answers_from: str | None
    heldout: bool = False
    bootstrap: int = 0


CASES = {
    "default": Setup("gpt2", "lora_0", heldout=True, bootstrap=20),
    "llama3_dated": Setup("llama", "prompt"),
    "gemma": Setup("gemma2", "lora_0"),
    "mistral": Setup("qwen3", None),
}


@dataclass(frozen=True)
class Cut:
    """A conversation with a query: what precedes the query's words, the rest, and how many tokens
    of it are the query's words."""

    prefix: tuple[int, ...]
    ids: tuple[int, ...]
    n_text: int


def cut(words: Any, messages: Messages, **options: Any) -> Cut:
    """Cut a conversation where the last message's words begin."""
    text = messages[-1]["content"]
    text = text.removeprefix(f"{TEXT}\n")
    whole = conversation(words, messages, **options)
    rendered = words.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **options
    )
    again = words(rendered, add_special_tokens=False, return_offsets_mapping=True)
    assert again["input_ids"] == whole
    start = rendered.rindex(text)
    places = again["offset_mapping"]
    first = next(i for i, (_, end) in enumerate(places) if end > start)
    n_text = sum(begin < start + len(text) for begin, _ in places[first:])
    return Cut(tuple(whole[:first]), tuple(whole[first:]), n_text)


@dataclass(frozen=True)
class Case:
    """A study and all that the reference needs to know of it. `messages`: what every condition puts
    before a query, as a conversation, and the text at its beginning."""

    experiment: Experiment
    words: Any
    options: dict[str, Any]
    queries: Mapping[str, Sequence[tuple[str, str | None]]]
    messages: dict[str, tuple[Messages, str]]
    conditions: dict[str, Condition]
    stop: list[int]
    whole_vocabulary: bool = True
    observed: dict[str, dict[str, list[reference.States]]] = field(default_factory=dict)
    told: dict[str, dict[str, list[tuple[int, ...]]]] = field(default_factory=dict)

    def cuts(self, name: str, group: str) -> list[Cut]:
        """Every query under a condition, whose ids must be those in base, after one prefix."""
        before, text = self.messages.get(name, ([], ""))
        base = [cut(self.words, [user(query)], **self.options) for query, _ in self.queries[group]]
        own = [
            cut(self.words, [*before, user(text + query)], **self.options)
            for query, _ in self.queries[group]
        ]
        assert [each.ids for each in own] == [each.ids for each in base]
        assert len({each.prefix for each in own}) == 1
        return own

    @cached_property
    def prefixed(self) -> dict[str, Condition]:
        """The conditions with the token ids that precede every query."""
        found = {}
        for name, condition in self.conditions.items():
            prefix = self.cuts(name, "matched")[0].prefix
            assert not condition.prefix or len(condition.prefix) == len(prefix)
            found[name] = replace(condition, prefix=condition.prefix or prefix)
        return found

    def written(self, group: str) -> dict[str, list[tuple[int, ...]]]:
        """What every condition answers by itself."""
        n_tokens = self.experiment.answer_tokens
        if not n_tokens:
            return {}
        if group not in self.told:
            model, queries = self.experiment.model, self.cuts("base", group)
            self.told[group] = {
                name: [reference.write(model, c, q.ids, n_tokens, self.stop) for q in queries]
                for name, c in self.prefixed.items()
            }
        return self.told[group]

    def answers(self, group: str, written: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """What is forced on all conditions; nothing where it is not known."""
        if self.experiment.answers_from:
            return list(written[self.experiment.answers_from])
        found = []
        for query, answer in self.queries[group]:
            rendered = self.words.apply_chat_template(
                [user(query)], add_generation_prompt=True, tokenize=False, **self.options
            )
            before, joint = (
                self.words(text, add_special_tokens=False)["input_ids"]
                for text in (rendered, rendered + (answer or ""))
            )
            assert joint[: len(before)] == before
            found.append(tuple(joint[len(before) :]))
        return found

    def expected(self, group: str) -> tuple[dict[Key, Value], dict[tuple[str, str], Any]]:
        """Every row of the run, and every certificate."""
        cuts, written = self.cuts("base", group), self.written(group)
        answers = self.answers(group, written)
        rows = [each.ids + answer[:-1] for each, answer in zip(cuts, answers, strict=True)]
        ends = [len(each.ids) for each in cuts]
        kept = None if self.whole_vocabulary else answers
        observed = reference.observe(self.experiment.model, self.prefixed, rows, ends, kept)
        self.observed[group] = observed
        study = Study(
            self.prefixed,
            observed,
            self.pairs,
            [answer or None for answer in answers],
            MAX_POSITIONS,
            headline=self.headline,
            families=self.families,
            texts=[each.n_text for each in cuts],
            **self.probed() if group == "matched" else {},
        )
        table = reference.rows(study)
        if written:
            table |= reference.own_rows(written, self.certified)
        signed = {
            (a, b): reference.certificate(observed[a], observed[b]) for a, b in self.certified
        }
        return table, signed

    @property
    def headline(self) -> tuple[str, str]:
        return ("prompt", next(name for name in self.conditions if name.startswith("lora")))

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        return brute_force.FAMILIES if "few_0" in self.conditions else {}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        if self.families:
            return brute_force.pairs(self.prefixed)
        return [self.headline, *((name, "base") for name in self.conditions if name != "base")]

    @property
    def certified(self) -> list[tuple[str, str]]:
        if not self.families:
            return sorted(self.pairs)
        found = brute_force.certified(self.prefixed)
        return sorted(found | {(few, "weak") for few in brute_force.FAMILIES["few"]})

    def probed(self) -> dict[str, Any]:
        """What geometry depends on; folds are the library's choice."""
        if not self.families:
            return {}
        labels = [brute_force.label(text) for text, _ in self.queries["matched"]]
        split = LabelFolds.of(labels, seed=0)
        assert split is not None
        assert len(split.rows) == len(labels)
        pairs = brute_force.geometry_pairs(self.prefixed)
        return {"geometry": pairs, "labels": labels, "folds": split.fold.tolist()}


def filled(words: Any, before: Messages, tokens: Sequence[int], **options: Any) -> tuple[int, ...]:
    """A prefix with other tokens in the place of its system message's own."""
    prefix = cut(words, [*before, user("hot")], **options).prefix
    rendered = words.apply_chat_template([*before, user("hot")], tokenize=False, **options)
    start, content = rendered.index(SYSTEM), before[0]["content"]
    again = words(rendered, add_special_tokens=False, return_offsets_mapping=True)
    places = again["offset_mapping"][: len(prefix)]
    own = [i for i, (a, b) in enumerate(places) if a >= start and b <= start + len(content)]
    new = list(prefix)
    for i, token in zip(own, tokens, strict=False):
        new[i] = token
    assert len(own) <= len(tokens)
    return tuple(new)


def shuffled(words: Any, prefix: tuple[int, ...], frame: Frame) -> tuple[int, ...]:
    """The library's order of the system message's tokens, which nothing else has changed."""
    control = ShuffledTokens(of=Prompt(system=SYSTEM))
    found = place(control, [user("hot")], words, frame).prefix
    assert sorted(found) == sorted(prefix)
    moved = [i for i, (a, b) in enumerate(zip(found, prefix, strict=True)) if a != b]
    assert moved
    inside = words.decode([prefix[i] for i in range(moved[0], moved[-1] + 1)])
    assert inside.strip() in SYSTEM
    return found


def make(style: str, folder: Path) -> Case:
    setup, options = CASES[style], STYLES[style].options
    architecture = setup.architecture
    model = tiny_models.save_model(architecture, folder / "model", words=made(STYLES[style]))
    targets = tiny_models.all_targets(architecture)
    loras = tuple(
        tiny_models.save_adapter(model, folder / f"lora_{i}", targets, seed=i) for i in (1, 2)
    )
    soft = tiny_models.save_soft_prompt(model, folder / "soft")
    keys = tiny_models.save_prefix(model, folder / "keys")
    vector_file = tiny_models.save_steering(model, folder / "vector.safetensors")
    vector = tuple(load_file(vector_file)["vector"].tolist())
    words = AutoTokenizer.from_pretrained(model)
    turns = [[turn for q, a in pairs for turn in (user(q), assistant(a))] for pairs in FEW]
    spoken = {name: ([system(SYSTEM)], "") for name in ("prompt", "neutral", "shuffled")}
    messages = spoken | {f"few_{i}": (said, "") for i, said in enumerate(turns)}
    messages["joined"] = ([], f"{TEXT}\n")
    own = cut(words, [system(SYSTEM), user("hot")], **options).prefix
    base = cut(words, [user("hot")], **options).prefix
    passage = words(PASSAGE, add_special_tokens=False)["input_ids"]
    token = words.convert_tokens_to_ids("is")
    bias = ((token, 15.0, (0, -1, 7)),)
    conditions = {
        "base": Condition(),
        "prompt": Condition(),
        "lora_0": Condition(adapter=loras[0]),
        "lora_1": Condition(adapter=loras[1]),
        "neutral": Condition(filled(words, [system(SYSTEM)], passage, **options)),
        "shuffled": Condition(shuffled(words, own, Frame(chat=True, template_options=options))),
        "shifted": Condition(shift=len(own) - len(base)),
        "bias": Condition(bias=bias),
        "weak": Condition(adapter=loras[0], scale=0.5),
        **{f"few_{i}": Condition() for i in range(len(FEW))},
        "soft": Condition(soft=soft),
        "keys": Condition(keys=keys),
        "joined": Condition(adapter=loras[1], soft=soft, steering=(vector, 0)),
    }
    groups = ["matched", "heldout"] if setup.heldout else ["matched"]
    for group in groups:
        write_queries(folder / f"{group}.jsonl", group, answers=setup.answers_from is None)
    (folder / "system.txt").write_text(SYSTEM)
    experiment = Experiment(
        model=model,
        adapter=loras,
        system_file=(folder / "system.txt",),
        queries=folder / "matched.jsonl",
        heldout=folder / "heldout.jsonl" if setup.heldout else None,
        out=folder / "run",
        frame=ChatFrame(template_options=options),
        controls=(),
        families={"plain": brute_force.FAMILIES["plain"]},
        conditions=specifications(loras, soft, keys, vector_file),
        answers_from=setup.answers_from,
        answer_tokens=N_TOKENS if setup.answers_from else 0,
        device="cpu",
        batch_size=5,
        bootstrap=setup.bootstrap,
        permutations=19,
        max_positions=MAX_POSITIONS,
    )
    case = Case(
        experiment, words, options, {g: QUERIES[g] for g in groups}, messages, conditions, []
    )
    case.stop.extend(stops(case))
    GenerationConfig(bos_token_id=1, eos_token_id=case.stop).save_pretrained(model)
    return case


def specifications(loras: Sequence[str], soft: str, keys: str, vector: str) -> dict[str, Any]:
    """The conditions as in a YAML file, beside those of the system file and the adapters."""
    lora = loras[0]
    return {
        "neutral": {"neutral": {"like": "prompt", "text": PASSAGE}},
        "shuffled": {"shuffled_tokens": {"of": "prompt"}},
        "shifted": {"shifted": {"by": "prompt"}},
        "bias": {"logit_bias": {"bias": {"is": 15.0}, "positions": [0, -1, 7]}},
        "weak": {"lora": {"adapter": lora, "scale": 0.5}},
        **{f"few_{i}": {"prompt": {"pairs": pairs}} for i, pairs in enumerate(FEW)},
        "soft": {"soft_prompt": {"adapter": soft}},
        "keys": {"prefix": {"adapter": keys}},
        "joined": [
            {"prompt": {"text": TEXT}},
            {"soft_prompt": {"adapter": soft}},
            {"lora": {"adapter": loras[1]}},
            {"steering": {"vector": vector, "layer": 0}},
        ],
    }


def write_queries(path: Path, group: str, answers: bool) -> None:
    lines = []
    for text, answer in QUERIES[group]:
        line: dict[str, Any] = {"text": text, "label": brute_force.label(text)}
        lines.append(json.dumps(line | ({"answer": answer} if answers and answer else {})))
    path.write_text("\n".join(lines) + "\n")


def stops(case: Case) -> list[int]:
    """The two tokens that end the forced answers at as many different lengths as can be."""
    condition = case.prefixed[case.experiment.answers_from or "base"]
    ids = [each.ids for each in case.cuts("base", "matched")]
    model = case.experiment.model
    answers = [reference.write(model, condition, each, N_TOKENS, []) for each in ids]

    def lengths(stop: tuple[int, ...]) -> Counter[int]:
        places = [[i for i, token in enumerate(answer, 1) if token in stop] for answer in answers]
        return Counter(min([*found, N_TOKENS]) for found in places)

    tokens = sorted({token for answer in answers for token in answer})
    return list(max(combinations(tokens, 2), key=lambda stop: (len(lengths(stop)), stop)))
