"""Tables of families, controls, geometry and checks: a run's numbers, beside what is expected."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from plots.synthetic_families import CONTROLS, ODD
from rich.console import Console

from interp.report import controls, tables, text_table
from interp.runs.view import Run, load_run
from interp.showing import number


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return load_run(folder)


def texts(table: tables.Table, column: str) -> list[str]:
    return [row[table.columns.index(column)].text for row in table.rows]


def test_families_are_shown_where_they_are_furthest_apart(run: Run) -> None:
    table = controls.family_table(run)
    assert len(table.rows) == 3 * 5
    rows = run.rows("divergence_index", "z", ("prompt", "lora"), "last")
    best = rows.loc[rows.loc[rows["p_adjusted"] <= 0.05, "value"].idxmax()]
    shown = next(r for r in table.rows if r[0].text == "prompt – lora" and "head" in r[1].text)
    assert shown[2].text == f"L{best['layer']}H{best['head']}"
    assert shown[3].text == number(best["value"])
    assert shown[3].extra == f"[{number(best['ci_low'])}, {number(best['ci_high'])}]"
    assert shown[4].text == number(best["p_adjusted"], 2)


def test_the_smallest_p_counts_the_ways_to_share_out_members(run: Run) -> None:
    assert controls.smallest_p(run, ("prompt", "lora")) == 1 / 10  # 20 ways, two names
    assert controls.smallest_p(run, ("prompt", ODD)) == 1 / 10  # 3 and 2 members


def test_every_control_stands_beside_the_headline_and_base(run: Run) -> None:
    table = controls.null_table(run)
    assert texts(table, "control") == ["headline", *CONTROLS]
    assert all(texts(table, "expected")[1:])
    rows = run.rows("relative_l2", "resid_post", ("prompt", "random_lora"), "last")
    last = rows.loc[rows["layer"] == 3, "value"].item()
    shown = table.rows[1 + CONTROLS.index("random_lora")]
    assert (shown[2].text, shown[3].text) == ("prompt vs random_lora", number(last))
    said = run.rows("js_divergence", "output", ("shifted", "base"), "last")
    assert table.rows[1 + CONTROLS.index("shifted")][6].text == number(said["value"].item())


def test_checks_pass_or_fail_by_their_bound(run: Run) -> None:
    assert texts(controls.checks(run), "verdict") == ["PASS"] * 3
    loose = {**run.manifest, "checks": {"influence": 2e-4, "other": 0.1}}
    table = controls.checks(Run(run.path, run.table, run.arrays, loose))
    assert texts(table, "verdict") == ["FAIL", "–"]


def test_geometry_has_value_null_and_chance_by_layer(run: Run) -> None:
    table = controls.geometry(run)
    assert texts(table, "layer") == ["0", "1", "2", "3"]
    shown = texts(table, "mutual kNN, prompt vs lora")
    rows = run.rows("mutual_knn", "resid_post", ("prompt", "lora"), "last")
    assert shown == [number(v) for v in rows.sort_values("layer")["value"]]
    assert texts(table, "mutual kNN, chance") == ["0.150"] * 4


def test_conditions_show_their_family(run: Run) -> None:
    table = tables.condition_table(run)
    found = dict(zip(texts(table, "condition"), texts(table, "family"), strict=True))
    assert (found["lora_1"], found[f"{ODD}_0"], found["base"]) == ("lora", ODD, "")


def test_the_terminal_has_one_line_per_pair_of_families(run: Run) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(text_table(run))
    lines = [line for line in out.getvalue().splitlines() if "divergence index" in line]
    rows = run.rows("divergence_index", "resid_post", ("prompt", "lora"), "last")
    best = rows.loc[rows.loc[rows["p_adjusted"] <= 0.05, "value"].idxmax()]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(f"prompt – lora: divergence index {number(best['value'])} [")
    assert f"at layer {best['layer']}, p = {best['p_adjusted']:.2g}" in lines[0]
    assert ODD in lines[1]


def test_families_that_relabelling_sets_as_far_apart_have_no_place(run: Run) -> None:
    table = run.table.copy()
    table.loc[table["measure"] == "divergence_index", "p_adjusted"] = 0.338
    same = Run(run.path, table, run.arrays, run.manifest)
    shown = controls.family_table(same)
    assert set(texts(shown, "where it is largest")) == {"none beyond relabelling"}
    assert [row[3].text + row[4].text for row in shown.rows] == ["–≥ 0.33"] * len(shown.rows)
    assert controls.control_lines(same)[0] == (
        "prompt – lora: divergence index of no layer differs from what relabelling gives (p ≥ 0.33)"
    )


def test_a_run_without_families_has_empty_tables(make_folder) -> None:
    plain = load_run(make_folder(families=False, n_layers=2))
    for table in (controls.family_table, controls.checks, controls.geometry):
        assert table(plain).rows == []
    assert texts(controls.null_table(plain), "control") == ["headline", "neutral"]
    assert controls.control_lines(plain) == []
    assert "family" not in tables.condition_table(plain).columns
