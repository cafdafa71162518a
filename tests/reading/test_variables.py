"""A LoRA's own variables: planted ones are found; plain Hugging Face + peft and numpy agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference.models
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reference.readout import unembedding
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Base, Lora, Prompt
from interp.errors import SubjectError
from interp.queries import Query, encode
from interp.reading.channels import (
    IN,
    OUT,
    Channels,
    changes,
    coordinates,
    energies,
    energy_by_module,
    watched_modules,
)
from interp.reading.detection import auroc, auroc_interval, best_direction
from interp.reading.lens import DifferenceLens
from interp.reading.writes import residual_writers, written_words
from interp.runs.view import Run
from interp.statistics import poisson_weights
from interp.subject import Batch, Subject, load

from .conftest import TEXTS

LAYER = 1
PROMPT = Prompt(text="people walked along", separator=" ")
Inputs = dict[str, list[np.ndarray]]


@contextmanager
def overheard(model: Any, modules: list[str]) -> Iterator[tuple[Inputs, Inputs]]:
    """What plain modules read and give, call by call."""
    read: Inputs = {name: [] for name in modules}
    gave: Inputs = {name: [] for name in modules}

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            read[name].append(inputs[0][0].double().numpy())
            gave[name].append(output[0].double().numpy())

        return hook

    found = dict(model.named_modules())
    handles = [found[name].register_forward_hook(note(name)) for name in modules]
    yield read, gave
    for handle in handles:
        handle.remove()


class Planted:
    """A tiny Llama whose LoRA has one direction, in one output projection: it reads what one token
    has most of there, and writes what raises one word's logit."""

    def __init__(self, root: Path) -> None:
        self.model = tiny_models.save_model("llama", root / "model")
        self.module = f"model.layers.{LAYER}.self_attn.o_proj"
        self.hf = AutoModelForCausalLM.from_pretrained(self.model).eval()
        self.words = AutoTokenizer.from_pretrained(self.model)
        self.ids = [self.words(t, add_special_tokens=False)["input_ids"] for t in TEXTS]
        bos = self.words.bos_token_id
        with torch.no_grad(), overheard(self.hf, [self.module]) as (read, _):
            for ids in self.ids:
                self.hf(torch.tensor([[bos, *ids]]))
        sizes = [np.linalg.norm(x[1:], axis=1) for x in read[self.module]]
        self.query = int(np.argmax([s.max() for s in sizes]))
        self.token = int(sizes[self.query].argmax())
        self.reads = read[self.module][self.query][1 + self.token]
        self.said = self.words(" small", add_special_tokens=False)["input_ids"][0]
        weight, _ = unembedding(self.hf)
        self.writes = (weight[self.said] - weight.mean(0)) / reference.models.final_norm(
            self.hf
        ).gain
        self.folder = self.save(root / "lora")

    def save(self, folder: Path) -> str:
        config = LoraConfig(r=1, lora_alpha=3, target_modules=[self.module], task_type="CAUSAL_LM")
        peft = get_peft_model(AutoModelForCausalLM.from_pretrained(self.model), config)
        layer = peft.get_submodule(f"base_model.model.{self.module}")
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(torch.tensor(self.reads[None]).float())
            layer.lora_B["default"].weight.copy_(torch.tensor(self.writes[:, None]).float())
        peft.save_pretrained(str(folder))
        return str(folder)

    @property
    def subject(self) -> Subject:
        conditions = {"base": Base(), "prompt": PROMPT, "lora": Lora(self.folder)}
        return load(self.model, conditions, TEXTS[:1], device="cpu")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def subject(planted: Planted) -> Subject:
    return planted.subject


def seen_by(subject: Subject, condition: str, modules: list[str]) -> Any:
    batch = Batch.of(encode(map(Query, TEXTS), subject.tokenizer))
    cache = subject.prefill(subject.settings[condition])
    return watched_modules(subject, condition, batch, cache, modules)


def test_a_planted_direction_is_found_with_its_scale(planted: Planted, subject: Subject) -> None:
    own = Channels.of(subject, "lora")
    assert own.places == [(planted.module, 0)]
    directions = own.modules[planted.module]
    size = 3 * np.linalg.norm(planted.reads) * np.linalg.norm(planted.writes)
    assert float(directions.s[0]) == pytest.approx(size, rel=1e-5)
    v, u = directions.v[0].numpy(), directions.u[:, 0].numpy()
    assert abs(v @ planted.reads) / np.linalg.norm(planted.reads) == pytest.approx(1)
    assert abs(u @ planted.writes) / np.linalg.norm(planted.writes) == pytest.approx(1)
    with pytest.raises(SubjectError, match="is not one plain LoRA"):
        Channels.of(subject, "prompt")


