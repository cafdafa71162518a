"""`interp weights` on a run with a prompt: rows, bands of chance, the figure, and the identity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from plotly.graph_objects import Figure

from interp.config import Experiment
from interp.plots import implicit
from interp.runs.view import NotMeasured, Run, load_run
from interp.showing import number
from interp.study import run_study
from interp.weights.run import weigh
from interp.weights.settings import Weighing

TEXTS = ("the", "a river is wide", "hot is the", "lily said", "people walked along the road")
RANK = 3


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prompted")
    model = tiny_models.save_model("llama", root / "model")
    adapter = tiny_models.save_adapter(model, root / "lora", ["up_proj", "q_proj"])
    (root / "q.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    (root / "prompt.txt").write_text("the weather was mild")
    return run_study(
        Experiment(
            model=model,
            adapter=(adapter,),
            prompt_file=(root / "prompt.txt",),
            separator=" ",
            queries=root / "q.jsonl",
            controls=("neutral",),
            out=root / "run",
            bootstrap=10,
            permutations=0,
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def run(out: Path) -> Run:
    return load_run(weigh(Weighing(run=out, intruders=False, heads=False, draws=10)))


def test_every_projection_that_reads_an_mlp_s_input_has_its_rows(run: Run) -> None:
    own = run.table[run.table["measure"].str.startswith("implicit", na=False)]
    assert set(own["condition"]) == {"prompt", "neutral"}
    assert own["value"].notna().all()
    assert (own["queries"] == "matched").all()
    ranks = own[(own["measure"] == "implicit_rank") & (own["condition"] == "prompt")]
    assert len(ranks) == 2 * tiny_models.N_LAYERS  # gate and up
    assert ranks["value"].between(1, len(TEXTS)).all()
    overlaps = own[own["measure"] == "implicit_overlap_left"]
    assert set(overlaps["reference"]) == {"lora"}
    assert overlaps["site"].str.endswith("up_proj").all()  # the LoRA leaves gate alone
    chance = own[own["measure"] == "implicit_overlap_left_chance"]["value"]
    np.testing.assert_allclose(chance, RANK / 48)
    assert (own["ci_low"] <= own["ci_high"]).all()


def test_random_directions_are_farther_apart_than_a_prompt_s(run: Run) -> None:
    own = run.table[run.table["condition"] == "prompt"].groupby("measure")["value"].mean()
    assert own["implicit_rank"] < own["implicit_rank_chance"]
    assert own["implicit_cosine"] > own["implicit_cosine_chance"]
    assert abs(own["implicit_cosine_chance"]) < 0.1


def test_the_identity_is_checked_and_spectra_are_left_as_they_were(run: Run) -> None:
    found = run.manifest["weights"]
    assert set(found["identity"]) == {"prompt", "neutral"}
    assert max(found["identity"].values()) < 1e-5
    assert found["conditions"] == ["lora"]
    assert found["notes"] == []


def test_the_figure_shows_the_table_s_means(run: Run) -> None:
    figure = implicit(run)
    assert isinstance(figure, Figure)
    lines = [t for t in figure.data if t.meta and t.meta["fixed"].get("condition") == "prompt"]
    assert [t.meta["fixed"]["measure"] for t in lines] == [
        "implicit_rank",
        "implicit_cosine",
        "implicit_overlap_right",
        "implicit_overlap_left",
    ]
    title = figure.layout.meta["title"]
    names = {note.name for note in figure.layout.annotations if note.captureevents}
    ranks = run.table[(run.table["measure"] == "implicit_rank")]
    ranks = ranks[ranks["condition"] == "prompt"].groupby("layer")["value"].mean()
    assert f"takes {number(ranks.min(), 2)} to {number(ranks.max(), 2)} directions" in title
    assert {"prompt", "neutral"} <= names
    own = run.table[(run.table["measure"] == "implicit_rank") & (run.table["layer"] == 1)]
    own = own[own["condition"] == "prompt"]
    assert lines[0].y[1] == pytest.approx(own["value"].mean())


def test_none_are_measured_where_none_are_asked_for(out: Path) -> None:
    run = load_run(weigh(Weighing(run=out, intruders=False, heads=False, implicit=0)))
    assert not run.table["measure"].str.startswith("implicit", na=False).any()
    with pytest.raises(NotMeasured, match="no prompt was weighed"):
        implicit(run)


def test_too_few_queries_are_said(out: Path) -> None:
    run = load_run(weigh(Weighing(run=out, intruders=False, heads=False, implicit=2)))
    assert any("need 4 queries" in note for note in run.manifest["weights"]["notes"])
