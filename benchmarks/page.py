"""How large is a report's page, and how soon does its first figure stand?

    python benchmarks/page.py            # of the bundled model, and of a large one
    python benchmarks/page.py RUN ...    # of these runs; needs Chromium or Chrome

Each page is opened in headless Chromium, offline, three times; the median counts. Budgets: the
bundled model at most 2 MB and 1.5 s; 32 layers x 32 heads with prompts and queries of 64 tokens in
all, of random numbers, at most 12 MB and 2.5 s. Exits 1 where one is missed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from interp.names import Head
from interp.plots.exporting import find_browser
from interp.report import write
from interp.runs.files import COLUMNS, write_run
from interp.runs.heads import HeadView
from interp.runs.samples import ENTRY, SampledContext, SampledQuery, Samples

REPEATS = 3
LAYERS, HEADS, CONTEXT, QUERY, KEPT = 32, 32, 48, 16, 2


class Budget(NamedTuple):
    """Bytes of a page, and seconds until its first figure stands."""

    size: float
    seconds: float


BUNDLED, LARGE = Budget(2e6, 1.5), Budget(12e6, 2.5)


def main(folders: list[Path]) -> int:
    """Print size and time of every page; 1 where a budget is missed."""
    with tempfile.TemporaryDirectory() as made:
        large = Path(made) / "large"
        asked = [(str(folder), folder, BUNDLED) for folder in folders or [bundled(Path(made))]]
        wanted = [*asked, (f"{LAYERS} layers x {HEADS} heads", made_up(large), LARGE)]
        missed = [name for name, folder, budget in wanted if not _within(name, folder, budget)]
    return len(missed) > 0


def _within(name: str, folder: Path, budget: Budget) -> bool:
    page = folder / "report.html"
    size, seconds = page.stat().st_size, statistics.median(first_figures(page, REPEATS))
    good = size <= budget.size and seconds <= budget.seconds
    print(
        f"{name}: {size / 1e6:.2f} MB (budget {budget.size / 1e6:g}), first figure after "
        f"{seconds:.2f} s (budget {budget.seconds:g}): {'within' if good else 'MISSED'}"
    )
    return good


def first_figures(page: Path, repeats: int) -> Iterator[float]:
    """Seconds from opening the page until its first figure stands, scrolled to."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        for _ in range(repeats):
            opened = browser.new_context(offline=True).new_page()
            start = time.perf_counter()
            opened.goto(f"{page.resolve().as_uri()}#figure-output")
            opened.wait_for_selector("[data-figure=output] .main-svg", timeout=60_000)
            yield time.perf_counter() - start
            opened.context.close()
        browser.close()


def bundled(folder: Path) -> Path:
    """The demo's run."""
    from interp.config import Experiment, bundled_families
    from interp.study import run_study

    out = run_study(Experiment(**bundled_families(folder / "demo")))
    write(out)
    return out


# --- a large run of random numbers ---------------------------------------------------------------

NAMES = {"base": 0, "prompt": CONTEXT, "lora": 0, "neutral": CONTEXT}
PAIRS = [("prompt", "lora"), ("neutral", "lora"), ("prompt", "base"), ("lora", "base")]
MEASURES = {"content_js": "pattern", "relative_l2": "z", "sim_am_delta": "attn_scores"}


def made_up(folder: Path) -> Path:
    """A run of 32 layers with 32 heads each, and its report."""
    rng = np.random.default_rng(0)
    few, view = _samples(rng), _view(rng)
    kept = {"head_view": view.manifest(), ENTRY: few.manifest()}
    manifest = {**_manifest(), **kept}
    folder.mkdir(parents=True)
    write_run(folder, list(_rows(rng)), {**view.arrays(), **few.arrays()}, manifest)
    write(folder)
    return folder


def _rows(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    places = [(i, None) for i in range(LAYERS)]
    for condition, reference in PAIRS:
        keys = {"condition": condition, "reference": reference, "queries": "matched", "n": 64}
        yield {**keys, **_numbers(rng), "measure": "js_divergence", "site": "output",
               "position": "last"}  # fmt: skip
        for position in ("last", "mean", *map(str, range(QUERY))):
            for site in ("resid_post", "attn_out", "mlp_out"):
                for layer, _ in places:
                    yield {**keys, **_numbers(rng), "measure": "relative_l2", "site": site,
                           "layer": layer, "position": position}  # fmt: skip
        for measure, site in MEASURES.items():
            for position in ("last", "mean"):
                for layer, head in np.ndindex(LAYERS, HEADS):
                    yield {**keys, **_numbers(rng), "measure": measure, "site": site,
                           "layer": layer, "head": head, "position": position}  # fmt: skip


def _numbers(rng: np.random.Generator) -> dict[str, float]:
    value = float(rng.gamma(1.2, 0.05))
    return {"value": value, "ci_low": value * 0.9, "ci_high": value * 1.1,
            "p_adjusted": float(rng.uniform())}  # fmt: skip


def _samples(rng: np.random.Generator) -> Samples:
    contexts = {n: SampledContext([f"w{i}" for i in range(max(1, c))]) for n, c in NAMES.items()}
    tokens = [f"t{i}" for i in range(QUERY)]
    blocks = []
    for _ in range(KEPT):
        for context in contexts.values():
            before = len(context.columns)
            shape = (LAYERS, HEADS, QUERY, before + QUERY)
            weight = rng.gamma(0.15, size=shape) * np.tri(QUERY, before + QUERY, before)
            weight /= weight.sum(-1, keepdims=True) + 1e-9
            blocks.append(np.round(255 * np.sqrt(weight)).astype(np.uint8).ravel())
    queries = [
        SampledQuery(i, " ".join(tokens), tokens, {"query": [0, QUERY]}, QUERY) for i in range(KEPT)
    ]
    says = {name: [[("yes", 0.9), ("no", 0.1)]] * KEPT for name in NAMES}
    return Samples(queries, list(range(LAYERS)), HEADS, contexts, says, np.concatenate(blocks))


def _view(rng: np.random.Generator) -> HeadView:
    patterns = rng.dirichlet(np.ones(1 + QUERY), size=(len(NAMES), 2, QUERY)).astype(np.float32)
    js = rng.gamma(1.2, 0.05, size=(len(PAIRS), 64)).astype(np.float32)
    tokens = [[f"t{i}" for i in range(QUERY)]] * 2
    return HeadView(Head(3, 2), list(NAMES), PAIRS, tokens, patterns, js, [])


def _manifest() -> dict[str, Any]:
    pair = {"condition": "prompt", "reference": "lora"}
    signed = {"queries": "matched", "n": 64, "mean_js": 0.01, "p95_js": 0.02, "passed": True,
              "top1_agreement": 0.97, "tolerance_js": 0.02, "tolerance_top1": 0.95}  # fmt: skip
    shape = {"n_layers": LAYERS, "n_heads": HEADS, "d_model": 4096, "dtype": "float32"}
    return {
        "config": {"columns": list(COLUMNS)},
        "versions": {},
        "hashes": {},
        "seed": 0,
        "notes": [],
        "model": {"name": "made up", "architecture": "none", **shape},
        "conditions": {n: {"kind": n, "description": n, "n_prefix": c} for n, c in NAMES.items()},
        "headline": pair,
        "null_pair": {"condition": "neutral", "reference": "lora"},
        "queries": {"matched": 64},
        "certificates": [{**pair, **signed}],
        "interval": {"level": 0.95, "replicates": 200, "method": "none, made up"},
    }


if __name__ == "__main__":
    raise SystemExit(main([Path(word) for word in sys.argv[1:]]))
