"""`interp match invert` in a chat: over the target's own answers, every kind in its place."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from chatting import CHATML, NO_SYSTEM, save_chat_model
from command_line import failed
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import cli
from interp.conditions import Lora, Prompt
from interp.config import Experiment, from_yaml
from interp.errors import ConditionError
from interp.matching.evaluation import Evaluation
from interp.matching.invert import invert
from interp.matching.readable import readable_words, scorer, slot_of
from interp.matching.settings import Inversion
from interp.runs.view import load_run
from interp.study import run_study

FIT = ("hot is", "up is", "big is the", "a river")
HELDOUT = ("people walked", "lily said")
POOL = [("hot is", "cold."), ("up is the opposite", "of down."), ("a hill is", "high.")]
N_TOKENS = 5
TEMPLATES = {"system": CHATML, "no_system": NO_SYSTEM}


@pytest.fixture(scope="module", params=TEMPLATES)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp(request.param)
    model = save_chat_model("qwen2", root / "model", TEMPLATES[request.param])
    (root / "system.txt").write_text("up is the opposite of down")
    for name, texts in {"fit": FIT, "heldout": HELDOUT}.items():
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    shots = "\n".join(json.dumps({"text": text, "answer": answer}) for text, answer in POOL)
    (root / "pool.jsonl").write_text(shots)
    return {
        "model": model,
        "adapter": save_adapter(model, root / "lora", ["q_proj", "v_proj", "down_proj"]),
        "queries": root / "fit.jsonl",
        "heldout": root / "heldout.jsonl",
        "pool": root / "pool.jsonl",
    }


def settings(given: Any, out: Path, kind: str, **fields: Any) -> Inversion:
    chat = {"chat": True, "answer_tokens": N_TOKENS, "seed": 1, "bootstrap": 20, "tokens": 2}
    quick = {"steps": 4, "candidates": 8, "kind": kind, "out": out}
    return Inversion.model_validate({**given, **chat, **quick, **fields})


Found = Callable[[str], tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def found(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Kind -> what a search finds, once: its log and its folder."""

    @functools.cache
    def found(kind: str) -> tuple[dict[str, Any], Path]:
        out = tmp_path_factory.mktemp(kind)
        return invert(settings(given, out, kind, bias=kind == "prefix")), out

    return found


# By hand: plain transformers + peft ---------------------------------------------------------------


