"""Several runs in one page: their own numbers, on one scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interp.cli import main
from interp.errors import ConfigError
from interp.plots.several import several_heads, several_layers
from interp.plots.tidy import tidy
from interp.report.comparing import headlines, write_comparison
from interp.runs.view import Run, load_run


@pytest.fixture(scope="module")
def folders(make_folder: Callable[..., Path]) -> list[Path]:
    bare = {"patched": False, "weighed": False, "families": False, "head_view": False}
    return [
        make_folder(n_layers=3, n_heads=2, seed=1, **bare),
        make_folder(n_layers=5, n_heads=4, seed=2, passed=False, **bare),
    ]


@pytest.fixture(scope="module")
def runs(folders: list[Path]) -> dict[str, Run]:
    return dict(zip(("small", "large"), map(load_run, folders), strict=True))


def test_every_headline_has_a_line_by_depth(runs: dict[str, Run]) -> None:
    drawn = tidy(several_layers(runs))
    for name, run in runs.items():
        own = drawn[(drawn["run"] == name) & (drawn["measure"] == "relative_l2")]
        rows = run.by_layer("relative_l2", "resid_post", ("prompt", "lora"), "last")
        np.testing.assert_allclose(own["value"], rows["value"].astype(float), rtol=1e-6)
        assert own["depth"].tolist() == pytest.approx(np.linspace(0, 1, run.n_layers).tolist())


def test_heads_share_one_scale(runs: dict[str, Run]) -> None:
    figure = several_heads(runs)
    drawn = tidy(figure)
    cells = drawn[drawn["value"].notna()].groupby("run").size()
    assert cells.to_dict() == {"small": 3 * 2 - 1, "large": 5 * 4 - 1}  # one head is undefined
    assert figure.layout.coloraxis.cmax == pytest.approx(drawn["value"].max())
    assert {t.coloraxis for t in figure.data if t.type == "heatmap" and t.meta["z"] == "value"} == {
        "coloraxis"
    }


def test_the_table_has_a_row_per_run_and_its_certificate(runs: dict[str, Run]) -> None:
    table = headlines(runs)
    assert [row[0].text for row in table.rows] == ["small", "large"]
    assert [row[3].text for row in table.rows] == ["PASS", "FAIL"]


def test_one_page_by_one_command(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.html"
    assert main(["compare", *map(str, folders), "--out", str(out)]) == 0
    assert f"page: {out}" in capsys.readouterr().out
    html = out.read_text("utf-8")
    assert "2 runs compared" in html
    assert html.count("<figure") >= 2
    assert html.count("do not match (FAIL)") == 1
    assert all(folder.name in html for folder in folders)


def test_a_run_alone_or_twice_is_one_line(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two runs"):
        write_comparison(folders[:1], tmp_path / "x.html")
    with pytest.raises(ConfigError, match="given twice"):
        write_comparison([folders[0], folders[0]], tmp_path / "x.html")
