"""What a model allows to measure is known before the run; the rest is withheld by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_models import save_adapter, save_model, tokenizer
from transformers.models.llama import modeling_llama

from interp import Experiment, Patching, Run, diverge, load_run, patch
from interp.errors import SubjectError
from interp.names import Head
from interp.registry import MEASURES
from interp.report import text_table, write
from interp.runs.terms import TOTAL, terms
from interp.selection import measures_of
from interp.study import head_of_run
from interp.validation import architectures
from interp.validation.architectures import MODELS, TABLE_HEADINGS, ArchitectureRow

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
TEXTS = ["hot is the", "big is the opposite of", "the river is wide and"]


def documented() -> dict[str, ArchitectureRow]:
    lines = PAGE.read_text().partition("<!-- table -->\n")[2].partition("<!--")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(cells[0]) == TABLE_HEADINGS
    return {row[0]: ArchitectureRow(*row) for row in cells[2:]}


def test_the_page_has_every_architecture() -> None:
    assert list(documented()) == list(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_page_says_what_is_measured(name: str, tmp_path: Path) -> None:
    found, said = architectures.row(name, tmp_path), documented()[name]
    assert list(map(without_numbers, found)) == list(map(without_numbers, said))


def without_numbers(cell: str) -> str:
    """How far something is from holding is a matter of the machine."""
    return re.sub(r"\d\.\d+", "#", cell)


def made(model: str, folder: Path, targets: list[str]) -> Run:
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    (folder / "prompt.txt").write_text("hot is the opposite of cold. ")
    experiment = Experiment(
        model=model,
        adapter=(save_adapter(model, folder / "lora", targets),),
        prompt_file=(folder / "prompt.txt",),
        queries=folder / "queries.jsonl",
        controls=("neutral",),
        score_split=True,
        out=folder / "run",
        bootstrap=20,
        permutations=0,
        device="cpu",
    )
    return load_run(diverge(experiment))


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    def run_of(name: str, targets: list[str]) -> Run:
        return made(architectures.save_architecture(name, tmp_path / "model"), tmp_path, targets)

    return run_of


def rows(run: Run, measure: str, site: str) -> pd.DataFrame:
    return run.table[(run.table["measure"] == measure) & (run.table["site"] == site)]


def layers(run: Run, measure: str, site: str) -> list[int]:
    return sorted(rows(run, measure, site)["layer"].dropna().unique().tolist())


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5"])
def test_layers_without_heads_have_what_they_have(name: str, run_of: Callable[..., Run]) -> None:
    """Rows are numbered as the model numbers its layers, of which the second alone has heads."""
    run = run_of(name, ["q_proj", "v_proj"])
    assert run.manifest["withheld"] == {}
    assert layers(run, "relative_l2", "resid_post") == [0, 1, 2]
    assert layers(run, "relative_l2", "mixer_out") == [0, 2]
    assert layers(run, "relative_l2", "attn_out") == [1]
    assert layers(run, "influence", "mixer_out") == [0, 2]
    for measure, site in [
        ("content_js", "pattern"), ("change_input", "z"), ("influence", "z"),
        ("relative_l2", "z"), ("sim_am", "attn_scores"), ("petrov_residual", "pattern"),
    ]:  # fmt: skip
        assert layers(run, measure, site) == [1]
    assert run.arrays["gram_z"]["layer"].values.tolist() == [1]
    assert run.manifest["head_view"]["head"].startswith("L1")
    assert write(run.path).exists()


@pytest.mark.parametrize("name", ["lfm2", "gemma4", "granite"])
def test_the_bars_of_an_influence_add_up_to_its_total(
    name: str, run_of: Callable[..., Run]
) -> None:
    run = run_of(name, ["q_proj", "v_proj"])
    for pair in (("prompt", "base"), ("lora", "base"), ("prompt", "lora")):
        *parts, total = terms(run, pair)
        assert total.kind == TOTAL
        assert sum(part.value for part in parts) == pytest.approx(total.value, abs=1e-4)
    sites = {"lfm2": "mixer 0", "gemma4": "per-layer input 3", "granite": "MLP 2"}
    assert sites[name] in {part.name for part in parts}


def test_states_are_exchanged_where_a_model_has_them(run_of: Callable[..., Run]) -> None:
    """Attributions too: gradients pass the convolutions' own caches."""
    run = patched(run_of("lfm2", ["q_proj", "v_proj"]))
    damage = run.table[(run.table["measure"] == "damage") & (run.table["position"] == "all")]
    by_site = damage.groupby("site")["layer"].unique().map(sorted).to_dict()
    assert by_site == {"resid_post": [0, 1, 2], "attn_out": [1], "mixer_out": [0, 2], "z": [1],
                       "pattern": [1]}  # fmt: skip
    assert run.manifest["interchange"]["notes"] == []