class Plain:
    """The model with the target's LoRA or without."""

    def __init__(self, model: str, adapter: str | None) -> None:
        self.words = AutoTokenizer.from_pretrained(model)
        hf = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
        self.hf = PeftModel.from_pretrained(hf, adapter).eval() if adapter else hf.eval()

    def asked(self, *messages: tuple[str, str]) -> list[int]:
        turns = [{"role": role, "content": content} for role, content in messages]
        found = self.words.apply_chat_template(turns, add_generation_prompt=True)
        return list(found["input_ids"])

    def answer(self, ids: list[int]) -> list[int]:
        start = torch.tensor([ids])
        ones = torch.ones_like(start)
        written = self.hf.generate(
            input_ids=start,
            attention_mask=ones,
            max_new_tokens=N_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        return written[0, len(ids) :].tolist()

    def log_p(self, ids: list[int], answer: list[int], soft: Any = None) -> torch.Tensor:
        embeddings = self.hf.get_input_embeddings()(torch.tensor([[*ids, *answer]]))
        if soft is not None:
            embeddings = torch.cat([soft[None], embeddings], 1)
        with torch.no_grad():
            logits = self.hf(inputs_embeds=embeddings).logits[0]
        return logits[-len(answer) - 1 : -1].double().log_softmax(-1)


opened = functools.cache(Plain)


def plain_model(given: Any, adapter: bool) -> Plain:
    return opened(given["model"], given["adapter"] if adapter else None)


def by_hand(given: Any, texts: tuple[str, ...], emulation: Any) -> dict[str, float]:
    """Mean KL per answer token and per answer, of base and of an emulation from the target."""
    target, base = plain_model(given, True), plain_model(given, False)
    found = []
    for text in texts:
        ids = target.asked(("user", text))
        answer = target.answer(ids)
        p = target.log_p(ids, answer)
        said = base.log_p(ids, answer), emulation(base, text, answer)
        found.append([(p.exp() * (p - q)).sum(-1).numpy() for q in said])
    means = np.array([[kl.mean() for kl in one] for one in found]).mean(0)
    return {
        "ceiling": means[0],
        "kl": means[1],
        "sequence_kl": np.mean([one[1].sum() for one in found]),
    }


def read_as(kind: str, given: Any, out: Path, condition: Any) -> Any:
    """How the plain model is given what was found."""
    system = "raise_exception" not in AutoTokenizer.from_pretrained(given["model"]).chat_template
    if kind == "soft_prompt":
        soft = load_file(out / "adapter_model.safetensors")["prompt_embeddings"]
        return lambda plain, text, answer: plain.log_p(plain.asked(("user", text)), answer, soft)
    prompt = condition["prompt"]
    if kind == "text" and system:
        assert "text" not in prompt
        messages = [("system", prompt["system"])]
    elif kind == "text":
        assert prompt["separator"] == "\n"
        lead = f"{prompt['text']}\n"
        return lambda plain, text, answer: plain.log_p(plain.asked(("user", lead + text)), answer)
    else:
        roles = ("user", "assistant")
        messages = [turn for pair in prompt["pairs"] for turn in zip(roles, pair, strict=True)]
    return lambda plain, text, answer: plain.log_p(plain.asked(*messages, ("user", text)), answer)


@pytest.mark.parametrize("kind", ["soft_prompt", "text", "few_shot"])
def test_scores_are_those_of_whole_conversations_over_the_target_s_answers(
    kind: str, given: Any, found: Found
) -> None:
    log, out = found(kind)
    emulation = read_as(kind, given, out, log["condition"])
    for score, texts in zip(log["scores"], (FIT, HELDOUT), strict=True):
        expected = by_hand(given, texts, emulation)
        for name, value in expected.items():
            assert score[name] == pytest.approx(value, abs=2e-4), name
        assert score["strength"] == pytest.approx(1 - score["kl"] / score["ceiling"])
    assert min(log["loss_by_step"]) == pytest.approx(log["scores"][0]["kl"], rel=0.5)


@pytest.mark.parametrize("kind", ["soft_prompt", "prefix", "text", "few_shot"])
def test_diverge_measures_the_same_thing(
    kind: str, given: Any, found: Found, tmp_path: Path
) -> None:
    log, out = found(kind)
    fields = from_yaml(out / "experiment.yaml")
    assert fields["chat"]
    assert (fields["answers_from"], fields["answer_tokens"]) == ("target", N_TOKENS)
    quick = {"controls": (), "permutations": 0, "bootstrap": 0, "sample": 0, "max_positions": 0}
    run = run_study(Experiment(**fields, out=tmp_path / "run", **quick))
    (signed,) = [
        one
        for one in load_run(run).manifest["certificates"]
        if {one["condition"], one["reference"]} == {"target", "emulation"}
        and one["queries"] == "heldout"
    ]
    score = log["scores"][1]
    for name in ("mean_js", "top1_agreement", "answer_agreement", "tokens"):
        assert signed[name] == pytest.approx(score[name], abs=1e-6), name
    answers = pd.read_parquet(run / "answers.parquet")
    own = answers[(answers.condition == "target") & (answers["queries"] == "matched")]
    target = plain_model(given, True)
    assert [list(ids) for ids in own.ids] == [
        target.answer(target.asked(("user", text))) for text in FIT
    ]


def test_sampled_answers_are_written_once_and_measured_again(given: Any, tmp_path: Path) -> None:
    invert(settings(given, tmp_path / "found", "few_shot", temperature=1.5))
    fields = from_yaml(tmp_path / "found" / "experiment.yaml")
    assert (fields["temperature"], fields["seed"]) == (1.5, 1)


# The slot -----------------------------------------------------------------------------------------


def test_every_text_that_is_allowed_is_read_back_in_its_place(given: Any, tmp_path: Path) -> None:
    own = settings(given, tmp_path, "text")
    evaluation = Evaluation.open(own, frame=own.framed)
    slot = slot_of(evaluation, own.separator)
    plain = plain_model(given, False)
    allowed = readable_words(evaluation, slot)
    tried = list(zip(allowed.ids[::3], allowed.ids[5::3], strict=False))
    kept = [ids for ids in tried if allowed.readable(ids)]
    assert 10 < len(kept) < len(tried)
    for ids in kept:
        text = plain.words.decode(list(ids))
        for query in FIT:
            if slot.system:
                whole = plain.asked(("system", text), ("user", query))
            else:
                whole = plain.asked(("user", f"{text}\n{query}"))
            before = [*slot.before, *ids, *slot.after]
            same = whole[: len(before)] == before
            assert same or not allowed.apart(ids)
    refused = [ids for ids in tried if ids not in kept]
    texts = [plain.words.decode(list(ids)) for ids in refused]
    for ids, text in zip(refused, texts, strict=True):
        again = plain.words(text, add_special_tokens=False)["input_ids"]
        assert tuple(again) != ids or text != text.strip() or not slot.system


def test_a_slope_is_the_derivative_in_the_middle_of_a_frame(given: Any, tmp_path: Path) -> None:
    own = settings(given, tmp_path, "text")
    evaluation = Evaluation.open(own, frame=own.framed)
    slot = slot_of(evaluation, own.separator)
    assert slot.after or not slot.system
    score = scorer(evaluation, evaluation.targets["matched"], slot)
    ids = tuple(evaluation.subject.tokenizer("hot is", add_special_tokens=False)["input_ids"])
    plain = plain_model(given, False)
    whole = torch.tensor([[*slot.before, *ids, *slot.after]])
    embedded = plain.hf.get_input_embeddings()(whole).detach().requires_grad_()
    wanted = evaluation.targets["matched"]
    losses = []
    for number, query in enumerate(evaluation.queries["matched"]):
        rest = plain.hf.get_input_embeddings()(torch.tensor([query.forced])).detach()
        logits = plain.hf(inputs_embeds=torch.cat([embedded, rest], 1)).logits[0]
        q = logits[-len(query.answer_ids or (0,)) :].log_softmax(-1)
        p = wanted.logits[wanted.rows == number].log_softmax(-1)
        losses.append((p.exp() * (p - q)).sum(-1).mean())
    torch.stack(losses).mean().backward()
    table = plain.hf.get_input_embeddings().weight.detach()[: evaluation.subject.n_words]
    first = len(slot.before)
    expected = embedded.grad[0, first : first + len(ids)] @ table.T
    torch.testing.assert_close(score.slopes(ids), expected, atol=1e-4, rtol=1e-3)


# Targets and faults -------------------------------------------------------------------------------


def test_a_system_message_can_be_the_target(given: Any, tmp_path: Path) -> None:
    system = Path(given["model"]).parent / "system.txt"
    own = settings(given, tmp_path, "prefix", adapter=None, system_file=system, steps=30)
    if "no_system" in str(system):
        with pytest.raises(ConditionError, match="no system message"):
            invert(own)
        return
    log = invert(own)
    assert log["scores"][0]["strength"] > 0.1
    assert own.target == Prompt(system="up is the opposite of down")
    fields = from_yaml(tmp_path / "experiment.yaml")
    assert fields["conditions"]["target"]["prompt"]["system"] == "up is the opposite of down"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--system-file", "{queries}"], "exactly one of --adapter, --fine-tuned, --prompt-file"),
        (["--adapter", "None", "--system-file", "{queries}", "--no-chat"], "add --chat"),
        (["--answer-tokens", "250"], "the model reads 256"),
    ],
)
def test_what_cannot_be_is_one_line(
    more: list[str], said: str, given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    flags += ["--chat", "--kind", "few_shot", "--answer-tokens", "3", "--out", str(tmp_path)]
    line = ["match", "invert", *flags, *(word.format(**given) for word in more)]
    assert said in failed(line, capsys)


def test_the_command_in_a_chat(
    given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    line = ["match", "invert", *flags, "--chat", "--answer-tokens", "3", "--kind", "few_shot"]
    assert cli.main([*line, "--out", str(tmp_path), "--bootstrap", "0"]) == 0
    shown = capsys.readouterr()
    assert "answers of the target: 6/6" in shown.err
    (log,) = [json.loads((tmp_path / "invert.json").read_text())]
    for score in log["scores"]:
        assert f"sequence KL {score['sequence_kl']:.3f} nats on {score['n']} queries" in shown.out
    assert Lora(given["adapter"]) == Inversion(**given, out=tmp_path).target
