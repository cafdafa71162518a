"""`interp weights` on a run: its rows are what numpy says of the matrices; the run stays whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from tuner_models import save_experts, save_tuner

from interp.config import Experiment
from interp.errors import ConfigError, RunError
from interp.runs.files import WEIGHTS
from interp.runs.view import Run, load_run
from interp.study import run_study
from interp.weights.run import weigh
from interp.weights.settings import Weighing

TOP, EPSILON = 4, 0.8
HEADS, D_HEAD, D_MODEL = tiny_models.N_HEADS, tiny_models.D_HEAD, tiny_models.D_MODEL


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of GPT-2 with two adapters, the first at half its size once more, and other weights."""
    root = tmp_path_factory.mktemp("weights.run")
    model = tiny_models.save_model("gpt2", root / "model")
    tuned = tiny_models.save_model("gpt2", root / "tuned", seed=5)
    targets = ["c_attn", "c_proj"]
    adapters = [
        tiny_models.save_adapter(model, root / f"lora_{i}", targets, seed=i) for i in (1, 2)
    ]
    (root / "q.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("the", "a river is")))
    conditions: dict[str, Any] = {
        "half": {"lora": {"adapter": adapters[0], "scale": 0.5}},
        "again": [{"prompt": {"text": "the weather"}}, {"lora": {"adapter": adapters[0]}}],
        "tuned": {"fine_tuned": {"model": tuned}},
    }
    run = run_study(
        Experiment(
            model=model,
            adapter=tuple(adapters),
            queries=root / "q.jsonl",
            conditions=conditions,
            controls=("random_lora",),
            out=root / "run",
            bootstrap=10,
            permutations=0,
            device="cpu",
        )
    )
    settings = Weighing(run=run, top=TOP, epsilon=EPSILON, overlap=2)
    return {"run": weigh(settings), "model": Path(model), "tuned": Path(tuned)} | {
        f"lora_{i}": Path(folder) for i, folder in enumerate(adapters)
    }


@pytest.fixture(scope="module")
def run(made: dict[str, Path]) -> Run:
    return load_run(made["run"])


def value(run: Run, measure: str, condition: str, site: str, **place: Any) -> float:
    """The one value of these columns; those not named are null."""
    table = run.table[(run.table["measure"] == measure) & (run.table["condition"] == condition)]
    for name in ("reference", "head", "position"):
        wanted = place.get(name)
        table = table[
            table[name].isna() if wanted is None else (table[name] == wanted).fillna(False)
        ]
    return float(table.loc[table["site"] == site, "value"].item())


def weights(folder: Path, adapter: Path | None = None, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Matrices by module, output first, as peft merges them in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    if adapter is not None:
        peft = PeftModel.from_pretrained(model, adapter)
        for module in peft.modules():
            if hasattr(module, "lora_A"):
                module.scaling = {name: scale * s for name, s in module.scaling.items()}
        model = peft.merge_and_unload()
    named = model.state_dict().items()
    return {n.removesuffix(".weight"): p.T.numpy() for n, p in named if "h." in n and p.ndim == 2}


def by_numpy(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    added = after - before
    s = np.linalg.svd(added, compute_uv=False)
    u, v = (np.linalg.svd(m, full_matrices=False)[0] for m in (before, after))
    return {
        "relative_norm": float(np.linalg.norm(added) / np.linalg.norm(before)),
        "stable_rank": float((s**2).sum() / s[0] ** 2),
        "intruder_dimensions": float((np.abs(u.T @ v[:, :TOP]).max(0) < EPSILON).sum()),
    }


def test_rows_of_matrices_parts_and_heads_are_numpys(run: Run, made: dict[str, Path]) -> None:
    base = weights(made["model"])
    changed = {
        "lora_0": weights(made["model"], made["lora_0"]),
        "half": weights(made["model"], made["lora_0"], 0.5),
        "tuned": weights(made["tuned"]),
    }
    for condition, after in changed.items():
        for layer in range(tiny_models.N_LAYERS):
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_proj"):
                module = f"transformer.h.{layer}.{name}"
                for measure, wanted in by_numpy(base[module], after[module]).items():
                    assert value(run, measure, condition, module) == pytest.approx(wanted, rel=1e-6)
            fused = f"transformer.h.{layer}.attn.c_attn"
            parts = zip("qkv", np.split(base[fused], 3), np.split(after[fused], 3), strict=True)
            for part, old, new in parts:
                for measure, wanted in by_numpy(old, new).items():
                    found = value(run, measure, condition, f"{fused}:{part}")
                    assert found == pytest.approx(wanted, rel=1e-6)
                for head in range(HEADS):
                    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
                    wanted = by_numpy(old[rows], new[rows])
                    for measure in ("relative_norm", "stable_rank"):
                        found = value(run, measure, condition, f"{fused}:{part}", head=head)
                        assert found == pytest.approx(wanted[measure], rel=1e-6)


def test_singular_values_are_listed_down_to_the_rank(run: Run, made: dict[str, Path]) -> None:
    base, after = weights(made["model"]), weights(made["model"], made["lora_0"])
    module = "transformer.h.1.attn.c_attn"
    wanted = np.linalg.svd(after[module] - base[module], compute_uv=False)
    rows = run.table[(run.table["measure"] == "singular_value") & (run.table["site"] == module)]
    own = rows[(rows["condition"] == "lora_0") & rows["head"].isna()]
    assert own["position"].tolist() == ["0", "1", "2"]
    np.testing.assert_allclose(own["value"], wanted[:3], rtol=1e-6)
    assert (rows["condition"] == "tuned").sum() == D_MODEL  # full rank


def test_overlaps_are_numpys_and_stand_beside_chance(run: Run, made: dict[str, Path]) -> None:
    base = weights(made["model"])
    adapters = [weights(made["model"], made[f"lora_{i}"]) for i in (0, 1)]
    module = "transformer.h.2.mlp.c_proj"
    bases = [np.linalg.svd(after[module] - base[module]) for after in adapters]
    sides = {
        "left": np.linalg.norm(bases[0][0][:, :2].T @ bases[1][0][:, :2]) ** 2 / 2,
        "right": np.linalg.norm(bases[0][2][:2] @ bases[1][2][:2].T) ** 2 / 2,
    }
    for side, wanted in sides.items():
        pair = {"condition": "lora_0", "site": module, "reference": "lora_1"}
        name = f"subspace_overlap_{side}"
        assert value(run, name, **pair) == pytest.approx(wanted, rel=1e-6)
        d = D_MODEL if side == "left" else 4 * D_MODEL
        assert value(run, f"{name}_chance", **pair) == pytest.approx(2 / d)


def test_an_adapter_at_half_its_size_has_the_same_directions(run: Run) -> None:
    found = {(e["condition"], e["reference"]): e for e in run.manifest["weights"]["alike"]}
    pair = found["lora_0", "half"]
    assert pair["left"] == pytest.approx(1)
    assert pair["right"] == pytest.approx(1)
    assert pair["left_above"] == pair["right_above"] == 1
    strangers = found["lora_0", "lora_1"]
    assert strangers["left"] == pytest.approx(strangers["left_chance"], abs=0.05)


def test_biases_and_norms_of_other_weights_have_their_size(run: Run, made: dict[str, Path]) -> None:
    one, other = (
        AutoModelForCausalLM.from_pretrained(made[n]).state_dict() for n in ("model", "tuned")
    )
    for name in ("transformer.h.0.ln_1.weight", "transformer.h.2.attn.c_attn.bias"):
        wanted = float((other[name] - one[name]).norm() / one[name].norm())
        assert value(run, "relative_norm", "tuned", name) == pytest.approx(wanted, rel=1e-5)


def test_the_same_weights_are_weighed_once(run: Run) -> None:
    found = run.manifest["weights"]
    assert "again" not in found["conditions"]
    assert any("again has the weights of lora_0" in note for note in found["notes"])


def test_what_is_too_large_is_left_out_and_said(made: dict[str, Path]) -> None:
    run = load_run(weigh(Weighing(run=made["run"], largest=1000, heads=False)))
    table = run.table[run.table["queries"].isna()]
    tuned = table[table["condition"] == "tuned"]
    assert set(tuned.loc[tuned["site"] == "transformer.wte", "measure"]) == {"relative_norm"}
    assert not (table["measure"] == "intruder_dimensions").any()
    assert (table[table["condition"] == "lora_0"]["measure"] == "stable_rank").any()
    assert table["head"].isna().all()
    assert any("--largest" in note for note in run.manifest["weights"]["notes"])


def test_weighing_again_gives_the_same_bytes_and_keeps_the_rest(made: dict[str, Path]) -> None:
    settings = Weighing(run=made["run"], compare=("lora_1",), intruders=False)
    before = (made["run"] / "results.parquet").read_bytes()
    bytes_ = [(weigh(settings) / WEIGHTS).read_bytes() for _ in range(2)]
    assert bytes_[0] == bytes_[1]
    assert (made["run"] / "results.parquet").read_bytes() == before
    run = load_run(made["run"])
    own = run.table[run.table["queries"].isna()]
    assert set(own["condition"]) == {"lora_1"}
    assert not (made["run"] / ".unfinished").exists()


def test_faults_are_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no condition 'base' in .* that changes the weights"):
        weigh(Weighing(run=made["run"], compare=("base",)))
    with pytest.raises(RunError, match="is not a run"):
        weigh(Weighing(run=tmp_path))


def test_experts_are_named_and_the_rest_is_weighed(tmp_path: Path) -> None:
    """A LoRA on all of a mixture: attention is weighed; what is left out is said, not thrown."""
    model = save_experts("mixtral", tmp_path / "model")
    folder = save_tuner(model, tmp_path / "lora", "LORA", target_modules="all-linear")
    (tmp_path / "prompt.txt").write_text("up is down.")
    queries = [json.dumps({"text": text}) for text in ("the", "a river is", "up is", "people")]
    (tmp_path / "q.jsonl").write_text("\n".join(queries))
    run = run_study(
        Experiment(
            model=model,
            adapter=(folder,),
            prompt_file=(tmp_path / "prompt.txt",),
            queries=tmp_path / "q.jsonl",
            controls=(),
            out=tmp_path / "run",
            bootstrap=0,
            permutations=0,
            device="cpu",
        )
    )
    weigh(Weighing(run=run))
    found = load_run(run)
    notes = " ".join(found.manifest["weights"]["notes"])
    assert "is not weighed: target_parameters" in notes
    assert "implicit updates of prompts are not measured" in notes
    assert "block 0 has no MLP of its own" in notes
    sites = set(found.table.query("measure == 'stable_rank'")["site"])
    assert {"model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.o_proj"} <= sites