def test_what_a_model_does_not_read_back_is_not_patched(run_of: Callable[..., Run]) -> None:
    """Gemma 4 runs its own attention: a pattern that is put there would do nothing, damage 0."""
    run = patched(run_of("gemma4", ["q_proj", "v_proj"]))
    assert "pattern" not in set(run.table.loc[run.table["measure"] == "damage", "site"])
    (note,) = run.manifest["interchange"]["notes"]
    assert note.startswith("pattern is not patched")


def patched(run: Run) -> Run:
    quick = {"positions": 0, "greedy": 0, "ablate": (), "bootstrap": 0, "permutations": 0}
    return load_run(patch(Patching(run=run.path, sites=("attn_out",), **quick)))


def test_before_an_adapter_nothing_differs_in_a_layer_without_heads(
    run_of: Callable[..., Run],
) -> None:
    """The LoRA sits on the second layer: what the first one's convolution writes is base's."""
    found = rows(run_of("lfm2", ["q_proj"]), "relative_l2", "mixer_out")
    lora = found[(found["condition"] == "lora") & (found["reference"] == "base")]
    by_layer = lora.groupby("layer")["value"].max()
    assert by_layer[0] == 0
    assert by_layer[2] > 1e-3


def test_a_model_whose_attention_is_not_hooked_has_the_rest(run_of: Callable[..., Run]) -> None:
    run = run_of("nemotron_h", ["q_proj", "o_proj"])
    withheld = run.manifest["withheld"]
    assert set(withheld) == {
        "patterns", "scores", "pinned inputs", "change decomposition", "score split",
    }  # fmt: skip
    assert not set(run.table["measure"]) & measures_of(withheld)
    assert {"relative_l2", "influence", "lens_js", "kl_divergence"} <= set(run.table["measure"])
    assert layers(run, "relative_l2", "mixer_out") == [0, 1, 2]
    check_said(run)
    with pytest.raises(SubjectError, match="no head L0H0"):
        head_of_run(run.path, str(Head(0, 0)))


def check_said(run: Run) -> None:
    """Terminal and the report's first section say what is missing, and why."""
    import io

    from rich.console import Console

    screen = Console(file=io.StringIO(), width=400)
    screen.print(text_table(run))
    told = screen.file.getvalue()  # type: ignore[attr-defined]
    page = write(run.path).read_text()
    section = page.partition('<h2 id="compared">')[2].partition("<h2")[0]
    for name, reason in run.manifest["withheld"].items():
        assert f"not measured: {name} ({reason})" in told
        assert f"not measured: {name}" in section


@pytest.fixture
def another_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's blocks add something that is neither attention's nor the MLP's."""
    plain = modeling_llama.LlamaDecoderLayer.forward

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(self, hidden_states, *args, **kwargs) + torch.tanh(hidden_states)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)


@pytest.mark.usefixtures("another_write")
def test_where_the_stream_is_no_sum_influence_alone_is_withheld(tmp_path: Path) -> None:
    run = made(
        save_model("llama", tmp_path / "model", words=tokenizer("gpt2")), tmp_path, ["q_proj"]
    )
    assert set(run.manifest["withheld"]) == {"influence"}
    assert "do not add up" in run.manifest["withheld"]["influence"]
    every = {n for n, m in MEASURES.items() if m.group and not n.endswith("no_sink")}
    assert every - set(run.table["measure"]) == {"influence", *measures_of({"routing"})}
    check_said(run)