def test_the_token_it_was_planted_on_drives_it_most(planted: Planted, subject: Subject) -> None:
    own = Channels.of(subject, "lora")
    along = coordinates(own, seen_by(subject, "lora", [planted.module]))[..., 0].abs()
    for row, ids in enumerate(planted.ids):
        along[row, len(ids) :] = 0
    best = np.unravel_index(int(along.argmax()), along.shape)
    assert best == (planted.query, planted.token)
    assert float(along.max()) == pytest.approx(np.linalg.norm(planted.reads), rel=1e-4)


def test_the_word_it_was_planted_to_say_ranks_first(planted: Planted, subject: Subject) -> None:
    own = Channels.of(subject, "lora")
    writers = residual_writers(subject, own.modules)
    assert writers == {planted.module: None}
    u = own.modules[planted.module].u[:, 0].numpy()
    sign = 1 if u @ planted.writes > 0 else -1
    names = [str(i) for i in range(subject.d_vocab)]
    lens = DifferenceLens(subject, subject.settings["base"])
    place = (planted.module, 0)
    rows, tokens = written_words(
        lens, own, writers, torch.ones(subject.d_model), [planted.said], names, {place: sign}
    )
    assert tokens[0]["token_id"] == planted.said
    assert tokens[0]["task"]
    assert tokens[0]["score"] == pytest.approx(rows[0]["value"])
    assert rows[0]["value"] > 2
    turned, _ = written_words(
        lens, own, writers, torch.ones(subject.d_model), [planted.said], names, {place: -sign}
    )
    assert turned[0]["value"] == pytest.approx(-rows[0]["value"])


def test_coordinates_times_what_they_write_are_what_the_lora_adds(tmp_path: Path) -> None:
    """`sum_k s_k (V_k x) U_k` is peft's own `scaling B A x`, module by module, and inputs and
    outputs are those of the plain model."""
    model = tiny_models.save_model("gpt2", tmp_path / "model")
    folder = tiny_models.save_adapter(model, tmp_path / "lora", ["c_attn", "mlp.c_proj"])
    subject = load(model, {"base": Base(), "lora": Lora(folder)}, TEXTS[:1], device="cpu")
    own = Channels.of(subject, "lora")
    seen = seen_by(subject, "lora", list(own.modules))
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder).eval()
    plain = peft.get_base_model()
    ids = subject.tokenizer(TEXTS[2], add_special_tokens=False)["input_ids"]
    with torch.no_grad(), overheard(plain, list(own.modules)) as (read, gave):
        plain(torch.tensor([ids]))
    modules = dict(plain.named_modules())
    for module, directions in own.modules.items():
        x = seen[module].read[2, : len(ids)]
        np.testing.assert_allclose(x, read[module][0], atol=1e-5)
        np.testing.assert_allclose(seen[module].written[2, : len(ids)], gave[module][0], atol=1e-4)
        layer = modules[module]
        a, b = (getattr(layer, n)["default"].weight.detach().double() for n in ("lora_A", "lora_B"))
        wanted = layer.scaling["default"] * (x @ a.T) @ b.T
        found = ((x @ directions.v.T) * directions.s) @ directions.u.T
        torch.testing.assert_close(found, wanted)


def test_shares_of_changes_are_between_nothing_and_all(subject: Subject, planted: Planted) -> None:
    """0 of a run that is base's, at most 1, and 1 along a whole basis."""
    modules = [planted.module]
    own = Channels.of(subject, "lora")
    base, prompt = (seen_by(subject, name, modules) for name in ("base", "prompt"))
    nothing = changes(base, base, 1e-5)
    assert not float(energies(nothing, modules).max())
    moved = changes(prompt, base, 1e-5)
    for side in (IN, OUT):
        along = energy_by_module(coordinates(own, moved, side).square(), own.ranks)
        whole = energies(moved, modules, side)
        assert ((along >= 0) & (along <= whole * (1 + 1e-9))).all()
        assert float(whole.max()) > 0
    d = own.modules[planted.module].v.shape[1]
    eye = torch.eye(d, dtype=torch.float64)
    filled = Channels("all", {planted.module: own.modules[planted.module]._replace(v=eye)})
    along = coordinates(filled, moved).square().sum(-1, keepdim=True)
    torch.testing.assert_close(along, energies(moved, modules))


