"""Answers are those of plain transformers and peft, and samples are drawn as asked.

Greedy answers are compared token by token with `generate(do_sample=False)` of a plain model or
`PeftModel` on every whole sequence alone; steering with plain forward hooks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from frames.styles import STYLES, assistant, made, reference, system, user
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from interp import generating
from interp.conditions import (
    RAW,
    Base,
    Condition,
    FineTuned,
    Frame,
    LogitBias,
    Lora,
    Prefix,
    Prompt,
    SoftPrompt,
    Steering,
)
from interp.generating import Sampling, generate
from interp.queries import Encoded, Query, encode
from interp.subject import Subject, load
from interp.validation.architectures import save_architecture

ARCHITECTURES = ("llama", "gpt2", "gemma2", "qwen3", "neox")
CHAT = {"llama": "llama3", "gpt2": "chatml", "gemma2": "gemma", "qwen3": "default"}
"""Architectures that are tested in a chat too, and the style of its template."""
N_TOKENS = 8
PROMPT = "hot is the opposite of cold. up is the opposite of"
PAIRS = (("hot", "cold"), ("up", "down"))
SYSTEM = "people walked along the road."
TEXTS = ("the", "up is", "tom said: no", "lily said", "the weather was mild", "hot", "the hill is")


@dataclass(frozen=True)
class Made:
    """A tiny model whose answers end now and then, and all that changes it."""

    subject: Subject
    model: str
    lora: str
    tuned: str
    soft: str
    keys: str
    vector: str
    queries: list[Encoded]
    stop: list[int]
    written: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)

    def answers(self, name: str) -> list[tuple[int, ...]]:
        """What a condition writes."""
        if name not in self.written:
            setting = self.subject.settings[name]
            self.written[name] = generate(self.subject, setting, self.queries, N_TOKENS)
        return self.written[name]


def make(architecture: str, folder: Path, frame: Frame = RAW, words: Any = None) -> Made:
    model = tiny_models.save_model(architecture, folder / architecture, words=words)
    tuned = tiny_models.save_model(architecture, folder / "tuned", seed=7, words=words)
    targets = tiny_models.all_targets(architecture)
    lora = tiny_models.save_adapter(model, folder / "lora", targets)
    soft = tiny_models.save_soft_prompt(model, folder / "soft")
    keys = tiny_models.save_prefix(model, folder / "keys", tokens=9)
    vector = tiny_models.save_steering(model, folder / "vector.safetensors")
    queries = encode(
        [Query(text) for text in TEXTS], AutoTokenizer.from_pretrained(model), frame=frame
    )
    stop = stops(model, queries)
    for path in (model, tuned):
        GenerationConfig(bos_token_id=1, eos_token_id=stop).save_pretrained(path)
    chat = {"system": Prompt(system=SYSTEM), "full": Prompt(system=SYSTEM) + Prompt(pairs=PAIRS)}
    gap = " " if spaced(model) and not frame.chat else "\n"
    prompt = Prompt(text=PROMPT, separator=gap)
    conditions: dict[str, Condition] = {
        "base": Base(),
        "prompt": prompt,
        "few": Prompt(pairs=PAIRS, template="{query} {answer}" + gap),
        "lora": Lora(lora),
        "half": Lora(lora, scale=0.5),
        "both": prompt + Lora(lora),
        "soft": SoftPrompt(soft),
        "keys": Prefix(keys),
        "tuned": FineTuned(tuned),
        "steered": Steering(vector, layer=1, scale=0.5),
        "biased": LogitBias({"is": 3.0}),
        "mixed": SoftPrompt(soft) + Lora(lora) + Steering(vector, layer=0),
        **(chat if frame.chat else {}),
    }
    subject = load(model, conditions, ["the"], frame=frame, device="cpu")
    return Made(subject, model, lora, tuned, soft, keys, vector, queries, stop)


def spaced(model: str) -> bool:
    """Whether the tokenizer begins words with a space sign."""
    return "▁the" in AutoTokenizer.from_pretrained(model).get_vocab()


def stops(model: str, queries: Sequence[Encoded]) -> list[int]:
    """Two tokens that plain answers often have, but do not begin with."""
    hf = AutoModelForCausalLM.from_pretrained(model).eval()
    answers = [steps(hf, [*query.ids], N_TOKENS, []) for query in queries]
    seen = Counter(token for answer in answers for token in set(answer[1:]))
    begun = {answer[0] for answer in answers}
    return [token for token, _ in seen.most_common() if token not in begun][:2]


def steps(model: Any, ids: list[int], n_tokens: int, stop: Sequence[int]) -> list[int]:
    """The most likely token after the whole sequence, again and again."""
    answer: list[int] = []
    while len(answer) < n_tokens and not (answer and answer[-1] in stop):
        with torch.no_grad():
            answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
    return answer


@pytest.fixture(scope="module", params=ARCHITECTURES)
def raw(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=CHAT)
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    frame = Frame(chat=True, template_options={"date_string": "1 Dec 2024"})
    words = made(STYLES[CHAT[request.param]])
    return make(request.param, tmp_path_factory.mktemp(request.param), frame, words)


# Greedy ------------------------------------------------------------------------------------------


def plain(case: Made, name: str) -> Any:
    """The model of a condition as users open it."""
    hf = AutoModelForCausalLM.from_pretrained(case.tuned if name == "tuned" else case.model).eval()
    if name == "half":
        config = PeftConfig.from_pretrained(case.lora)
        config.lora_alpha *= 0.5
        return PeftModel.from_pretrained(hf, case.lora, config=config).eval()
    folder = {"lora": case.lora, "both": case.lora, "soft": case.soft, "keys": case.keys}.get(name)
    return PeftModel.from_pretrained(hf, folder).eval() if folder else hf


def generated(model: Any, ids: Sequence[int]) -> tuple[int, ...]:
    sequence = torch.tensor([[*ids]])
    out = model.generate(
        input_ids=sequence,
        attention_mask=torch.ones_like(sequence),
        do_sample=False,
        max_new_tokens=N_TOKENS,
        pad_token_id=0,
    )
    return tuple(out[0, len(ids) :].tolist())


def sequences(case: Made, name: str) -> list[list[int]]:
    """Every whole sequence by hand: text before text, or a conversation."""
    words = case.subject.tokenizer
    gap = " " if spaced(case.model) and not case.subject.frame.chat else "\n"
    before = {
        "prompt": PROMPT + gap,
        "both": PROMPT + gap,
        "few": "".join(f"{query} {answer}{gap}" for query, answer in PAIRS),
    }
    turns = [turn for q, a in PAIRS for turn in (user(q), assistant(a))]
    earlier = {"few": turns, "system": [system(SYSTEM)], "full": [system(SYSTEM), *turns]}
    found = []
    for text in TEXTS:
        if not case.subject.frame.chat:
            found.append(words(before.get(name, "") + text)["input_ids"])
            continue
        said = text if name == "few" else before.get(name, "") + text
        messages = [*earlier.get(name, []), user(said)]
        found.append(reference(words, messages, date_string="1 Dec 2024"))
    return found


def compare(case: Made, name: str) -> None:
    model = plain(case, name)
    assert case.answers(name) == [generated(model, ids) for ids in sequences(case, name)]


PLAIN = ("base", "prompt", "few", "lora", "half", "both", "soft", "keys", "tuned")


@pytest.mark.parametrize("name", PLAIN)
def test_greedy_answers_are_those_of_transformers_and_peft(raw: Made, name: str) -> None:
    compare(raw, name)


@pytest.mark.parametrize("name", ["base", "few", "both", "soft", "keys", "system", "full"])
def test_greedy_answers_in_a_chat_are_those_of_transformers_and_peft(chat: Made, name: str) -> None:
    compare(chat, name)


def test_answers_end_early_and_late_and_differ(raw: Made) -> None:
    """The comparison is of something: lengths differ, ends are reached, conditions matter."""
    lengths = {len(query.ids) for query in raw.queries}
    assert len(lengths) >= 3
    answers = {name: raw.answers(name) for name in PLAIN}
    everyone = [answer for some in answers.values() for answer in some]
    assert any(answer[-1] in raw.stop and len(answer) < N_TOKENS for answer in everyone)
    assert any(answer[-1] not in raw.stop and len(answer) == N_TOKENS for answer in everyone)
    assert all(token not in raw.stop for answer in everyone for token in answer[:-1])
    assert len({tuple(some) for some in answers.values()}) >= 6
    if "gemma" in raw.model:
        window = raw.subject.bridge.original_model.config.sliding_window
        assert raw.subject.settings["prompt"].n_prefix > window


def added(case: Made, layer: int, scale: float, start: int) -> Any:
    """A forward hook that adds the vector to what a block gives out, from a row on."""
    vector = scale * load_file(case.vector)["vector"]

    def hook(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, start:] += vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def block(model: Any, layer: int) -> Any:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    body = inner.base_model
    return (body.h if hasattr(body, "h") else body.layers)[layer]


def test_steered_answers_are_those_of_plain_hooks(raw: Made) -> None:
    model = plain(raw, "base")
    start = len(raw.subject.settings["base"].prefix)
    handle = block(model, 1).register_forward_hook(added(raw, 1, 0.5, start))
    expected = [tuple(steps(model, ids, N_TOKENS, raw.stop)) for ids in sequences(raw, "base")]
    handle.remove()
    assert raw.answers("steered") == expected


def test_a_bias_is_added_to_every_token_of_an_answer(raw: Made) -> None:
    model, words = plain(raw, "base"), raw.subject.tokenizer
    token = words.convert_tokens_to_ids("is")
    head = model.get_output_embeddings()

    def hook(module: Any, args: Any, output: Any) -> Any:
        return output + 3.0 * (torch.arange(output.shape[-1]) == token)

    capped = getattr(model.config, "final_logit_softcapping", None)
    if capped:
        model.config.final_logit_softcapping = None
        setting = raw.subject.settings["biased"]
        [answer] = generate(raw.subject, setting, raw.queries[:1], 1)
        with torch.no_grad():
            logits = model(torch.tensor([sequences(raw, "base")[0]])).logits[0, -1]
        logits = torch.tanh(logits / capped) * capped
        logits[token] += 3.0
        assert answer == (int(logits.argmax()),)
        return
    handle = head.register_forward_hook(hook)
    expected = [tuple(steps(model, ids, N_TOKENS, raw.stop)) for ids in sequences(raw, "base")]
    handle.remove()
    assert raw.answers("biased") == expected


def test_soft_prompt_lora_and_steering_together(raw: Made) -> None:
    """The soft prompt's embeddings, then the sequence; the LoRA; the vector on the query's rows."""
    hf = AutoModelForCausalLM.from_pretrained(raw.model).eval()
    virtual = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(raw.model), raw.soft
    ).eval()
    with torch.no_grad():
        embeddings = virtual.get_prompt(1)
    model = PeftModel.from_pretrained(hf, raw.lora).eval()
    start = embeddings.shape[1] + len(raw.subject.settings["base"].prefix)
    handle = block(model, 0).register_forward_hook(added(raw, 0, 1.0, start))
    expected = []
    for ids in sequences(raw, "base"):
        answer: list[int] = []
        while len(answer) < N_TOKENS and not (answer and answer[-1] in raw.stop):
            embed = model.get_input_embeddings()(torch.tensor([ids + answer]))
            with torch.no_grad():
                logits = model(inputs_embeds=torch.cat([embeddings, embed], 1)).logits
            answer.append(int(logits[0, -1].argmax()))
        expected.append(tuple(answer))
    handle.remove()
    assert raw.answers("mixed") == expected


def test_answers_do_not_depend_on_what_is_written_beside_them(raw: Made) -> None:
    for name in ("prompt", "keys"):
        setting, some = raw.subject.settings[name], raw.queries[:4]
        together = raw.answers(name)[:4]
        assert generate(raw.subject, setting, some[::-1], N_TOKENS)[::-1] == together
        assert generate(raw.subject, setting, some[:1], N_TOKENS) == together[:1]
        assert generate(raw.subject, setting, some, 3) == [answer[:3] for answer in together]


def test_as_many_are_written_together_as_memory_holds(
    raw: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = raw.subject.settings["prompt"]
    layers = raw.subject.prefill(setting).layers
    held = sum(x.numel() * x.element_size() for layer in layers for x in (layer.keys, layer.values))
    together: list[int] = []
    write = generating._write

    def counted(*given: Any) -> Any:
        together.append(len(given[-1]))
        return write(*given)

    monkeypatch.setattr(generating, "_write", counted)
    monkeypatch.setattr(generating, "_HELD", 3 * held)
    assert generate(raw.subject, setting, raw.queries, N_TOKENS) == raw.answers("prompt")
    assert together[:3] == [3, 3, 1]


OTHERS = ("mpt", "bloom", "gpt_neo", "llama4", "qwen3_5", "nemotron_h")
"""Other ways of telling places: ALiBi, local and chunked attention; recurrences."""


@pytest.mark.parametrize("architecture", OTHERS)
def test_greedy_answers_of_other_kinds_of_attention(architecture: str, tmp_path: Path) -> None:
    """Answers to queries of several lengths, written together, are those written alone."""
    model = save_architecture(architecture, tmp_path / "model")
    prompt, words = PROMPT + "\n", AutoTokenizer.from_pretrained(model)
    conditions = {"base": Base(), "prompt": Prompt(text=PROMPT, separator="\n")}
    queries = encode([Query(text) for text in TEXTS], words)
    assert len({len(query.ids) for query in queries}) >= 3
    subject = load(model, conditions, ["the"], device="cpu")
    hf = AutoModelForCausalLM.from_pretrained(model).eval()
    for name, before in (("base", ""), ("prompt", prompt)):
        expected = [generated(hf, words(before + text)["input_ids"]) for text in TEXTS]
        assert generate(subject, subject.settings[name], queries, N_TOKENS) == expected


# Sampling ----------------------------------------------------------------------------------------

VOCAB = ("<unk>", "<s>", "</s>", "a", "b", "c", "d", "e")
TEMPERATURE = 1.7


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model of eight words."""
    folder = tmp_path_factory.mktemp("small")
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCAB)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(VOCAB), num_hidden_layers=2, hidden_size=16, intermediate_size=16,
        num_attention_heads=2, initializer_range=0.3, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return load(str(folder), {"base": Base(), "prompt": Prompt(text="b c")}, ["a"], device="cpu")


