"""Distillation in a chat: every number against plain transformers + peft on whole conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chatting import save_chat_model
from command_line import failed
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import CONFIGS, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from interp import Distillation, Lora, Prompt, Query, cli, distil
from interp.conditions import Base, Frame, resolve
from interp.generating import Sampling, generate
from interp.matching import plain
from interp.matching.distil import _answered, _source
from interp.matching.lora import Recipe, loss, with_lora
from interp.progress import no_progress
from interp.queries import encode, read_queries
from interp.subject import load
from interp.validation.architectures import save_architecture

SYSTEM = "hot is the opposite of cold."
FIT = ("big is", "a river", "lily said: yes! tom said: no?", "people walked along the road")
HELDOUT = ("up is", "a hill is high.")
TOKENS, RANK, TARGETS = 7, 2, ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model("qwen2", tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "system.txt").write_text(SYSTEM + "\n")
    for name, texts in {"fit": FIT, "heldout": HELDOUT}.items():
        lines = [json.dumps({"text": text, "answer": "cold"}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    named = {"system_file": "system.txt", "queries": "fit.jsonl", "heldout": "heldout.jsonl"}
    return {name: folder / file for name, file in named.items()}


def settings(model: str, files: dict[str, Path], out: Path, **fields: Any) -> Distillation:
    fixed = {"model": model, "chat": True, "out": out, "answer_tokens": TOKENS, "rank": RANK}
    quick = {"targets": TARGETS, "epochs": 3, "batch_size": 3}
    return Distillation.model_validate({**fixed, **quick, **files, **fields})


# By hand: plain transformers + peft ---------------------------------------------------------------


def opened(model: str) -> tuple[Any, Any]:
    hf = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    return hf, AutoTokenizer.from_pretrained(model)


def conversation(words: Any, text: str, system: str | None) -> list[int]:
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    found = words.apply_chat_template(messages, add_generation_prompt=True)
    return list(found["input_ids"])


def greedy(hf: Any, ids: list[int], n: int = TOKENS) -> list[int]:
    start = torch.tensor([ids])
    written = hf.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
    )
    return written[0, len(ids) :].tolist()


def log_p(hf: Any, ids: list[int], answer: list[int]) -> torch.Tensor:
    """`[token, d_vocab]` of the rows that predict the answer, from the whole sequence."""
    logits = hf(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]
    return logits.double().log_softmax(-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum(-1)


# The teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*CONFIGS, "qwen3_5", "lfm2"])
def test_many_sequences_at_once_are_each_alone(architecture: str, tmp_path: Path) -> None:
    hf, words = opened(save_architecture(architecture, tmp_path / architecture))
    prefix = resolve(Prompt(text=SYSTEM, separator=" "), words).prefix
    queries = encode(map(Query, FIT), words)
    answers = plain.generate_answers(hf, prefix, queries, TOKENS, Sampling())
    rows = []
    for query, answer in zip(queries, answers, strict=True):
        whole = [*prefix, *query.ids]
        assert list(answer) == greedy(hf, whole)
        with torch.no_grad():
            rows.append(log_p(hf, whole, list(answer)))
    answered = [replace(q, answer_ids=a) for q, a in zip(queries, answers, strict=True)]
    with torch.no_grad():
        got = plain.read_sequences(
            hf, prefix, [(q.forced, len(q.ids) - 1) for q in answered]
        ).logits
    torch.testing.assert_close(got.double().log_softmax(-1), torch.cat(rows), atol=2e-5, rtol=0)


def test_the_teacher_writes_what_the_prompted_model_generates(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    distil(settings(model, files, tmp_path / "a", epochs=1, answer_tokens=12))
    kept = json.loads((tmp_path / "a" / "distil.json").read_text())["answers"]
    hf, words = opened(model)
    for group, texts in {"matched": FIT, "heldout": HELDOUT}.items():
        by_hand = [greedy(hf, conversation(words, text, SYSTEM), 12) for text in texts]
        assert kept[group] == words.batch_decode(by_hand)


def test_an_answer_ends_with_the_turn_and_penalties_of_the_folder_do_not_count(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    hf, words = opened(model)
    ids = conversation(words, FIT[0], SYSTEM)
    expected = greedy(hf, ids)
    queries = encode([Query(FIT[0])], words, frame=Frame(chat=True))
    prefix = tuple(ids[: len(ids) - len(queries[0].ids)])
    own = GenerationConfig(eos_token_id=expected[2], repetition_penalty=9.0, min_new_tokens=6)
    hf.generation_config = own
    (answer,) = plain.generate_answers(hf, prefix, queries, TOKENS, Sampling())
    assert list(answer) == expected[: expected.index(expected[2]) + 1]
    assert hf.generation_config is own


def test_sampled_answers_are_those_of_the_hooked_model(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    frame, prompt = Frame(chat=True), Prompt(system=SYSTEM)
    subject = load(model, {"base": Base(), "prompt": prompt}, ["big is"], frame=frame)
    queries = encode(map(Query, FIT), subject.tokenizer, frame=frame)
    setting, hf = subject.settings["prompt"], opened(model)[0]
    found = []
    for seed in (0, 1):
        sampling = Sampling(1.5, seed)
        hooked = generate(subject, setting, queries, TOKENS, sampling)
        assert plain.generate_answers(hf, setting.prefix, queries, TOKENS, sampling) == hooked
        found.append(hooked)
    assert found[0] != found[1]


# The loss -----------------------------------------------------------------------------------------


def prepared(asked: Distillation, model: str) -> tuple[Any, tuple[int, ...], Any]:
    """A student with a random LoRA, what stands before its queries, and its examples by epoch."""
    hf, words = opened(model)
    before, start = (resolve(c, words, asked.framed).prefix for c in (asked.prompt, Base()))
    queries = encode(read_queries(asked.queries), words, frame=asked.framed)
    answered = _answered(hf, before, {"matched": queries}, asked, no_progress)["matched"]
    student = with_lora(hf, Recipe(**{name: getattr(asked, name) for name in Recipe._fields}))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    return student, start, _source(student, (before, start), answered, asked, no_progress)


def gradients(student: Any, value: torch.Tensor) -> dict[str, torch.Tensor]:
    student.zero_grad()
    value.backward()
    named = student.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def check(student: Any, got: torch.Tensor, expected: torch.Tensor) -> None:
    """The same value and the same gradient, which the adapter alone has."""
    assert got.item() == pytest.approx(expected.item(), abs=1e-5)
    assert got.item() > 0.05
    by_hand, found = gradients(student, expected), gradients(student, got)
    assert by_hand.keys() == found.keys()
    assert all("lora_" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, by_hand[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("written", [True, False])
def test_loss_and_gradient_are_those_of_whole_conversations(
    model: str, files: dict[str, Path], tmp_path: Path, written: bool
) -> None:
    asked = settings(model, files, tmp_path, answer_tokens=TOKENS if written else 0)
    student, start, source = prepared(asked, model)
    examples = source(0)
    assert not any(example.teacher.requires_grad for example in examples)
    hf, words = opened(model)
    fixed = words("cold", add_special_tokens=False)["input_ids"]
    each = []
    for text in FIT:
        ids = conversation(words, text, SYSTEM)
        answer = greedy(hf, ids) if written else fixed
        with torch.no_grad():
            wanted = log_p(hf, ids, answer)
        each.append(kl(wanted, log_p(student, conversation(words, text, None), answer)).mean())
    check(student, loss(student, start, examples).kl, torch.stack(each).mean())
    assert source(asked.epochs - 1) is examples


def test_on_policy_the_student_answers_and_the_divergence_is_the_other_way_round(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    asked = settings(model, files, tmp_path, on_policy=True, refresh=2, epochs=4)
    student, start, source = prepared(asked, model)
    examples = source(0)
    hf, words = opened(model)
    each, answers = [], []
    for text, example in zip(FIT, examples, strict=True):
        ids = conversation(words, text, None)
        answers.append(greedy(student, ids))
        assert example.ids[example.first + 1 :] == tuple(answers[-1][:-1])
        with torch.no_grad():
            wanted = log_p(hf, conversation(words, text, SYSTEM), answers[-1])
        each.append(kl(log_p(student, ids, answers[-1]), wanted).mean())
    assert answers != [greedy(hf, conversation(words, text, SYSTEM)) for text in FIT]
    got = loss(student, start, examples, on_policy=True).kl
    check(student, got, torch.stack(each).mean())
    assert source(1) is examples
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_" in name:
                parameter.mul_(-1.5)
    assert [example.ids for example in source(2)] != [example.ids for example in examples]


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_states_are_the_residual_stream_of_whole_conversations(
    model: str, files: dict[str, Path], tmp_path: Path, positions: str
) -> None:
    asked = settings(model, files, tmp_path, align="resid_post", positions=positions)
    student, start, source = prepared(asked, model)
    examples = source(0)
    hf, words = opened(model)
    gaps, sizes = [], []
    for text, example in zip(FIT, examples, strict=True):
        answer, rows = greedy(hf, conversation(words, text, SYSTEM)), len(example.teacher)
        with torch.no_grad():
            wanted = streams(hf, [*conversation(words, text, SYSTEM), *answer[:-1]], rows)
        torch.testing.assert_close(example.states, wanted, atol=1e-5, rtol=1e-4)
        own = streams(student, [*conversation(words, text, None), *answer[:-1]], rows)
        gaps.append((own - wanted).square().sum((1, 2)))
        sizes.append(wanted.square().sum((1, 2)))
    expected = (torch.stack(gaps).sum(0) / torch.stack(sizes).sum(0)).mean()
    got = loss(student, start, examples)
    assert got.total(0.5).item() == pytest.approx(got.kl.item() + 0.5 * got.apart.item())
    check(student, got.apart, expected)


def streams(hf: Any, ids: list[int], rows: int) -> torch.Tensor:
    """`[layer, row, d_model]` of the last rows: what enters every block but the first, and what
    enters the final norm."""
    base = hf.get_base_model() if isinstance(hf, PeftModel) else hf
    seen: list[torch.Tensor] = []
    handle = base.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    entering = hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:-1]
    handle.remove()
    return torch.stack([*entering, *seen])[:, 0, -rows:]


# What comes of it ---------------------------------------------------------------------------------


def test_the_certificate_is_that_of_the_saved_adapter_over_whole_answers(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    signed = distil(settings(model, files, out, adapter_dtype="bfloat16"))
    stored = load_file(out / "adapter_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert [one["queries"] for one in signed] == ["matched", "heldout"]
    hf, words = opened(model)
    answers = {text: greedy(hf, conversation(words, text, SYSTEM)) for text in FIT + HELDOUT}
    with torch.no_grad():
        p = {t: log_p(hf, conversation(words, t, SYSTEM), a).numpy() for t, a in answers.items()}
    lora = PeftModel.from_pretrained(hf, str(out))
    with torch.no_grad():
        q = {t: log_p(lora, conversation(words, t, None), a).numpy() for t, a in answers.items()}
    for one, texts in zip(signed, (FIT, HELDOUT), strict=True):
        assert one["tokens"] == sum(len(answers[text]) for text in texts)
        js, same, whole = zip(*(compared(p[text], q[text]) for text in texts), strict=True)
        assert one["mean_js"] == pytest.approx(np.mean(js), abs=1e-5)
        assert one["sequence_kl"] == pytest.approx(np.mean(whole), abs=1e-4)
        assert one["top1_agreement"] == pytest.approx(np.mean(same))
        assert one["answer_agreement"] == pytest.approx(np.mean(np.array(same) == 1))


def compared(log_p: np.ndarray, log_q: np.ndarray) -> tuple[float, float, float]:
    """Mean JS and agreement over an answer's tokens, and the KL of the whole answer."""
    p, q = np.exp(log_p), np.exp(log_q)
    m = np.log((p + q) / 2)
    js = ((p * (log_p - m) + q * (log_q - m)) / 2).sum(-1)
    same = log_p.argmax(-1) == log_q.argmax(-1)
    return js.mean(), same.mean(), (p * (log_p - log_q)).sum()


