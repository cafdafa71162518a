"""The page: everything a reader needs of one run, as one string of HTML.

html = page(run, figures(run))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from interp.certificates import Certificate
from interp.names import pair_name
from interp.plots.frame import provenance_words
from interp.report import (
    answering,
    channels,
    chats,
    controls,
    edges,
    ladder,
    lora_parts,
    patching,
    reading,
    subspaces,
    tables,
    weights,
)
from interp.report.exploring import explorers
from interp.report.glossary import glossary
from interp.report.html import render
from interp.runs.heads import HeadView
from interp.runs.view import Run
from interp.showing import number, visible


def page(run: Run, figures: Mapping[str, go.Figure]) -> str:
    """The report of a run with these figures. Whatever strings the run holds stay text."""
    failed = run.verdict().passed is False
    parts = {"patching": _patching(run), "weights": weights.weights_section(run)}
    parts["reading"] = reading.reading_section(run)
    parts["variables"] = channels.variables_section(run)
    parts["edges"] = edges.edge_section(run)
    parts["subspaces"] = subspaces.subspace_section(run)
    parts["chats"] = chats.chat_section(run)
    parts["ladder"] = ladder.ladder_section(run)
    found = {**_words(run), **_first(run), **_tables(run), **parts, "failed": failed}
    return render("report.html.j2", figures, explorers(run), **found)


def _first(run: Run) -> dict[str, Any]:
    """What the first screen shows, and the words that are explained."""
    pair = run.headline
    digest = run.manifest.get("files", {}).get("results.parquet", "")
    version = run.manifest.get("versions", {}).get("interp", "?")
    shared = f"interp {version}, results.parquet sha256 {digest[:16]}"
    return {
        "headline_words": visible(" and ".join(map(str, pair)) if pair else "conditions"),
        "answers": answering.answers_in_brief(run),
        "says_first": answering.says(run, run.main_conditions[:3], 3),
        "says_all": answering.says(run, list(run.conditions), 99),
        "next_steps": answering.next_steps(run),
        "glossary": glossary(set(run.table["measure"].unique())),
        "cite_words": visible(f"{provenance_words(run)} {shared}."),
    }


def _words(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    verdict, pair = run.verdict(), run.headline
    found = run.certified(pair)
    name = pair_name(pair) if pair else "conditions"
    heads: dict[bool | None, str] = {
        True: "PASS: outputs match.",
        False: f"FAIL: {verdict.warning}.",
        None: "NOT CERTIFIED.",
    }
    unknown = dict.fromkeys(
        ("name", "architecture", "n_layers", "n_heads", "d_model", "dtype"), "?"
    ) | {"quantization": ""}
    return {
        "title": visible(f"{name} in {manifest.get('model', {}).get('name', 'one model')}"),
        "verdict": verdict,
        "verdict_head": heads[verdict.passed],
        "verdict_pair": visible(name if found else verdict.text.partition(": ")[2]),
        "verdict_lines": [f"{c['queries']} queries: {Certificate.of(c).numbers}" for c in found],
        "model": {**unknown, **_shown(manifest.get("model", {}))},
        "queries": manifest.get("queries", {}),
        "interval": visible(run.interval),
        "seed": manifest.get("seed", "?"),
        "cite": visible(_citation(run)),
        "versions": _shown(manifest.get("versions", {})),
        "hashes": _shown({**manifest.get("hashes", {}), **_own_files(manifest)}),
        "config": json.dumps(manifest.get("config", {}), indent=2, ensure_ascii=False),
        "notes": [visible(str(note)) for note in manifest.get("notes", [])],
        "withheld": controls.withheld(run),
    }


def _shown(entries: Mapping[str, Any]) -> dict[str, str]:
    return {visible(str(key)): visible(str(value)) for key, value in entries.items()}


def _own_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    kept = manifest.get("files", {}).items()
    return {name: digest for name, digest in kept if "/" not in name and name != "report.html"}


def _citation(run: Run) -> str:
    pair = run.headline
    frame = run.rows("relative_l2", "resid_post", pair, "last")
    frame = frame[frame["value"].notna() & frame["head"].isna()]
    top = run.largest(frame)
    if pair is None or top.row is None:
        return "measure, pair, site, layer, position, value [interval], p, n."
    row = top.row
    low, high = number(row["ci_low"]), number(row["ci_high"])
    return (
        f"“relative L2 of resid_post between {pair[0]} and {pair[1]} peaks at layer "
        f"{row['layer']} ({number(row['value'])}, {run.interval}: {low} to "
        f"{high}, {top.p}, n = {row['n']}, last query token)”."
    )


def _tables(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {
        "conditions": tables.condition_table(run),
        "certificates": tables.certificate_table(run),
        "outputs": tables.outputs(run),
        "outside": tables.outside(run),
        "layers": tables.layer_table(run),
        "heads": tables.top_heads(run),
        "families": controls.family_table(run),
        "nulls": controls.null_table(run),
        "checks": controls.checks(run),
        "geometry": controls.geometry(run),
        "attended": None,
        "head": None,
    }
    if run.manifest.get("head_view"):
        view = HeadView.of(run).narrowed(run)
        found |= {
            "attended": tables.attended_table(view, view.most_attended()),
            "head": str(view.head),
        }
    return found


def _patching(run: Run) -> dict[str, Any] | None:
    """What the section on the interchange shows; None without one."""
    if not run.manifest.get("interchange"):
        return None
    of = run.interchange
    other = set(of.pair) != set(run.headline or ())
    return {
        "verdict": visible(str(of.found["verdict"])),
        "certificate": visible(run.verdict(of.pair).text) if other else "",
        "checks": f"{of.depth_words} {patching.no_op(of)}".strip(),
        "notes": [visible(str(note)) for note in of.found.get("notes") or []],
        "layers": patching.interchange_table(of),
        "best": patching.best_layers(of),
        "segments": patching.segment_table(of),
        "contexts": patching.contexts(of),
        "heads": patching.head_table(of),
        "overlaps": patching.head_overlap_table(of),
        "greedy": patching.greedy(of),
        "vectors": patching.function_vectors(of),
        "attribution": patching.attribution_table(of),
        "ablation": lora_parts.ablation_table(of),
        "products": lora_parts.by_products(of),
        "few": lora_parts.few_directions(of),
    }
