"""Every row of a chat study with answers equals the slow reference: plain Hugging Face, one whole
conversation at a time, numpy.

Templates in the styles of ChatML, Llama-3, Gemma and Mistral, answers forced from a condition or
from the query file; and SmolLM2, where it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import reference
import tiny_models
from frames.chat_study import CASES, MAX_POSITIONS, Case, make
from frames.styles import system
from reference import Condition, Key, Value
from transformers import AutoTokenizer

from interp import load_run
from interp.config import Experiment
from interp.runs.view import Run
from interp.study import run_study

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Compared:
    """A finished run, and what the reference says of its rows and certificates, by group."""

    case: Case
    run: Run
    rows: dict[str, dict[Key, Value]]
    certificates: dict[str, dict[tuple[str, str], Mapping[str, float]]]


def compared_run(case: Case) -> Compared:
    run = load_run(run_study(case.experiment))
    expected = {group: case.expected(group) for group in case.queries}
    return Compared(
        case,
        run,
        {group: rows for group, (rows, _) in expected.items()},
        {group: signed for group, (_, signed) in expected.items()},
    )


@pytest.fixture(scope="module", params=CASES)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return compared_run(make(request.param, tmp_path_factory.mktemp(request.param)))


def found_rows(run: Run, group: str) -> dict[Key, Any]:
    """The rows of a run by what they are about, without those that say what is by chance."""
    table = run.table[run.table["queries"] == group]
    table = table[~table["measure"].str.endswith(("_chance", "_calibrated"))]
    found: dict[Key, Any] = {}
    for row in table.astype(object).itertuples(index=False):
        parts = [getattr(row, name) for name in reference.KEY]
        key = tuple(None if part is pd.NA else part for part in parts)
        assert key not in found, f"twice: {key}"
        found[key] = row
    return found


def check_rows(compared: Compared) -> None:
    """All rows are there, none is too many, every value and number of queries is the reference's,
    and what rounding decides is rare."""
    assert set(compared.run.table["queries"]) == set(compared.rows)
    for group, expected in compared.rows.items():
        found = found_rows(compared.run, group)
        assert sorted(map(str, expected.keys() - found.keys()))[:5] == []
        assert sorted(map(str, found.keys() - expected.keys()))[:5] == []
        wrong, largest, left_out = [], 0.0, 0
        for key, want in expected.items():
            got = found[key]
            if not want.meaningful:
                left_out += moves(key)
                continue
            if got.n != want.n:
                wrong.append((key, "n", got.n, want.n))
            if math.isnan(want.value) and math.isnan(got.value):
                continue
            difference = abs(got.value - want.value)
            largest = max(largest, difference / want.scale)
            if not difference <= TOLERANCE * want.scale + want.rounding:
                wrong.append((key, got.value, want.value))
        kinds = sorted({row[0][0] for row in wrong})
        print(f"{group}: {len(expected)} rows, {left_out} left out, largest {largest:.2g}")
        assert wrong[:10] == [], f"{len(wrong)} rows differ: {kinds}"
        assert left_out <= len(expected) / 100


def moves(key: Key) -> bool:
    """Whether a change beyond rounding is to be expected: rotary scores of the first block do not
    depend on what precedes a query, and a shift changes nothing there."""
    measure, condition, _, _, layer, *_ = key
    return condition != "shifted" and not (
        layer == 0 and measure in ("sim_am_delta", "rewiring_share")
    )


def check_certificates(compared: Compared) -> None:
    signed = {
        (c["queries"], c["condition"], c["reference"]): c
        for c in compared.run.manifest["certificates"]
    }
    assert len(signed) == len(compared.run.manifest["certificates"])
    expected = {(g, *pair): c for g, by_pair in compared.certificates.items()
                for pair, c in by_pair.items()}  # fmt: skip
    assert signed.keys() == expected.keys()
    for key, want in expected.items():
        got = {name: signed[key][name] for name in want}
        assert got == pytest.approx(want, abs=TOLERANCE * max(1, want["sequence_kl"])), key
        passes = want["mean_js"] <= 0.02 and want["top1_agreement"] >= 0.95
        assert signed[key]["passed"] == passes, key


def check_tokens(compared: Compared) -> None:
    """The files beside the table: the tokens measured, and what every condition wrote."""
    case, folder = compared.case, compared.run.path
    queries = pd.read_parquet(folder / "queries.parquet")
    answers = pd.read_parquet(folder / "answers.parquet")
    for group in case.queries:
        written, cuts = case.written(group), case.cuts("base", group)
        some = queries[queries["queries"] == group].sort_values("query")
        assert [tuple(ids) for ids in some["ids"]] == [each.ids for each in cuts]
        assert some["n_text"].tolist() == [each.n_text for each in cuts]
        assert [tuple(ids) for ids in some["answer_ids"]] == case.answers(group, written)
        told = answers[answers["queries"] == group]
        assert set(told["condition"]) == set(written)
        for name, own in written.items():
            rows = told[told["condition"] == name].sort_values("query")
            assert [tuple(ids) for ids in rows["ids"]] == own


def test_every_row_is_the_reference(compared: Compared) -> None:
    check_rows(compared)


def test_certificates_are_the_reference(compared: Compared) -> None:
    check_certificates(compared)


def test_tokens_and_answers_are_the_reference(compared: Compared) -> None:
    check_tokens(compared)


def test_the_study_has_what_it_is_to_compare(compared: Compared) -> None:
    """Answers of several lengths, some that end; queries of several lengths; every segment."""
    case = compared.case
    answers = case.answers("matched", case.written("matched"))
    assert len({len(answer) for answer in answers}) >= 3
    assert max(map(len, answers)) > MAX_POSITIONS
    cuts = case.cuts("base", "matched")
    assert len({each.n_text for each in cuts}) >= 3
    labels = {key[-1] for key in compared.rows["matched"]}
    indices = {f"answer_{i}" for i in range(MAX_POSITIONS)} | {str(i) for i in range(MAX_POSITIONS)}
    assert labels == {"last", "mean", "answer", *indices, *segments(compared)}
    known = [v.value for k, v in compared.rows["matched"].items() if k[0] == "accuracy"]
    assert max(known) > min(known)
    if case.experiment.answers_from:
        name = case.experiment.answers_from
        assert (
            compared.rows["matched"]["accuracy", name, None, "output", None, None, "answer"].value
            == 1
        )
        agreement = [
            v.value for k, v in compared.rows["matched"].items() if k[0] == "own_agreement"
        ]
        assert min(agreement) < 1


def segments(compared: Compared) -> list[str]:
    """Mistral's template writes one token after a query, which predicts the answer's first."""
    return ["query"] if compared.case.experiment.answers_from is None else ["query", "template"]


def test_p_of_families_is_that_of_all_relabellings(compared: Compared) -> None:
    wrong, known = [], 0
    for group, expected in compared.rows.items():
        found = found_rows(compared.run, group)
        for key, want in expected.items():
            if want.p is None or not want.meaningful:
                continue
            known += 1
            low, high = want.p
            if not low - 1e-9 <= found[key].p_adjusted <= high + 1e-9:
                wrong.append((key, found[key].p_adjusted, want.p))
    assert wrong[:10] == []
    assert known > 100


def test_kept_states_are_the_reference(compared: Compared) -> None:
    arrays, observed = compared.run.arrays, compared.case.observed["matched"]
    cuts = compared.case.cuts("base", "matched")
    rows = {
        "": lambda s, c: [s.end - 1],
        "_query": lambda s, c: range(c.n_text),
        "_template": lambda s, c: range(c.n_text, s.end - 1),
        "_answer": lambda s, c: range(s.end - 1, s.length),
    }
    assert set(arrays) & {f"states_resid_post_{name}" for name in ("query", "template")} == {
        f"states_resid_post_{name}" for name in segments(compared)
    }
    for suffix, chosen in rows.items():
        if suffix == "_template" and "template" not in segments(compared):
            continue
        kept = arrays[f"states_resid_post{suffix}"]
        for name in kept["condition"].values:
            pairs = zip(observed[name], cuts, strict=True)
            means = [s.resid_post[:, [*chosen(s, each)]].mean(1) for s, each in pairs]
            want = np.stack(means, axis=1)
            got = kept.sel(condition=name).transpose("layer", "query", "d_model").values
            np.testing.assert_allclose(got, want, atol=TOLERANCE * np.abs(want).max())


# SmolLM2 -----------------------------------------------------------------------------------------

ASKED = ["What is the capital of France?", "Name a color.", "How many days has a week?"]
STYLE = "You answer in one word, in French."


@pytest.fixture(scope="module")
def real(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("smollm2")
    lora = tiny_models.save_adapter(smollm2, folder / "lora", ["q_proj", "v_proj"], layers=[12])
    lines = [json.dumps({"text": text}) for text in ASKED]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "system.txt").write_text(STYLE)
    experiment = Experiment(
        model=smollm2,
        adapter=(lora,),
        system_file=(folder / "system.txt",),
        queries=folder / "queries.jsonl",
        out=folder / "run",
        chat=True,
        controls=(),
        answers_from="prompt",
        answer_tokens=6,
        device="cpu",
        batch_size=2,
        bootstrap=0,
        permutations=0,
        sample=0,
        max_positions=MAX_POSITIONS,
    )
    case = Case(
        experiment,
        AutoTokenizer.from_pretrained(smollm2),
        {},
        {"matched": [(text, None) for text in ASKED]},
        {"prompt": ([system(STYLE)], "")},
        {"base": Condition(), "prompt": Condition(), "lora": Condition(adapter=lora)},
        [2],
        whole_vocabulary=False,
    )
    return compared_run(case)


def test_every_row_of_a_real_model_is_the_reference(real: Compared) -> None:
    check_tokens(real)
    check_certificates(real)
    check_rows(real)