def test_areas_under_the_curve_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    inside, outside = (
        rng.standard_normal((9, 4)).round(1) + 0.5,
        rng.standard_normal((7, 4)).round(1),
    )
    labels = np.repeat([1, 0], [9, 7])
    wanted = [roc_auc_score(labels, np.append(inside[:, k], outside[:, k])) for k in range(4)]
    np.testing.assert_allclose(auroc(inside, outside), wanted)
    np.testing.assert_allclose(auroc(np.exp(inside), np.exp(outside)), wanted)
    np.testing.assert_allclose(auroc(outside, inside), 1 - np.array(wanted))
    np.testing.assert_allclose(auroc(inside, inside), 0.5)
    weights = [
        poisson_weights([f"{w}:{i}" for i in range(n)], 30, 0) for w, n in (("a", 9), ("b", 7))
    ]
    found = auroc_interval(inside, outside, *weights)
    np.testing.assert_allclose(found.value, wanted)
    for replicate in range(1, 4):  # a replicate is the curve of the texts it drew
        drawn = [np.repeat(x, w[:, replicate].astype(int), axis=0)
                 for x, w in zip((inside, outside), weights, strict=True)]  # fmt: skip
        pair = [w[:, [0, replicate]] for w in weights]
        both = np.einsum("tr,tod,or->rd", pair[0],
                         (np.sign(inside[:, None] - outside[None]) + 1) / 2, pair[1])  # fmt: skip
        total = np.prod([w[:, replicate].sum() for w in weights])
        np.testing.assert_allclose(both[1] / total, auroc(*drawn))
    assert ((found.ci_low <= found.value) & (found.value <= found.ci_high)).all()


def test_the_best_direction_is_chosen_on_other_texts_than_those_it_is_scored_on() -> None:
    inside, outside = np.zeros((8, 3)), np.zeros((8, 3))
    half = np.arange(8) < 4
    inside[half, 1], inside[~half, 2] = -1, 1  # each is told apart on one half only
    assert best_direction(inside, outside, half, half) == (1, -1)
    assert best_direction(inside, outside, ~half, ~half) == (2, 1)


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_rows_of_a_run_are_numpys(made: Any, run: Run) -> None:
    """The share of what the prompt changes of a module's input and output along peft's own factors:
    orthonormal bases by QR, energies summed over queries, each the mean over its tokens."""
    hf = AutoModelForCausalLM.from_pretrained(made["model"]).eval()
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(made["model"]), made["lora"]
    )
    words = AutoTokenizer.from_pretrained(made["model"])
    module = f"model.layers.{LAYER}.mlp.down_proj"
    layer = peft.get_submodule(f"base_model.model.{module}")
    factors = (layer.lora_A["default"].weight.T, layer.lora_B["default"].weight)
    bases = [np.linalg.qr(f.detach().double().numpy())[0] for f in factors]
    before = [[words.bos_token_id], [words.bos_token_id, *prompt_ids(words)]]
    energy, total = np.zeros((2, 2)), np.zeros((2, 2))  # [side, position]
    for text in TEXTS:
        ids = words(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad(), overheard(hf, [module]) as (read, gave):
            for prefix in before:
                hf(torch.tensor([[*prefix, *ids]]))
        for side, calls in enumerate((read[module], gave[module])):
            moved = calls[1][-len(ids) :] - calls[0][-len(ids) :]
            along = ((moved @ bases[side]) ** 2).sum(1), (moved**2).sum(1)
            for sums, values in zip((energy, total), along, strict=True):
                sums[side] += values[-1], values.mean()
    for side, name in enumerate(("read", "written")):
        rows = run.table[
            (run.table["measure"] == f"channel_{name}") & (run.table["site"] == module)
        ]
        rows = rows[(rows["condition"] == "prompt") & (rows["reference"] == "lora")]
        rows = rows[rows["queries"] == "matched"].set_index("position")
        for column, position in enumerate(("last", "mean")):
            wanted = energy[side, column] / total[side, column]
            assert rows.loc[position, "value"] == pytest.approx(wanted, rel=1e-3)
            assert 0 <= rows.loc[position, "ci_low"] <= rows.loc[position, "ci_high"] <= 1
    of = run.reading.variables
    chance = of.run.table.query("measure == 'channel_read_chance'").set_index("site")["value"]
    assert chance[module] == pytest.approx(3 / 48)
    assert of.users == ["prompt", "neutral"]
    assert of.random == "random_lora"


def prompt_ids(words: Any) -> list[int]:
    ids = words("people talked about small things", add_special_tokens=False)["input_ids"]
    return list(ids)