def test_an_adapter_in_half_precision_is_mounted_as_its_file_has_it(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    distil(settings(model, files, out, epochs=1, adapter_dtype="bfloat16"))
    subject = load(model, {"lora": Lora(str(out))}, ["big is"], frame=Frame(chat=True))
    mounted = dict(subject.weights.layers)
    assert mounted
    for key, value in load_file(out / "adapter_model.safetensors").items():
        module, matrix = (
            key.removeprefix("base_model.model.").removesuffix(".weight").split(".lora_")
        )
        (live,) = getattr(mounted[module], f"lora_{matrix}").values()
        assert torch.equal(live.weight, value.to(live.weight.dtype))


def test_a_text_stands_at_the_beginning_of_the_user_s_message(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    plain_text = {"system_file": None, "prompt_file": files["system_file"]}
    distil(settings(model, files, tmp_path / "a", epochs=1, **plain_text))
    kept = json.loads((tmp_path / "a" / "distil.json").read_text())["answers"]
    hf, words = opened(model)
    asked = [conversation(words, f"{SYSTEM}\n{text}", None) for text in FIT]
    assert kept["matched"] == words.batch_decode([greedy(hf, ids) for ids in asked])


def test_the_command_says_how_far_it_is(
    model: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [w for name, file in files.items() for w in (f"--{name.replace('_', '-')}", str(file))]
    more = ["--targets", *TARGETS, "--epochs", "40", "--rank", "4", "--answer-tokens", "4"]
    words = ["match", "distil", "--model", model, "--chat", "--out", str(tmp_path / "a")]
    assert cli.main([*words, *flags, *more]) == 0
    shown = capsys.readouterr()
    for label in (
        "teacher's answers: 6/6",
        "teacher's outputs: 4/4",
        "certificates: 6/6",
        "hooked ones",
    ):
        assert label in shown.err
    log = json.loads((tmp_path / "a" / "distil.json").read_text())
    assert log["kl_by_epoch"][-1] < 0.5 * log["kl_by_epoch"][0]
    for signed in log["certificates"]:
        numbers = f"answer agreement {signed['answer_agreement']:.4f}, "
        numbers += f"sequence KL {signed['sequence_kl']:.4f} nats on {signed['n']} queries"
        assert numbers in shown.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt-file", "{system_file}", "--chat"], "exactly one of --prompt-file and --system"),
        (["--system-file", "None", "--chat"], "exactly one of --prompt-file and --system-file"),
        ([], "--system-file is a chat's system message: add --chat"),
        (["--chat", "--answer-tokens", "250"], "the model reads 256"),
        (["--chat", "--answer-tokens", "-1"], "answer_tokens"),
        (["--chat", "--on-policy"], "--on-policy needs --answer-tokens"),
    ],
)
def test_what_cannot_be_is_one_line(
    flags: list[str],
    said: str,
    model: str,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {name: str(file) for name, file in files.items()}
    words = ["match", "distil", "--model", model, "--out", str(tmp_path / "a")]
    words += [w for name, file in given.items() for w in (f"--{name.replace('_', '-')}", file)]
    assert said in failed([*words, *(flag.format(**given) for flag in flags)], capsys)


def test_a_model_without_a_template_is_refused(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = save_model("qwen2", tmp_path / "bare")
    words = ["match", "distil", "--model", bare, "--out", str(tmp_path / "a"), "--chat"]
    words += [w for name, file in files.items() for w in (f"--{name.replace('_', '-')}", str(file))]
    assert "no chat template" in failed(words, capsys)


# Two more ways ------------------------------------------------------------------------------------


def log_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "distil.json").read_text())
    return found


def test_states_that_are_aligned_come_nearer(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    longer = {"epochs": 25, "rank": 8, "targets": ("q_proj", "v_proj", "down_proj")}
    outputs = settings(model, files, tmp_path / "outputs", **longer)
    both = {"align": "resid_post", "align_weight": 20.0}
    states = settings(model, files, tmp_path / "states", **longer, **both)
    apart = []
    for asked in (outputs, states):
        distil(asked)
        _, start, source = prepared(states, model)
        examples = source(0)
        trained = PeftModel.from_pretrained(opened(model)[0], str(asked.out))
        with torch.no_grad():
            apart.append(loss(trained, start, examples).apart.item())
    assert apart[1] < 0.8 * apart[0]
    by_epoch = log_of(states.out)["states_by_epoch"]
    assert by_epoch[-1] < 0.8 * by_epoch[0]
    assert log_of(outputs.out)["states_by_epoch"] is None


def test_on_policy_training_brings_the_student_s_own_answers_nearer(
    model: str, files: dict[str, Path], tmp_path: Path
) -> None:
    own = settings(model, files, tmp_path / "own", on_policy=True, epochs=30, rank=8, patience=30)
    distil(own)
    history = log_of(own.out)["kl_by_epoch"]
    assert min(history[-5:]) < 0.5 * history[0]
    again = own.model_copy(update={"out": tmp_path / "again"})
    distil(again)
    assert log_of(again.out)["kl_by_epoch"] == history