def copies(subject: Subject, count: int) -> list[Encoded]:
    [query] = encode([Query("a d")], subject.tokenizer)
    return [replace(query, key=f"matched:{i}") for i in range(count)]


def shares(subject: Subject, ids: Sequence[int]) -> np.ndarray:
    """softmax(logits / T) after a whole sequence, by the plain model."""
    model = AutoModelForCausalLM.from_pretrained(subject.name).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*ids]])).logits[0, -1].double()
    return (logits / TEMPERATURE).softmax(-1).numpy()


def test_samples_are_distributed_as_the_softmax_of_the_tempered_logits(small: Subject) -> None:
    queries = copies(small, 3000)
    sampling = Sampling(TEMPERATURE, seed=1)
    answers = generate(small, small.settings["prompt"], queries, 2, sampling)
    ids = [*small.settings["prompt"].prefix, *queries[0].ids]
    assert ids == small.tokenizer("b c\na d")["input_ids"]
    first = np.bincount([answer[0] for answer in answers], minlength=len(VOCAB))
    expected = shares(small, ids)
    assert (expected * len(answers) > 5).all()
    assert chisquare(first, expected * len(answers)).pvalue > 0.01
    assert chisquare(first, expected[::-1] * len(answers)).pvalue < 1e-6
    for token in np.argsort(-first)[:3]:
        if token == 2:
            assert {len(a) for a in answers if a[0] == 2} == {1}
            continue
        second = [answer[1] for answer in answers if answer[0] == token]
        counts = np.bincount(second, minlength=len(VOCAB))
        wanted = shares(small, [*ids, int(token)]) * len(second)
        assert chisquare(counts, wanted).pvalue > 0.01


def test_a_low_temperature_is_nearly_greedy(small: Subject) -> None:
    [greedy] = generate(small, small.settings["base"], copies(small, 1), 6)
    cold = generate(small, small.settings["base"], copies(small, 20), 6, Sampling(1e-4, seed=3))
    assert set(cold) == {greedy}


def test_samples_are_given_by_seed_and_query_alone(small: Subject) -> None:
    queries, setting = copies(small, 150), small.settings["base"]
    sampling = Sampling(TEMPERATURE, seed=2)
    once = generate(small, setting, queries, 5, sampling)
    assert generate(small, setting, queries, 5, sampling) == once
    order = np.random.default_rng(0).permutation(len(queries))
    shuffled = generate(small, setting, [queries[i] for i in order], 5, sampling)
    assert [shuffled[i] for i in np.argsort(order)] == once
    [other] = encode([Query("e e b")], small.tokenizer)
    mixed = generate(small, setting, [other, *queries[:10], other], 5, sampling)
    assert mixed[1:-1] == once[:10]
    assert generate(small, setting, queries, 5, Sampling(TEMPERATURE, seed=3)) != once
    assert len(set(once)) > 50
