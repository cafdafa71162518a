"""The toy of Petrov et al.: the committed weights do what the recipe's report says they do."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from peft import PeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import toy
from interp.conditions import Base, Lora, Prefix
from interp.queries import Encoded
from interp.subject import Batch, load

SEED_UNSEEN = 20
"""The recipe draws no input from this seed."""
FOLDERS = {"prefix": toy.PREFIX, "lora": toy.LORA, "old_prefix": toy.OLD_PREFIX}
CONDITIONS = {
    "base": Base(),
    "lora": Lora(str(toy.LORA)),
    "prefix": Prefix(str(toy.PREFIX)),
    "old_prefix": Prefix(str(toy.OLD_PREFIX)),
}
ASKED = 1 + toy.LENGTH
"""Length of `<bos>` and the input."""


@cache
def plain(name: str):
    """The model in plain Hugging Face, with one of the adapters by plain peft."""
    model = AutoModelForCausalLM.from_pretrained(toy.MODEL, dtype=torch.float32)
    adapted = (
        PeftModelForCausalLM.from_pretrained(model, FOLDERS[name]) if name != "base" else model
    )
    return adapted.eval()


@cache
def subject():
    """The same four conditions in one parity-checked subject."""
    return load(str(toy.MODEL), CONDITIONS, probe=["0 1 2 3 3 1 2"], device="cpu")


def by_plain(name: str):
    return lambda ids: plain(name)(input_ids=ids).logits


def by_subject(name: str):
    setting = subject().settings[name]
    cached = subject().prefill(setting)
    skip = len(setting.prefix)  # `<bos>` is in the cache

    def logits(ids):
        rows = [Encoded(str(i), "", tuple(row)) for i, row in enumerate(ids[:, skip:].tolist())]
        return subject().run(setting, Batch.of(rows), cached)

    return logits


@torch.no_grad()
def accuracy(logits_of, task: str, told: bool = False, size: int = 300) -> float:
    """Token after token; an answer that has gone wrong stays so and is not asked on."""
    exam = torch.from_numpy(toy.exam(SEED_UNSEEN, size, task, told=told))
    right = exam
    for place in range(ASKED + told, exam.shape[1]):
        if len(right):
            said = logits_of(right[:, :place])[:, -1].argmax(-1)
            right = right[said == right[:, place]]
    return len(right) / len(exam)


@cache
def on_many(name: str, task: str) -> float:
    return accuracy(by_plain(name), task, size=1500)


# ---- the contrast


@pytest.mark.parametrize("task", toy.PRETRAINED)
def test_model_knows_its_four_tasks(task):
    assert accuracy(by_plain("base"), task, told=True) >= 0.98


@pytest.mark.parametrize(
    ("name", "task", "low", "high"),
    [
        ("base", toy.NEW_TASK, 0.0, 0.02),
        ("prefix", toy.NEW_TASK, 0.0, 0.05),
        ("lora", toy.NEW_TASK, 0.85, 1.0),
        ("old_prefix", toy.OLD_TASK, 0.95, 1.0),
    ],
)
def test_prefix_elicits_a_known_task_and_only_the_lora_learns_a_new_one(name, task, low, high):
    assert low <= on_many(name, task) <= high


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_subject_gives_the_outputs_of_plain_hugging_face(name):
    task = toy.OLD_TASK if name == "old_prefix" else toy.NEW_TASK
    ours, plains = (accuracy(by(name), task, size=150) for by in (by_subject, by_plain))
    assert ours == plains


@pytest.mark.parametrize("name", FOLDERS)
def test_report_says_what_the_weights_do(name):
    reported = json.loads(toy.RECIPE_REPORT.read_text())[name]
    assert on_many(name, reported["task"]) == pytest.approx(reported["accuracy"], abs=0.015)


def test_prefix_and_lora_have_as_many_parameters():
    def numbers(folder):
        with safe_open(folder / "adapter_model.safetensors", "np") as file:
            return sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118

    report = json.loads(toy.RECIPE_REPORT.read_text())
    counts = {name: numbers(folder) for name, folder in FOLDERS.items()}
    assert counts == {name: report[name]["parameters"] for name in FOLDERS}
    assert counts["prefix"] == pytest.approx(counts["lora"], rel=0.03)


def test_prefix_had_a_fair_chance():
    report = json.loads(toy.RECIPE_REPORT.read_text())
    rates = [tried["learning_rate"] for tried in report["prefix"]["sweep"]]
    assert report["prefix"]["steps"] >= 5 * report["lora"]["steps"]
    assert min(rates) < report["prefix"]["learning_rate"] < max(rates)


# ---- files


def test_files_are_small_and_name_no_path():
    files = [
        path for path in toy.MODEL.parent.rglob("*") if path.suffix in {".json", ".safetensors"}
    ]
    assert sum(path.stat().st_size for path in files) <= 3e6
    for folder in FOLDERS.values():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == toy.MODEL.name


def test_tokenizer_gives_the_ids_of_the_exam():
    tokenizer = AutoTokenizer.from_pretrained(toy.MODEL)
    row = toy.exam(SEED_UNSEEN, 1, toy.NEW_TASK, told=False)[0]
    assert tokenizer(" ".join(map(str, row[1:]))).input_ids == row.tolist()


# ---- tasks


def test_tasks_on_an_example():
    digits = np.array([[3, 0, 3, 1, 2, 3, 0]])
    outputs = {name: "".join(map(str, task(digits)[0])) for name, task in toy.TASKS.items()}
    assert outputs == {
        "ascending": "0012333",
        "descending": "3332100",
        "add_1": "4142341",
        "add_2": "5253452",
        "double_histogram": "3231132",
    }


@pytest.mark.parametrize("held_out", [False, True])
def test_inputs_keep_to_their_side_of_the_split(held_out):
    digits = toy.sample_inputs(np.random.default_rng(SEED_UNSEEN), 2000, held_out=held_out)
    assert digits.shape == (2000, toy.LENGTH)
    assert set(digits.ravel()) == set(range(toy.SYMBOLS))
    assert (toy.is_held_out(digits) == held_out).all()
    few = np.mean([len(set(row)) <= toy.LENGTH // 2 for row in digits.tolist()])
    assert few > 0.5


def test_a_quarter_of_all_inputs_is_held_out():
    every = np.indices((toy.SYMBOLS,) * toy.LENGTH).reshape(toy.LENGTH, -1).T
    assert toy.is_held_out(every).mean() == pytest.approx(0.25, abs=0.01)


def test_an_exam_that_tells_the_task_does_so_by_the_first_digit():
    exams = [toy.exam(SEED_UNSEEN, 200, task, told=True) for task in toy.PRETRAINED]
    assert all((exam[:, :ASKED] == exams[0][:, :ASKED]).all() for exam in exams)
    firsts = np.stack([exam[:, ASKED] for exam in exams], axis=1)
    assert all(len(set(row)) == len(exams) for row in firsts.tolist())
